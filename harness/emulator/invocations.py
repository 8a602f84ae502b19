"""InvokeEndpoint and InvokeEndpointWithResponseStream against a local endpoint, with the service's limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import urllib3

from containers import contract
from harness.emulator.hosting import Endpoint
from harness.errors import EndpointFailed

_pool = urllib3.PoolManager(maxsize=8)


def invoke(endpoint: Endpoint, body: dict[str, Any]) -> bytes:
    """POST /invocations with a JSON body; the answer's bytes.

    Raises EndpointFailed for a body over the service's limit, a time-out, or a status other than 200, with what
    the container said (SageMaker's ModelError).
    """
    answer = _post(endpoint, body, preload=True)
    data: bytes = answer.data
    return data


def invoke_stream(endpoint: Endpoint, body: dict[str, Any]) -> Iterator[bytes]:
    """The answer's chunks as they arrive."""
    answer = _post(endpoint, body, preload=False)
    try:
        yield from answer.stream(amt=65536)
    except urllib3.exceptions.HTTPError as error:
        raise EndpointFailed(f"endpoint {endpoint.name}: the stream broke", str(error)) from None
    finally:
        answer.release_conn()


def _post(endpoint: Endpoint, body: dict[str, Any], preload: bool) -> urllib3.BaseHTTPResponse:
    raw = json.dumps(body).encode()
    if len(raw) > contract.MAX_INVOCATION_BODY:
        raise EndpointFailed(f"the request has {len(raw)} bytes; {contract.MAX_INVOCATION_BODY} fit")
    try:
        answer = _pool.request(
            "POST",
            f"http://127.0.0.1:{endpoint.port}/invocations",
            body=raw,
            headers={"Content-Type": "application/json"},
            timeout=contract.INVOCATION_TIMEOUT,
            retries=False,
            preload_content=preload,
        )
    except urllib3.exceptions.TimeoutError:
        why = f"the container took more than {contract.INVOCATION_TIMEOUT} s"
        raise EndpointFailed(f"endpoint {endpoint.name}: the invocation timed out", why) from None
    except urllib3.exceptions.HTTPError as error:
        hint = "is it still running? harness ps"
        raise EndpointFailed(f"endpoint {endpoint.name} cannot be reached", str(error), hint) from None
    if answer.status != 200:
        text = answer.data.decode(errors="replace")
        raise EndpointFailed(f"endpoint {endpoint.name} answered {answer.status}", _message(text))
    return answer


def _message(text: str) -> str:
    """The `error` of a JSON answer, or the text itself."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:400]
