"""`harness proxy` before an endpoint of the local SageMaker: real HTTP, boto3, event streams, signals."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.emulator.conftest import client
from tests.protocols.hostile import REQUESTS
from tests.proxy.conftest import ROOT, Proxied

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(300)]
CHAT = {"messages": [{"role": "user", "content": "one two three"}]}


def connect(proxied: Proxied) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(proxied.base_url).netloc, timeout=60)


def post(proxied: Proxied, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
    connection = connect(proxied)
    headers = {"Authorization": f"Bearer {proxied.token}"}
    if content_type:
        headers["Content-Type"] = content_type
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_address_is_loopback_and_wants_the_token(proxied: Proxied) -> None:
    connection = connect(proxied)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    connection.close()


def test_a_stream_arrives_as_it_is_made(proxied: Proxied) -> None:
    connection = connect(proxied)
    body = json.dumps({**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    connection.request(
        "POST",
        "/v1/chat/completions",
        body,
        {"Authorization": f"Bearer {proxied.token}", "Content-Type": "application/json"},
    )
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/event-stream"
    first = answer.readline()  # arrives although the stream goes on
    assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == " three"
    rest = answer.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rest.count(b"data: ") == 6  # three words, the end, the usage, [DONE]
    connection.close()


def test_boto3_gets_the_same_from_the_endpoint_itself(proxied: Proxied) -> None:
    runtime = client(proxied.server, "sagemaker-runtime")
    answer = runtime.invoke_endpoint(EndpointName="words", Body=json.dumps({"inputs": "a b"}))  # without ContentType
    assert json.loads(answer["Body"].read()) == {"generated_text": " b a"}
    answer = runtime.invoke_endpoint_with_response_stream(
        EndpointName="words",
        Body=json.dumps({"inputs": "a b", "stream": True}),
        ContentType="application/json",
        Accept="text/event-stream",
    )
    assert answer["ContentType"] == "text/event-stream"
    sent = b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"])
    assert sent.startswith(b"data: ")
    runtime.close()


@pytest.mark.parametrize("path", ["/invocations", "/v1/completions"])
def test_sixty_hostile_requests_and_the_endpoint_is_as_before(proxied: Proxied, path: str) -> None:
    for hostile in REQUESTS:
        status, body = post(proxied, path, hostile.body, hostile.content_type)
        if path == "/invocations" and hostile.name != "no-type":
            assert status == hostile.status, (hostile.name, body[:300])
        elif path == "/invocations":
            assert status == 200, body
        else:
            assert status in (400, 413, 415, 422) or (status == 200 and b"prompt" in hostile.body), hostile.name
        json.loads(body)
    status, body = post(proxied, path, b'{"prompt": "a b"}')
    assert json.loads(body)["choices"][0]["text"] == " b a"


def test_a_client_that_leaves_ends_the_stream_in_the_container(proxied: Proxied) -> None:
    connection = connect(proxied)
    words = " ".join(["word"] * 200)  # 4 seconds
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps({"prompt": words, "stream": True, "max_tokens": 200}),
        {"Authorization": f"Bearer {proxied.token}", "Content-Type": "application/json"},
    )
    answer = connection.getresponse()
    answer.readline()
    answer.close()
    connection.close()
    logs = client(proxied.server, "logs")
    deadline = time.monotonic() + 30
    while "the client left after" not in _log(logs):
        assert time.monotonic() < deadline, "the container still writes"
        time.sleep(0.2)
    logs.close()


def _log(logs: object) -> str:
    group = "/aws/sagemaker/Endpoints/words"
    if not logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:  # type: ignore[attr-defined]
        return ""  # nothing printed so far
    streams = logs.describe_log_streams(logGroupName=group)["logStreams"]  # type: ignore[attr-defined]
    events = [
        event
        for stream in streams
        for event in logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"])["events"]  # type: ignore[attr-defined]
    ]
    return "\n".join(event["message"] for event in events)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere"], 10, "Could not find"),
        (["words", "--platform", "moon"], 3, "no platform 'moon'"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_offered_is_said_before_anything_listens(
    proxied: Proxied, folder: Path, words: list[str], code: int, said: str
) -> None:
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "harness", "proxy", *words],
        cwd=folder,
        env={**os.environ, "HARNESS_RUNS_DIR": str(folder / ".runs")},  # the server is this folder's, not the test's
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_without_a_local_sagemaker_the_hint_is_to_start_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "harness", "proxy", "words"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 8
    assert "harness local up" in done.stderr
