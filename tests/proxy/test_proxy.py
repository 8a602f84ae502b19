"""harness/proxy.py in this process: who is let in, what is handed on, how errors look. The upstream parses really."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from containers.contract import MAX_INVOCATION_BODY
from harness import proxy
from harness.proxy import Endpoint
from tests.protocols.hostile import REQUESTS, Hostile
from tests.proxy.words import answer

TOKEN = "a-token"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "one two"}]}


class Events:
    """boto3's EventStream: iterated, then closed; `breaks` after its parts."""

    def __init__(self, parts: Iterator[bytes], breaks: Exception | None = None) -> None:
        self.parts, self.breaks, self.closed = parts, breaks, False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for part in self.parts:
            if part:
                yield {"PayloadPart": {"Bytes": part}}
        if self.breaks:
            raise self.breaks

    def close(self) -> None:
        self.closed = True


class Runtime:
    """boto3's sagemaker-runtime client for an endpoint with tests/proxy/words.py in it."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.breaks: Exception | None = None
        self.events: list[Events] = []
        self.asked: list[dict[str, Any]] = []

    def _answered(self, request: dict[str, Any]) -> Any:
        self.asked.append(request)
        if self.raises:
            raise self.raises
        reply = answer(request["Body"], request["ContentType"], request.get("Accept", ""))
        if reply.status != 200:
            said = b"".join(reply.body).decode()
            raise client_error("ModelError", f"Received client error ({reply.status})", reply.status, said)
        return reply

    def invoke_endpoint(self, **request: Any) -> dict[str, Any]:
        reply = self._answered(request)

        class Body:
            @staticmethod
            def read() -> bytes:
                return b"".join(reply.body)

        return {"ContentType": reply.content_type, "Body": Body}

    def invoke_endpoint_with_response_stream(self, **request: Any) -> dict[str, Any]:
        reply = self._answered(request)
        self.events.append(Events(reply.body, self.breaks))
        return {"ContentType": reply.content_type, "Body": self.events[-1]}


def client_error(
    code: str, message: str, original: int | None = None, said: str = "", status: int = 400
) -> Exception:
    from botocore.exceptions import ClientError

    more = {} if original is None else {"OriginalStatusCode": original, "OriginalMessage": said}
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": 424 if more else status},
        **more,
    }
    return ClientError(response, "InvokeEndpoint")  # type: ignore[arg-type]


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def client(runtime: Runtime) -> FlaskClient:
    made = proxy.application(Endpoint(runtime, "my-endpoint"), TOKEN).test_client()
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    made.environ_base["HTTP_HOST"] = "127.0.0.1:1234"
    return made


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer other", f"bearer {TOKEN}", f"Basic {TOKEN}", "Bearer a-tokén"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/invocations", "/nowhere", "/openapi.json"])
def test_nothing_without_the_token(client: FlaskClient, runtime: Runtime, given: str, path: str) -> None:
    refused = client.post(path, json=CHAT, headers={"Authorization": given})
    assert refused.status_code == 401
    assert "harness proxy" in refused.json["error"]["message"]
    assert runtime.asked == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_browser_that_was_led_here_is_refused(client: FlaskClient, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 403


def test_the_endpoint_is_the_one_model(client: FlaskClient) -> None:
    (model,) = client.get("/v1/models").json["data"]
    assert (model["id"], model["object"]) == ("my-endpoint", "model")
    assert client.get("/v1/models/my-endpoint").json == model
    assert client.get("/v1/models/gpt-4").status_code == 404


def test_the_published_description_is_served(client: FlaskClient) -> None:
    assert client.get("/openapi.json").json["openapi"].startswith("3.1")


def test_answers_pass_through(client: FlaskClient, runtime: Runtime) -> None:
    said = client.post("/v1/chat/completions", json={**CHAT, "model": "any"}).json
    assert said["choices"][0]["message"]["content"] == " two one user:"
    assert said["model"] == "any"
    assert client.post("/v1/completions", json={"prompt": "a b"}).json["choices"][0]["text"] == " b a"
    assert client.post("/invocations", json={"inputs": "a b"}).json == {"generated_text": " b a"}
    assert all(a["EndpointName"] == "my-endpoint" and a["ContentType"] == "application/json" for a in runtime.asked)


def test_streams_pass_through_and_are_closed(client: FlaskClient, runtime: Runtime) -> None:
    said = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert said.content_type == "text/event-stream"
    assert said.data.endswith(b"data: [DONE]\n\n")
    assert b'"content": " two"' in said.data
    lines = client.post("/invocations", json={"inputs": "a b", "stream": True})
    assert lines.content_type == "application/jsonlines"
    assert json.loads(lines.data.splitlines()[-1])["generated_text"] == " b a"
    events = client.post(
        "/invocations", json={"inputs": "a", "stream": True}, headers={"Accept": "text/event-stream, */*"}
    )
    assert events.data.startswith(b"data: ")
    assert all(e.closed for e in runtime.events)


def test_a_client_that_leaves_ends_the_stream_at_sagemaker(client: FlaskClient, runtime: Runtime) -> None:
    response = client.post("/v1/chat/completions", json={**CHAT, "stream": True}, buffered=False)
    next(response.iter_encoded())
    assert not runtime.events[0].closed
    response.close()
    assert runtime.events[0].closed


def test_a_stream_that_breaks_ends_with_an_error_event(client: FlaskClient, runtime: Runtime) -> None:
    runtime.breaks = client_error("ModelStreamError", "The model container closed the connection")
    last = client.post("/v1/chat/completions", json={**CHAT, "stream": True}).data.split(b"\n\n")[-2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
    lines = client.post("/invocations", json={"inputs": "a", "stream": True}).data.splitlines()
    assert "closed the connection" in json.loads(lines[-1])["error"]["message"]


@pytest.mark.parametrize("hostile", [r for r in REQUESTS if r.status not in (200, 413)], ids=lambda h: h.name)
@pytest.mark.parametrize("path", ["/invocations", "/v1/chat/completions"])
def test_hostile_requests_are_refused_in_the_routes_form(client: FlaskClient, hostile: Hostile, path: str) -> None:
    refused = client.post(path, data=hostile.body, content_type=hostile.content_type)
    error = refused.json["error"]
    if path == "/invocations":
        assert refused.status_code == refused.json["code"] == hostile.status
        assert error.isprintable()
    else:
        assert refused.status_code in (400, 415, 422)
        assert error["type"] == "invalid_request_error"
        assert error["message"].isprintable()


def test_openais_clients_get_the_field(client: FlaskClient) -> None:
    refused = client.post("/v1/chat/completions", json={**CHAT, "temperature": 3})
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "temperature")
    beyond = client.post("/v1/completions", json={"prompt": "a", "n": 9})
    assert (beyond.status_code, beyond.json["error"]["type"]) == (422, "invalid_request_error")
    assert client.post("/invocations", json={"prompt": "a", "n": 9}).status_code == 422
    other = client.post("/v1/chat/completions", json={"prompt": "a"})
    assert (other.status_code, other.json["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (client_error("ValidationError", "Endpoint my-endpoint of account 1 not found."), 404, "not found"),
        (client_error("ServiceUnavailable", "Service Unavailable", status=503), 503, "Unavailable"),
        (client_error("ThrottlingException", "Rate exceeded"), 429, "Rate exceeded"),
        (client_error("AccessDeniedException", "not authorized"), 403, "not authorized"),
        (client_error("Strange", "new", status=418), 418, "new"),
        (client_error("ModelError", "Your invocation timed out", 0, ""), 504, "timed out"),
        (client_error("ModelError", "m", 503, "<html>\nbusy</html>"), 503, "<html> busy</html>"),
        (client_error("ModelError", "m", 500, "[" * 100_000), 500, "[["),
        (client_error("ModelError", "m", 507, ""), 507, "m"),
    ],
)
def test_what_sagemaker_refuses_keeps_its_status(
    client: FlaskClient, runtime: Runtime, error: Exception, status: int, said: str
) -> None:
    runtime.raises = error
    for stream in (False, True):
        refused = client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert refused.status_code == status
        assert said in refused.json["error"]["message"]
        assert refused.json["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")


def test_no_network_is_502_and_a_fault_of_ours_500_without_its_text(client: FlaskClient, runtime: Runtime) -> None:
    from botocore.exceptions import EndpointConnectionError

    runtime.raises = EndpointConnectionError(endpoint_url="https://x")
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 502
    runtime.raises = KeyError("secret")
    failed = client.post("/v1/chat/completions", json=CHAT)
    assert failed.status_code == 500
    assert b"secret" not in failed.data


def test_what_sagemaker_would_not_take_is_not_sent(client: FlaskClient, runtime: Runtime) -> None:
    refused = client.post("/v1/chat/completions", data=b" " * (MAX_INVOCATION_BODY + 1))
    assert refused.status_code == 413
    assert refused.json["error"]["type"] == "invalid_request_error"
    assert runtime.asked == []


def test_other_routes_and_methods_are_refused_in_openais_form(client: FlaskClient) -> None:
    assert client.get("/v1/embeddings").json["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/embeddings").status_code == 404
    wrong = client.get("/v1/chat/completions")
    assert (wrong.status_code, set(wrong.headers["Allow"].split(", "))) == (405, {"POST", "OPTIONS"})


def test_a_port_that_is_taken_says_so() -> None:
    from harness.errors import InvalidInput

    app = proxy.application(Endpoint(None, "e"), TOKEN)
    with proxy.serving(app) as port, pytest.raises(InvalidInput, match=f"port {port}"), proxy.serving(app, port):
        pass
