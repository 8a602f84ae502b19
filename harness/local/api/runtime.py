"""SageMaker Runtime: InvokeEndpoint and InvokeEndpointWithResponseStream against the container of an endpoint.

A response stream is application/vnd.amazon.eventstream. A frame is: total length, length of the headers, CRC-32 of
both; headers; payload; CRC-32 of all before it. Numbers are big-endian. Source: Smithy's specification "Amazon Event
Stream" and botocore.eventstream, which reads it.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import urllib3

from containers import contract
from harness.local.api.errors import ApiError, not_implemented
from harness.local.endpoints.container import Deployed
from harness.local.moto_backends import ENDPOINT_NAMESPACE
from harness.local.service import Service

EVENT_STREAM = "application/vnd.amazon.eventstream"
STRING = 7  # type of a header's value
MAX_PART = 1 << 20  # bytes of payload in one frame; the format allows 16 MB


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message."""
    encoded = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack("!II", 16 + len(encoded) + len(payload), len(encoded))
    head = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return head + struct.pack("!I", zlib.crc32(head))


def _header(name: str, value: str) -> bytes:
    key, text = name.encode(), value.encode()
    return struct.pack("!B", len(key)) + key + struct.pack("!BH", STRING, len(text)) + text


def part_frame(payload: bytes) -> bytes:
    """A PayloadPart."""
    headers = {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}
    return frame(headers, payload)


def exception_frame(kind: str, message: str, **members: str) -> bytes:
    """ModelStreamError or InternalStreamFailure: the end of a stream that broke."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps({"Message": message, **members}).encode())


# Every other header of a request stays outside; what the client asks for in them goes in under SageMaker's names.
PASSED_IN = (
    "Content-Type",
    "Accept",
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-Inference-Id",
    "X-Amzn-SageMaker-Session-Id",
)
PASSED_BACK = (
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-New-Session-Id",
    "X-Amzn-SageMaker-Closed-Session-Id",
)
MAX_CUSTOM_ATTRIBUTES = 1024  # characters: InvokeEndpoint's CustomAttributes
REFUSED = {
    "X-Amzn-SageMaker-Target-Model": "TargetModel",
    "X-Amzn-SageMaker-Target-Container-Hostname": "TargetContainerHostname",
    "X-Amzn-SageMaker-Inference-Component": "InferenceComponentName",
    "X-Amzn-SageMaker-Enable-Explanations": "EnableExplanations",
}
TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for "
    "each container in Amazon CloudWatch, resolve the issue, and try again."
)


@dataclass(frozen=True)
class Answer:
    """What goes back: a body, or the frames of a stream."""

    headers: dict[str, str]
    body: bytes | Iterator[bytes]


class Runtime:
    """Invocations of one service's endpoints."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def invoke(self, region: str, name: str, headers: Mapping[str, str], body: bytes, stream: bool) -> Answer:
        """Raises ApiError as the service answers: ValidationError, ModelError, ServiceUnavailable."""
        deployed = self._deployed(region, name)
        variant = deployed.made_of["variant"]["VariantName"]
        for header, member in REFUSED.items():
            if headers.get(header):
                raise not_implemented(f"InvokeEndpoint with {member}")
        target = headers.get("X-Amzn-SageMaker-Target-Variant")
        if target and target != variant:
            raise ApiError("ValidationError", f"Variant {target} not found for endpoint {name}.")
        if len(headers.get("X-Amzn-SageMaker-Custom-Attributes") or "") > MAX_CUSTOM_ATTRIBUTES:
            raise ApiError("ValidationError", f"CustomAttributes may have {MAX_CUSTOM_ATTRIBUTES} characters.")
        if len(body) > contract.MAX_INVOCATION_BODY:
            raise ApiError("413", f"HTTP content length exceeded {contract.MAX_INVOCATION_BODY} bytes.", 413)
        began = time.monotonic()
        try:
            answer = self._post(region, name, deployed, headers, body, stream)
        except ApiError as error:
            self._measure(region, name, variant, began, int(error.members.get("OriginalStatusCode", 500)))
            raise
        self._measure(region, name, variant, began, 200)
        out = {"x-Amzn-Invoked-Production-Variant": variant}
        for header in PASSED_BACK:
            if value := answer.headers.get(header):
                out[header] = value
        content_type = answer.headers.get("Content-Type", "application/octet-stream")
        if not stream:
            return Answer({**out, "Content-Type": content_type}, answer.data)
        out |= {"X-Amzn-SageMaker-Content-Type": content_type, "Content-Type": EVENT_STREAM}
        return Answer(out, self._parts(name, answer))

    def _deployed(self, region: str, name: str) -> Deployed:
        document = self.service.endpoints.get(region, name)
        if document is None:
            raise ApiError("ValidationError", f"Endpoint {name} of account {self.service.account} not found.")
        worker = self.service.worker("endpoint", region, name)
        if worker is None or document["describe"]["EndpointStatus"] in ("Creating", "Failed", "Deleting"):
            raise ApiError("ValidationError", f"Endpoint {name} of account {self.service.account} not found.")
        if worker.current is None:
            raise ApiError("ServiceUnavailable", "Service Unavailable", 503)
        found: Deployed = worker.current
        return found

    def _post(
        self, region: str, name: str, deployed: Deployed, headers: Mapping[str, str], body: bytes, stream: bool
    ) -> urllib3.BaseHTTPResponse:
        if self.service.faults.take("model-timeout", name):
            raise self._model_error(region, name, deployed, 0, TIMED_OUT)
        passed = {header: headers[header] for header in PASSED_IN if headers.get(header)}
        # InvokeEndpointWithResponseStream has a header of its own for the same member; the container sees Accept.
        if stream and headers.get("X-Amzn-SageMaker-Accept"):
            passed["Accept"] = headers["X-Amzn-SageMaker-Accept"]
        try:
            answer = deployed.pool.request(
                "POST",
                "/invocations",
                body=body,
                headers=passed,
                timeout=urllib3.Timeout(connect=contract.PING_TIMEOUT, read=contract.INVOCATION_TIMEOUT),
                retries=False,
                redirect=False,
                preload_content=not stream,
            )
        except urllib3.exceptions.TimeoutError:
            raise self._model_error(region, name, deployed, 0, TIMED_OUT) from None
        except urllib3.exceptions.HTTPError:
            text = "Connection to the container was closed before it answered."
            raise self._model_error(region, name, deployed, 503, text) from None
        if answer.status >= 300:
            text = answer.data.decode(errors="replace")
            answer.release_conn()
            raise self._model_error(region, name, deployed, answer.status, text)
        return answer

    def _model_error(self, region: str, name: str, deployed: Deployed, status: int, text: str) -> ApiError:
        side = "client" if 400 <= status < 500 else "server"
        group = f"/aws/sagemaker/Endpoints/{name}"
        console = (
            f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}#logEventViewer:group={group}"
        )
        return ApiError(
            "ModelError",
            f'Received {side} error ({status}) from primary with message "{text}". See {console} in account '
            f"{self.service.account} for more information.",
            424,
            OriginalStatusCode=status,
            OriginalMessage=text,
            LogStreamArn=f"arn:aws:logs:{region}:{self.service.account}:log-group:{group}",
        )

    def _parts(self, name: str, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Frames as the container sends; a stream that breaks ends with an exception frame."""
        deadline = time.monotonic() + contract.STREAM_TIMEOUT
        torn = self.service.faults.take("torn-stream", name)
        count = 0
        whole = False
        try:
            for chunk in answer.stream(amt=MAX_PART):
                if torn and count >= torn.after:
                    yield _broken()
                    return
                if time.monotonic() > deadline:
                    yield exception_frame("ModelStreamError", TIMED_OUT, ErrorCode="ModelInvocationTimeExceeded")
                    return
                if chunk:
                    count += 1
                    yield part_frame(chunk)
            if torn:
                yield _broken()
            whole = not torn
        except urllib3.exceptions.HTTPError:
            yield _broken()
        finally:
            if whole:
                answer.release_conn()
            else:
                answer.close()  # the container sees that nobody listens any more

    def _measure(self, region: str, name: str, variant: str, began: float, status: int) -> None:
        dimensions = [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": variant}]
        values = {
            "Invocations": 1.0,
            "ModelLatency": (time.monotonic() - began) * 1e6,  # microseconds
            "Invocation4XXErrors": float(400 <= status < 500),
            "Invocation5XXErrors": float(status >= 500 or status == 0),
        }
        rows = [{"MetricName": k, "Value": v, "Dimensions": dimensions} for k, v in values.items()]
        self.service.telemetry.metrics(region, ENDPOINT_NAMESPACE, rows)


def _broken() -> bytes:
    text = "The model container closed the connection before the stream ended."
    return exception_frame("ModelStreamError", text, ErrorCode="StreamBroken")
