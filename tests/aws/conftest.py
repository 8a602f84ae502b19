"""An account to talk to: moto's S3, IAM, STS, ECR, EC2, KMS and Logs on a loopback port of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.aws.session import Aws
from harness.local.control import Server
from harness.record import Record
from harness.sagemaker import account as setup
from harness.spec.profile import Profile
from tests.emulator.conftest import client, server
from tests.emulator.requests import Requests

__all__ = ["server"]  # a fixture
ACCOUNT = "123456789012"


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def profile(moto_url: str, _fence: None) -> Iterator[Profile]:
    """A profile whose account is empty but for its bucket and its role."""
    import urllib3

    made = Profile(
        account=ACCOUNT,
        region="us-west-2",
        role_arn=f"arn:aws:iam::{ACCOUNT}:role/neuron-harness",
        bucket="a-bucket",
        endpoint_url=moto_url,
    )
    setup.create(Aws(made), made, lambda _: None)
    yield made
    urllib3.request("POST", f"{moto_url}/moto-api/reset")


@pytest.fixture
def standard_chain(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and addresses as boto3 finds them by itself, as on a host of that account."""
    for name, value in {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "ENDPOINT_URL": moto_url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def aws(profile: Profile) -> Aws:
    return Aws(profile)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    found = Record("x-20260101-000000-abcd", tmp_path / "x-20260101-000000-abcd")
    found.path.mkdir()
    return found


@pytest.fixture
def requests(server: Server) -> Iterator[Requests]:
    """To the local SageMaker that tests/emulator has, too; its answers are held against botocore at the end."""
    made = Requests(server, client)
    yield made
    made.close()
