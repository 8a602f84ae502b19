"""Secrets by ARN: fetched as the container starts, in no log and no failure file, and every refusal says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from containers import contract, secretsmanager
from containers.contract import ContractError, Paths
from containers.secretsmanager import Credentials

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:hf-AbCdEf"
VALUE = "hf_0123456789abcdefghij"


class _Aws(BaseHTTPRequestHandler):
    """Secrets Manager, a container's credentials and an instance's, as far as one call needs them."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.asked.append(({k.lower(): v for k, v in self.headers.items()}, json.loads(body)))
        status, answer = server.answers.pop(0) if server.answers else (200, {"SecretString": VALUE})
        self._answer(status, json.dumps(answer))

    def do_PUT(self) -> None:
        self._answer(200, "instance-token")

    def do_GET(self) -> None:
        found = {"AccessKeyId": "ASIA", "SecretAccessKey": "s", "Token": f"of{self.path.replace('/', '-')}"}
        if self.path == "/role" and self.headers.get("Authorization") == "secret-token":
            self._answer(200, json.dumps(found))
        elif self.headers.get("X-aws-ec2-metadata-token") != "instance-token":
            self._answer(403, "")
        else:
            self._answer(200, "the-role\n" if self.path.endswith("/") else json.dumps(found))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Aws)
    server.asked, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(secretsmanager, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def told(aws: Any, **more: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"}
    return {"HF_TOKEN_SECRET_ARN": ARN, "AWS_ENDPOINT_URL": aws.url, **keys, **more}


@pytest.mark.parametrize("token", ["", "a-session-token"])
def test_the_signature_is_the_one_that_botocore_makes(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, body, at = "https://secretsmanager.eu-west-1.amazonaws.com", b'{"SecretId": "x"}', datetime.now(UTC)
    ours = secretsmanager.signed(url, "eu-west-1", body, Credentials("AKIA", "secret", token), at)
    kept = {k: v for k, v in ours.items() if k in ("content-type", "x-amz-target")}
    request = AWSRequest("POST", url, data=body, headers=kept)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: at.replace(tzinfo=None))
    SigV4Auth(BotoCredentials("AKIA", "secret", token or None), "secretsmanager", "eu-west-1").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]


def test_the_value_comes_from_the_secrets_region_with_the_credentials_at_hand(aws: Any) -> None:
    assert secretsmanager.fetch(told(aws, AWS_REGION="us-east-1")) == {"HF_TOKEN": VALUE}
    headers, body = aws.asked[0]
    assert body == {"SecretId": ARN}
    assert "/eu-west-1/secretsmanager/aws4_request" in headers["authorization"]


@pytest.mark.parametrize(
    ("where", "token"),
    [
        (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{url}/role", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "secret-token"},
            "of-role",
        ),
        (
            {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "{url}"},
            "of-latest-meta-data-iam-security-credentials-the-role",
        ),
    ],
)
def test_the_role_of_the_container_or_the_instance_is_used(aws: Any, where: dict[str, str], token: str) -> None:
    env = {"HF_TOKEN_SECRET_ARN": ARN, "AWS_ENDPOINT_URL": aws.url}
    env |= {k: v.format(url=aws.url) for k, v in where.items()}
    assert secretsmanager.fetch(env) == {"HF_TOKEN": VALUE}
    assert aws.asked[0][0]["x-amz-security-token"] == token


def test_throttling_is_waited_out_and_a_refusal_is_told_with_its_code(aws: Any) -> None:
    aws.answers += [(400, {"__type": "ThrottlingException", "message": "slow"}), (503, {})]
    assert secretsmanager.fetch(told(aws)) == {"HF_TOKEN": VALUE}
    refused = {"__type": "com.amazonaws#AccessDeniedException", "Message": "not authorized to perform"}
    aws.answers.append((400, refused))
    with pytest.raises(ContractError, match=rf"HF_TOKEN_SECRET_ARN \({ARN}\): AccessDeniedException: not authorized"):
        secretsmanager.fetch(told(aws))
    assert len(aws.asked) == 4, "a refusal is not asked again"


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"HF_TOKEN_SECRET_ARN": "hf_plain"}, "not the ARN of a secret"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "no credentials to read it with"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no answer from 127.0.0.1:9"),
    ],
)
def test_what_cannot_be_fetched_says_why(aws: Any, env: dict[str, str], why: str) -> None:
    with pytest.raises(ContractError, match=why):
        secretsmanager.fetch(told(aws, **env))


def test_a_secret_without_text_is_refused(aws: Any) -> None:
    aws.answers.append((200, {"SecretBinary": "AAAA"}))
    with pytest.raises(ContractError, match="no text that fits into a variable"):
        secretsmanager.fetch(told(aws))


TRAINER = """
import os, sys, time
from pathlib import Path
token = os.environ["HF_TOKEN"]
for piece in ("it is ", token[:9], token[9:], " and ", token[:5], "\\n", "progress 1/2\\r"):
    sys.stdout.write(piece); sys.stdout.flush(); time.sleep(0.05)
raise ValueError("401 for " + token)
"""


def _start(program: Path, base: Path, env: dict[str, str], *command: str) -> tuple[int, str]:
    launcher = (
        "import sys, pathlib; from containers import entrypoint; "
        f"entrypoint.PROGRAM = pathlib.Path({str(program)!r}); sys.exit(entrypoint.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", launcher, *command],
        cwd=program,
        env={**os.environ, contract.BASE_ENV: str(base), "PYTHONPATH": str(program), **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def program(tmp_path: Path, root: Path) -> Path:
    folder = tmp_path / "program"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "__init__.py").touch()
    (folder / "train" / "run_clm.py").write_text(TRAINER)
    (folder / "containers").symlink_to(root / "containers")
    return folder


def test_the_trainer_has_the_value_and_no_log_or_failure_file_shows_it(
    aws: Any, program: Path, tmp_path: Path
) -> None:
    code, out = _start(program, tmp_path / "ml", told(aws), "train")
    assert code == 1
    assert f"it is *** and {VALUE[:5]}\nprogress 1/2" in out, "only the whole value is hidden, also in pieces"
    reason = contract.read_failure(Paths(tmp_path / "ml"))
    assert reason.startswith("AlgorithmError: ValueError: 401 for ***, exit code 1")
    assert VALUE not in out + reason


def test_other_commands_of_a_job_get_it_too(aws: Any, program: Path, tmp_path: Path) -> None:
    show = "import os; print(len(os.environ['HF_TOKEN']), os.environ['HF_TOKEN'])"
    assert _start(program, tmp_path / "ml", told(aws), sys.executable, "-c", show) == (0, f"{len(VALUE)} ***\n")


def test_a_job_without_its_secret_fails_before_it_trains(aws: Any, program: Path, tmp_path: Path) -> None:
    aws.answers.append((400, {"__type": "ResourceNotFoundException", "Message": "can't find the secret"}))
    code, out = _start(program, tmp_path / "ml", told(aws), "train")
    assert code == 3
    assert "run_clm" not in out
    reason = contract.read_failure(Paths(tmp_path / "ml"))
    assert reason.startswith(f"ClientError: HF_TOKEN_SECRET_ARN ({ARN}): ResourceNotFoundException")
