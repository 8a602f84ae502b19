"""A local SageMaker for the tests: a real server process with a stand-in for DJL Serving, one for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from harness.local import control
from harness.local.control import Server
from tests.emulator.requests import Requests

BIN = Path(__file__).parent / "bin"


def start(state: Path, executor: str = "process", **env: str) -> Server:
    """A server of its own for `state`."""
    before = dict(os.environ)
    os.environ.update(DJL_SERVING=str(BIN / "djl-serving"), **env)
    try:
        return control.up(state, None, "us-west-2", executor)[0]
    finally:
        os.environ.clear()
        os.environ.update(before)


def client(server: Server, service: str, **options: Any) -> Any:
    """boto3 as a user would have it after `eval "$(harness local env)"`; retries off, so that errors are seen."""
    env = server.environment()
    return boto3.client(
        service,
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=options.pop("region", env["AWS_DEFAULT_REGION"]),
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, **options),
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("local-sagemaker")
    made = start(state)
    yield made
    misshapen = (control.health(made) or {})["misshapen"]
    control.down(state)
    log = (state / "server.log").read_text()
    assert misshapen == [], "answers that do not fit botocore's output shapes"
    assert "Traceback" not in log, log[-3000:]


@pytest.fixture
def aws(server: Server) -> Iterator[Requests]:
    made = Requests(server, client)
    yield made
    made.close()
