"""What the local SageMaker answers instead of a result: AWS's error code, message and HTTP status.

Also faults on demand: what goes wrong next, and for whom. Set by `harness local fault`, or POST /harness/faults. Each
is shown as AWS shows it: an API error, a FailureReason, a status, a broken stream.
"""

from __future__ import annotations

import fnmatch
import threading
from dataclasses import asdict, dataclass
from typing import Any


class ApiError(Exception):
    """`code` is what boto3 shows as Error.Code; `members` are further fields of the error shape."""

    def __init__(self, code: str, message: str, status: int = 400, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.members = code, message, status, members


def invalid(message: str) -> ApiError:
    """The service's rules are broken. AWS also says so where a resource does not exist."""
    return ApiError("ValidationException", message)


def not_implemented(what: str) -> ApiError:
    """Never a silent success: what is not emulated is refused by name. botocore does not retry a 501."""
    page = "docs/reference/sagemaker-operations.md"
    return ApiError("NotImplemented", f"{what} is not implemented by the local SageMaker; see {page}", 501)


# Values of members that are there and ask for nothing: SDKs send them with every request.
ASKS_FOR_NOTHING = (("DisableProfiler", True), ("TrainingRepositoryAccessMode", "Platform"))


def only(where: str, value: dict[str, Any], known: set[str]) -> None:
    """Raises for every member that is not emulated and asks for something: it would silently have no effect."""
    unknown = sorted(name for name in set(value) - known if not _asks_for_nothing(name, value[name]))
    if unknown:
        raise not_implemented(f"{where} with {', '.join(unknown)}")


def _asks_for_nothing(name: str, value: Any) -> bool:
    """False, empty, or made of nothing else: ProfilerConfig {"DisableProfiler": true} as much as [].

    Debugger's configuration says where, and asks for nothing as long as it has no collection: SageMaker writes it to
    a file that is for smdebug, which the images do not have.
    """
    if isinstance(value, dict):
        if name == "DebugHookConfig":
            value = {k: v for k, v in value.items() if k not in ("S3OutputPath", "LocalPath")}
        return all(_asks_for_nothing(k, v) for k, v in value.items())
    return not value or (name, value) in ASKS_FOR_NOTHING


KINDS = {
    "throttling": "the call is answered ThrottlingException",
    "expired-token": "the call is answered ExpiredTokenException",
    "access-denied": "the call is answered AccessDeniedException",
    "quota": "CreateTrainingJob or CreateEndpoint is answered ResourceLimitExceeded",
    "capacity": "the job or endpoint fails: no instance of that type can be had",
    "out-of-memory": "the job's largest process is killed, after step N if one is given",
    "spot": "the job's instance is taken away after step N: TERM, Interrupted, and a new start if it is a spot job",
    "late-hosts": "the hosts of the job after its first one start, and can be reached by name, N seconds later",
    "disk-full": "the job's output cannot be stored",
    "failing-ping": "no health check of the endpoint succeeds; its window ends after N seconds if N is given",
    "slow-ping": "health checks of the endpoint fail for N seconds",
    "torn-stream": "a response stream breaks after N parts",
    "model-timeout": "an invocation is answered as if the container had not answered in time",
}
# Those that answer a call instead of letting it through; `operation` says which.
CALLS = ("throttling", "expired-token", "access-denied", "quota")
# The same of S3: its own codes, https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
S3_CALLS = {
    "throttling": ("SlowDown", 503),
    "expired-token": ("ExpiredToken", 400),
    "access-denied": ("AccessDenied", 403),
}


@dataclass
class Fault:
    """`name` is a pattern for the resource's name, `after` the step, second or part that `kind` counts."""

    kind: str
    operation: str = "*"
    name: str = "*"
    after: int = 0
    times: int = 1


class Faults:
    """The list of faults to come; each is used up after `times`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._list: list[Fault] = []

    def add(self, raw: Any) -> Fault:
        """Raises ApiError for what is not a fault."""
        known = set(Fault.__dataclass_fields__)
        if not isinstance(raw, dict) or set(raw) - known or raw.get("kind") not in KINDS:
            raise invalid(
                f"a fault is an object with kind, one of {', '.join(KINDS)}; and {', '.join(sorted(known))}"
            )
        fault = Fault(**raw)
        numbers = (fault.after, fault.times)
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or not isinstance(fault.name, str):
            raise invalid("after and times are numbers, name and operation are patterns")
        with self._lock:
            self._list.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._list.clear()

    def list(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._list]

    def take(self, kind: str, name: str, operation: str = "") -> Fault | None:
        """The fault of that kind that is due for `name`, used once; None where there is none."""
        with self._lock:
            for fault in self._list:
                if fault.kind != kind or not fnmatch.fnmatchcase(name, fault.name):
                    continue
                if operation and not fnmatch.fnmatchcase(operation, fault.operation):
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._list.remove(fault)
                return fault
        return None

    def check_call(self, operation: str, request: dict[str, Any], account: str, region: str) -> None:
        """Raises what a call is to be answered with."""
        if not self._list:
            return
        name = next((str(v) for k, v in request.items() if k.endswith("Name") and isinstance(v, str)), "")
        for kind in CALLS:
            if kind == "quota" and operation not in ("CreateTrainingJob", "CreateEndpoint"):
                continue
            if self.take(kind, name, operation):
                raise _answer(kind, operation, request, f"arn:aws:sagemaker:{region}:{account}:*/{name.lower()}")

    def check_object(self, method: str, query: str, path: str) -> None:
        """`check_call` for S3, whose operations are a method and a query; the name is bucket/key."""
        if not self._list:
            return
        key = path.strip("/").partition("/")[2]
        for kind, (code, status) in S3_CALLS.items():
            if self.take(kind, path.strip("/"), s3_operation(method, query, key)):
                raise ApiError(code, KINDS[kind], status)


def s3_operation(method: str, query: str, key: str) -> str:
    """The operation of a request to S3, as far as faults tell them apart."""
    if method == "POST":
        whole = "CompleteMultipartUpload" if "uploadId=" in query else "CreateMultipartUpload"
        return whole if key else "DeleteObjects"
    if method == "PUT" and "partNumber=" in query:
        return "UploadPart"
    if not key:
        return {"GET": "ListObjectsV2", "HEAD": "HeadBucket", "PUT": "CreateBucket"}.get(method, "DeleteBucket")
    return f"{method.capitalize()}Object"


def _answer(kind: str, operation: str, request: dict[str, Any], resource: str) -> ApiError:
    if kind == "throttling":
        return ApiError("ThrottlingException", "Rate exceeded")
    if kind == "expired-token":
        return ApiError("ExpiredTokenException", "The security token included in the request is expired")
    if kind == "access-denied":
        who = f"arn:aws:sts::{resource.split(':')[4]}:assumed-role/local/local"
        return ApiError(
            "AccessDeniedException",
            f"User: {who} is not authorized to perform: sagemaker:{operation} on resource: {resource} because no "
            f"identity-based policy allows the sagemaker:{operation} action",
        )
    use, kind_of = "training job usage", request.get("ResourceConfig", {}).get("InstanceType", "")
    if operation == "CreateEndpoint":
        use, kind_of = "endpoint usage", "ml.inf2.xlarge"
    return ApiError(
        "ResourceLimitExceeded",
        f"The account-level service limit '{kind_of} for {use}' is 0 Instances, with current utilization of 0 "
        "Instances and a request delta of 1 Instances. Please use AWS Service Quotas to request an increase for this "
        "quota. If AWS Service Quotas is not available, contact AWS support to request an increase for this quota.",
    )
