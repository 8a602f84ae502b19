"""OpenAI's routes on this machine for any SageMaker endpoint: what `harness proxy ENDPOINT` serves.

Standard clients know a base URL and a token; SageMaker wants signed InvokeEndpoint calls. In between nothing is
changed but the form of errors: the endpoint itself understands OpenAI's bodies (docs/requests.md).
"""

from __future__ import annotations

import hmac
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from threading import Thread
from typing import TYPE_CHECKING, Any

from containers.contract import MAX_INVOCATION_BODY

if TYPE_CHECKING:
    from flask import Flask, Response

HOSTS = ("127.0.0.1", "localhost")
"""Bound to loopback; another Host header is a browser that was led here (DNS rebinding)."""
THREADS = 64
"""A request holds one until its answer, or its stream, has ended; twice the default of max_batch_size."""
EVENT_STREAM, JSON_LINES = "text/event-stream", "application/jsonlines"
# The field without which a route's body is another route's.
ROUTES = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
# Codes of SageMaker Runtime's refusals, beside ModelError, and what clients of OpenAI make the right thing of.
# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors
STATUS = {
    "ValidationError": 404,  # the endpoint is not there, or not InService
    "ServiceUnavailable": 503,
    "InternalFailure": 500,
    "InternalDependencyException": 500,
    "ModelNotReadyException": 503,
    "ThrottlingException": 429,
    "AccessDeniedException": 403,
    "413": 413,
}


class UpstreamError(Exception):
    """No answer to hand on: an HTTP status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered with status 200."""

    content_type: str
    body: Iterator[bytes]


class Endpoint:
    """An endpoint behind SageMaker Runtime. `client` is boto3's, which may be used by several threads."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name

    def ask(self, body: bytes, content_type: str, accept: str, stream: bool) -> Reply:
        """InvokeEndpoint, or the same WithResponseStream. Raises UpstreamError."""
        from botocore.exceptions import BotoCoreError, ClientError

        request: dict[str, Any] = {"EndpointName": self.name, "Body": body, "ContentType": content_type}
        if accept:
            request["Accept"] = accept
        try:
            if stream:
                answer = self.client.invoke_endpoint_with_response_stream(**request)
                return Reply(answer.get("ContentType", EVENT_STREAM), _parts(answer["Body"]))
            answer = self.client.invoke_endpoint(**request)
            return Reply(answer.get("ContentType", "application/json"), iter([answer["Body"].read()]))
        except ClientError as error:
            raise _refused(error.response) from None
        except BotoCoreError as error:
            raise UpstreamError(502, f"no answer from SageMaker: {' '.join(str(error).split())}") from None


def _parts(events: Any) -> Iterator[bytes]:
    """The bytes of a stream. Raises UpstreamError where it breaks; ends it at SageMaker where nobody reads on."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        for event in events:
            yield event["PayloadPart"]["Bytes"]
    except (ClientError, BotoCoreError, HTTPClientError) as error:
        said = getattr(error, "response", {}).get("Error", {})
        raise UpstreamError(502, f"the stream broke: {said.get('Message') or error}") from None
    finally:
        events.close()


def _refused(response: dict[str, Any]) -> UpstreamError:
    error = response.get("Error", {})
    code, said = str(error.get("Code", "")), str(error.get("Message", ""))
    if code != "ModelError":
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 502)
        return UpstreamError(STATUS.get(code, status if status >= 400 else 502), f"SageMaker: {said or code}")
    status = int(response.get("OriginalStatusCode") or 504)  # 0 where the container did not answer in time
    text = str(response.get("OriginalMessage") or said)
    with suppress(ValueError, KeyError, TypeError, RecursionError):  # not the handler's form: as it is
        text = str(json.loads(text)["error"])
    return UpstreamError(status, " ".join(text.split()))


def application(endpoint: Endpoint, token: str) -> Flask:
    """The WSGI application."""
    from flask import Flask, Response, request
    from werkzeug.exceptions import HTTPException

    app = Flask("harness-proxy", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_INVOCATION_BODY
    began = int(time.time())
    wanted = f"Bearer {token}".encode()

    @app.before_request
    def admit() -> Response | None:
        if request.host.partition(":")[0] not in HOSTS:
            return _error(403, "this proxy answers to 127.0.0.1 and localhost only")
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, wanted):
            return _error(401, "send the token that `harness proxy` printed: Authorization: Bearer TOKEN")
        return None

    @app.get("/v1/models")
    @app.get("/v1/models/<path:name>")
    def models(name: str = "") -> Response:
        model = {"id": endpoint.name, "object": "model", "created": began, "owned_by": "neuron-harness"}
        if name and name != endpoint.name:
            return _error(404, f"no model {name}; this endpoint is {endpoint.name}")
        return _json(200, model if name else {"object": "list", "data": [model]})

    @app.get("/openapi.json")
    def description() -> Response:
        return Response(published(), content_type="application/json")

    @app.post("/")  # TGI's: its clients ask for no form and expect events
    @app.post("/invocations")
    @app.post("/v1/chat/completions")
    @app.post("/v1/completions")
    def invoke() -> Response:
        body = request.get_data(cache=False)
        given = _read(body)
        field = ROUTES.get(request.path, "")
        if field and isinstance(given, dict) and given.get(field) is None:
            return _error(400, f"{field}: missing; {request.path} needs it")
        stream = isinstance(given, dict) and given.get("stream") in (True, "true")
        wanted_forms = EVENT_STREAM if request.path == "/" else request.headers.get("Accept", "")
        accept = ", ".join(kind for kind in (EVENT_STREAM, JSON_LINES) if kind in wanted_forms)
        try:
            reply = endpoint.ask(body, request.headers.get("Content-Type", "application/json"), accept, stream)
        except UpstreamError as error:
            return _error(error.status, str(error)) if field else _plain_error(error.status, str(error))
        parts = _watched(reply.body, bool(field) or EVENT_STREAM in reply.content_type) if stream else reply.body
        return Response(parts, content_type=reply.content_type, headers={"Cache-Control": "no-store"})

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        answer = _error(error.code or 500, str(error.description or error))
        answer.headers.update({k: v for k, v in error.get_headers() if k == "Allow"})
        return answer

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        sys.stderr.write(f"proxy: {type(error).__name__}: {error}\n")
        return _error(500, f"the proxy failed: {type(error).__name__}")

    return app


def published() -> bytes:
    """openapi.json: what the proxy and the endpoint behind it take."""
    return resources.files("harness").joinpath("openapi.json").read_bytes()


def _read(body: bytes) -> Any:
    """The body as JSON, or None: what is wrong with it is for the endpoint to say."""
    from pydantic_core import from_json

    try:
        return from_json(body.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError:
        return None


def _watched(parts: Iterator[bytes], events: bool) -> Iterator[bytes]:
    """A stream; one that breaks ends with an error in its own form, since its status is sent already."""
    try:
        yield from parts
    except UpstreamError as error:
        text = json.dumps(error_body(error.status, str(error))).encode()
        yield b"data: " + text + b"\n\n" if events else text + b"\n"


def error_body(status: int, message: str) -> dict[str, Any]:
    """OpenAI's: `param` is the field that the first problem is about, where the endpoint names one."""
    field, colon, _ = message.partition(": ")
    named = colon and all(c.isalnum() or c in "_.[]" for c in field)
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = field if named and status in (400, 422) else None
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def _error(status: int, message: str) -> Response:
    return _json(status, error_body(status, message))


def _plain_error(status: int, message: str) -> Response:
    return _json(status, {"error": message, "code": status})


def _json(status: int, value: Any) -> Response:
    from flask import Response

    return Response(json.dumps(value), status, content_type="application/json")


@contextmanager
def serving(app: Callable[..., Any], port: int = 0) -> Iterator[int]:
    """The application on loopback while the block runs; its port, a free one for 0. Raises InvalidInput if taken."""
    from cheroot import wsgi

    from harness.errors import InvalidInput

    server = wsgi.Server(("127.0.0.1", port), app, numthreads=THREADS, server_name="harness-proxy", timeout=120)
    server.max_request_body_size = 2 * MAX_INVOCATION_BODY  # beyond it cheroot answers itself, in plain text
    server.error_log = _log  # type: ignore[method-assign]
    try:
        with socket.create_server(("127.0.0.1", port)):  # cheroot's own refusal leaks its socket
            pass
        server.prepare()
    except OSError as error:
        raise InvalidInput(
            f"port {port}: {error.strerror or error}", hint="leave --port out for a free one"
        ) from None
    thread = Thread(target=server.serve, name="proxy", daemon=True)
    thread.start()
    try:
        yield int(server.bind_addr[1])
    finally:
        server.stop()
        thread.join(timeout=10)


def _log(msg: str = "", level: int = 20, traceback: bool = False) -> None:
    """cheroot's own signature; a client that has left is no news."""
    if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
        sys.stderr.write(f"proxy: {msg}\n")
