"""The HTTP front of the local SageMaker, as a WSGI application.

SageMaker's own calls (X-Amz-Target: SageMaker.*) and SageMaker Runtime's paths are answered here; S3, ECR, IAM, STS,
Logs, CloudWatch, Secrets Manager and tagging by moto; EventBridge Scheduler, as far as endpoints need it, by
schedules.py; any other service by a clear refusal. /harness/* is for the command line.
docs/reference/sagemaker-operations.md is made from the table of operations.
"""

from __future__ import annotations

import ctypes
import gc
import hmac
import json
import re
import sys
import traceback
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.sax.saxutils import escape as xml_escape

from containers import contract
from harness.errors import InvalidInput
from harness.executors import docker
from harness.local.api import hosting, jobs, schedules, signature, tags
from harness.local.api.errors import KINDS, ApiError, invalid, not_implemented
from harness.local.api.runtime import Runtime
from harness.local.moto_backends import Wsgi, with_stream_names
from harness.local.service import Service
from harness.local.store.moto_s3 import SharedStore
from harness.local.store.objects import ObjectStore
from harness.spec import service_model

Handler = Callable[[Service, str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Operation:
    """`differs` is what is not as on AWS; empty where nothing is known to be."""

    handler: Handler
    differs: str = ""


OPERATIONS: dict[str, Operation] = {
    "CreateTrainingJob": Operation(
        jobs.create,
        "VPC, encryption and volume size are recorded and have no effect; refused: Pipe mode, ShardedByS3Key, "
        "manifests, AWS's algorithms, warm pools, instance groups, profiler, debugger, experiments, another "
        "checkpoint directory",
    ),
    "DescribeTrainingJob": Operation(
        jobs.JOBS.describe, "a spot job is billed for the time that it ran, without discount"
    ),
    "ListTrainingJobs": Operation(jobs.list_jobs, "refused: by warm pool, by training plan"),
    "StopTrainingJob": Operation(jobs.stop),
    "UpdateTrainingJob": Operation(jobs.update, "only KeepAlivePeriodInSeconds 0, which ends nothing here"),
    "DeleteTrainingJob": Operation(jobs.delete, "at once, without the status Deleting"),
    "CreateModel": Operation(hosting.create_model, "refused: several containers, MultiModel, model packages"),
    "DescribeModel": Operation(hosting.MODELS.describe),
    "ListModels": Operation(hosting.MODELS.list),
    "DeleteModel": Operation(hosting.MODELS.delete),
    "CreateEndpointConfig": Operation(
        hosting.create_config,
        "one container whatever InitialInstanceCount; refused: several variants, serverless, async, data capture, "
        "shadow variants, inference components",
    ),
    "DescribeEndpointConfig": Operation(hosting.CONFIGS.describe),
    "ListEndpointConfigs": Operation(hosting.CONFIGS.list),
    "DeleteEndpointConfig": Operation(hosting.CONFIGS.delete),
    "CreateEndpoint": Operation(hosting.create, "refused: DeploymentConfig"),
    "DescribeEndpoint": Operation(hosting.ENDPOINTS.describe),
    "ListEndpoints": Operation(hosting.ENDPOINTS.list),
    "UpdateEndpoint": Operation(
        hosting.update,
        "all traffic at once when the new container is healthy; refused: DeploymentConfig, retained properties",
    ),
    "DeleteEndpoint": Operation(hosting.delete, "refused while Creating or Updating"),
    "AddTags": Operation(tags.add, "training jobs, models, endpoint configurations and endpoints"),
    "DeleteTags": Operation(tags.delete, "as AddTags"),
    "ListTags": Operation(tags.list_tags, "as AddTags; always one page"),
}


def call(service: Service, region: str, operation: str, request: dict[str, Any]) -> dict[str, Any]:
    """Check `request` against botocore's model, then let the operation answer. Raises ApiError."""
    if operation not in OPERATIONS:
        if operation in service_model.load("sagemaker").operation_names:
            raise not_implemented(operation)
        raise ApiError("UnknownOperationException", f"The requested operation {operation} is not recognized.", 404)
    service.faults.check_call(operation, request, service.account, region)
    try:
        service_model.validate("sagemaker", operation, request)
    except InvalidInput as error:
        texts = [problem.what.removeprefix(f"{operation}: ") for problem in error.problems]
        count = f"{len(texts)} validation error{'s' if len(texts) > 1 else ''} detected"
        raise invalid(f"{count}: {'; '.join(texts)}") from None
    return OPERATIONS[operation].handler(service, region, request)


Environ = dict[str, Any]
StartResponse = Callable[..., Any]

# What moto answers: the service's name in the credential scope -> what it is.
MOTO = {
    "s3": "S3",
    "ecr": "ECR",
    "iam": "IAM",
    "sts": "STS",
    "logs": "CloudWatch Logs",
    "monitoring": "CloudWatch",
    "tagging": "Resource Groups Tagging",
    "secretsmanager": "Secrets Manager",
}
MAX_JSON = 1 << 20  # bytes of a SageMaker request: a hundred hyperparameters of 2,500 characters are a quarter of it
LARGE = 1 << 20  # bytes of a body that is worth a look for what is left of it
MAX_BODY = 512 << 20  # bytes of any request; boto3 and the CLI send objects in parts of 8 MB
HOSTS = ("127.0.0.1", "localhost")
XML = ("s3", "iam", "sts", "monitoring")  # services whose answers are XML: REST XML, and the query protocol
SERVICE = "harness.service"  # in the request's environment
RUNTIME = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations|.*stream)")
SCOPE = re.compile(r"Credential=[^/,]*/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
FILTER_LOG_EVENTS = "Logs_20140328.FilterLogEvents"
GET_RESOURCES = "ResourceGroupsTaggingAPI_20170126.GetResources"


@dataclass(frozen=True)
class Access:
    """Who is answered: the key pair, and keys that STS has given out (`assumed`: their secret, by id)."""

    access_key_id: str
    secret_access_key: str
    assumed: Callable[[str], str | None] = lambda _: None

    def secret_of(self, access_key_id: str) -> str | None:
        """The secret of an access key; None for an unknown one."""
        return self.secret_access_key if access_key_id == self.access_key_id else self.assumed(access_key_id)


class Front:
    """Routes a request, and turns every failure into an answer in the service's own form."""

    def __init__(self, service: Service, store: ObjectStore, moto: Wsgi, access: Access) -> None:
        self.service, self.store, self.moto, self.access = service, store, moto, access
        self.runtime = Runtime(service)
        self._large = False  # whether the last request to S3 had a large body
        self.misshapen: list[str] = []  # answers of ours that do not fit botocore's model: bugs, shown by /harness

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """WSGI."""
        self._name_service(environ)
        try:
            self._guard(environ)
            return self._route(environ, start)
        except ApiError as error:
            return _error(start, error, environ)
        except NotImplementedError as error:
            what = f"{str(error) or 'this operation'} ({MOTO.get(environ[SERVICE], 'this service')})"
            return _error(start, ApiError("NotImplemented", f"{what} is not implemented by moto", 501), environ)
        except Exception:  # noqa: BLE001 (the server goes on; the client gets an answer and the log the reason)
            traceback.print_exc()
            text = "The request processing has failed; see server.log"
            return _error(start, ApiError("InternalFailure", text, 500), environ)

    def _name_service(self, environ: Environ) -> None:
        """Which service is asked, also where the signature turns out wrong: its protocol is the answer's."""
        scope = SCOPE.search(environ.get("HTTP_AUTHORIZATION", "") or urllib.parse.unquote(environ["QUERY_STRING"]))
        json_protocol = environ.get("HTTP_X_AMZ_TARGET") or environ.get("PATH_INFO", "").startswith("/harness/")
        environ[SERVICE] = scope[2] if scope else ("sagemaker" if json_protocol else "s3")

    def _guard(self, environ: Environ) -> None:
        """Only for this machine's own programs: not for a web page, nor for a name that a page has bound to us."""
        host = environ.get("HTTP_HOST", "").rpartition(":")[0] or environ.get("HTTP_HOST", "")
        if host not in HOSTS and not host.endswith(".localhost"):
            raise ApiError("AccessDeniedException", f"requests to host {host!r} are not answered here", 403)
        if environ.get("HTTP_ORIGIN") or environ.get("HTTP_SEC_FETCH_SITE") not in (None, "none"):
            raise ApiError("AccessDeniedException", "requests from web pages are not answered here", 403)
        try:
            length = int(environ.get("CONTENT_LENGTH") or 0)
        except ValueError:
            raise ApiError("ValidationException", "Content-Length is not a number") from None
        if length > MAX_BODY:
            raise ApiError("EntityTooLarge", f"{length} bytes; {MAX_BODY} are taken at once", 413)

    def _route(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.startswith("/moto-api"):  # would let any program on this machine delete everything
            raise ApiError("ResourceNotFound", "there is no moto-api here", 404)
        if path.startswith("/harness/"):
            return self._control(environ, start, path.removeprefix("/harness/"))
        if signature.is_version_2(environ):
            signature.check_version_2(environ, self.access.secret_of)
            return self._s3(environ, start, path, self.store)
        signed = signature.read(environ)
        if signed.service == "s3":  # its bodies are large; what the signature says of them is enough
            signature.check(signed, environ, None, self.access.secret_of)
            return self._s3(environ, start, path, self.store)
        body = _body(environ, contract.MAX_INVOCATION_BODY if RUNTIME.fullmatch(path) else MAX_JSON)
        signature.check(signed, environ, body, self.access.secret_of)
        return self._service(environ, body, start, signed.region, signed.service)

    def _service(
        self, environ: Environ, body: bytes, start: StartResponse, region: str, service: str
    ) -> Iterable[bytes]:
        """A request to another service than S3, whose body is read and whose signature is right."""
        path, target = environ.get("PATH_INFO", ""), environ.get("HTTP_X_AMZ_TARGET", "")
        if target.startswith("SageMaker."):
            return self._sagemaker(body, start, target.removeprefix("SageMaker."), region)
        if service == "sagemaker" and (match := RUNTIME.fullmatch(path)):
            return self._invoke(environ, body, start, region, urllib.parse.unquote(match[1]), match[2])
        if service == "scheduler":
            return self._scheduler(environ, body, start, region)
        if service not in MOTO:
            raise ApiError("NotImplemented", f"service {service} is not part of the local SageMaker", 501)
        # SDK 3 asks it of each role, and takes a no.
        if service == "iam" and b"Action=SimulatePrincipalPolicy" in body:
            raise ApiError("AccessDenied", "policies are not simulated by the local SageMaker", 403)
        if target == FILTER_LOG_EVENTS:
            body = json.dumps(with_stream_names(self.service.account, region, _json(body))).encode()
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(body), str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        if target == GET_RESOURCES:
            return self._get_resources(environ, body, start, region)
        return self.moto(environ, start)

    # -- SageMaker

    def _sagemaker(self, body: bytes, start: StartResponse, operation: str, region: str) -> Iterable[bytes]:
        request = _json(body)
        response = call(self.service, region, operation, request)
        if problems := service_model.output_problems("sagemaker", operation, response):
            self.misshapen.append(f"{operation}: {problems[0]}")
            sys.stderr.write(f"answer of {operation} does not fit botocore's model: {'; '.join(problems)}\n")
        return _answer(start, 200, json.dumps(response).encode() if response else b"", "application/x-amz-json-1.1")

    def _scheduler(self, environ: Environ, body: bytes, start: StartResponse, region: str) -> Iterable[bytes]:
        path, query = _decoded(environ.get("PATH_INFO", "")), environ.get("QUERY_STRING", "")
        asked = dict(urllib.parse.parse_qsl(query))
        answer = schedules.call(self.service, region, environ["REQUEST_METHOD"], path, asked, _json(body))
        return _answer(start, 200, json.dumps(answer).encode(), "application/json")

    def _invoke(
        self, environ: Environ, body: bytes, start: StartResponse, region: str, name: str, kind: str
    ) -> Iterable[bytes]:
        if kind not in ("invocations", "invocations-response-stream"):
            raise ApiError("NotImplemented", f"{kind} is not implemented by the local SageMaker", 501)
        if environ["REQUEST_METHOD"] != "POST":
            raise ApiError("MethodNotAllowed", "invocations are POST", 405)
        asked = "InvokeEndpoint" if kind == "invocations" else "InvokeEndpointWithResponseStream"
        self.service.faults.check_call(asked, {"EndpointName": name}, self.service.account, region)
        headers = _Headers(environ)
        answer = self.runtime.invoke(region, name, headers, body, stream=kind != "invocations")
        out = list(answer.headers.items())
        if isinstance(answer.body, bytes):
            out.append(("Content-Length", str(len(answer.body))))
            start("200 OK", out)
            return [answer.body]
        start("200 OK", out)
        return answer.body

    # -- moto

    def _s3(self, environ: Environ, start: StartResponse, path: str, store: ObjectStore) -> Iterable[bytes]:
        if not isinstance(store, SharedStore):
            text = "the objects of this local SageMaker are in AWS's S3; ask there, without an endpoint URL for s3"
            raise ApiError("NotImplemented", text, 501)
        self.service.faults.check_object(environ["REQUEST_METHOD"], environ.get("QUERY_STRING", ""), _decoded(path))
        large, self._large = self._large, int(environ.get("CONTENT_LENGTH") or 0) > LARGE
        if large:
            _let_go_of_bodies()
        answer = self.moto(environ, start)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            bucket, _, key = _decoded(path).lstrip("/").partition("/")
            store.after_request(bucket, key)
        return answer

    def _get_resources(self, environ: Environ, body: bytes, start: StartResponse, region: str) -> Iterable[bytes]:
        """moto's answer, and on its first page our resources."""
        status, answer = self._ask_moto(environ, body)
        request = _json(body)
        if status == 200 and not request.get("PaginationToken"):
            ours = tags.resources(self.service, region, request)
            answer["ResourceTagMappingList"] = ours + answer["ResourceTagMappingList"]
        return _answer(start, status, json.dumps(answer).encode(), "application/x-amz-json-1.1")

    def _ask_moto(self, environ: Environ, body: bytes) -> tuple[int, dict[str, Any]]:
        said: list[str] = []
        answer = self.moto({**environ, "wsgi.input": BytesIO(body)}, lambda status, *_: said.append(status))
        try:
            return_value = b"".join(answer)
        finally:
            getattr(answer, "close", lambda: None)()
        return int(said[0].split()[0]), json.loads(return_value or b"{}")

    # -- the command line

    def _control(self, environ: Environ, start: StartResponse, what: str) -> Iterable[bytes]:
        given, wanted = environ.get("HTTP_AUTHORIZATION", ""), f"Bearer {self.access.secret_access_key}"
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise ApiError("AccessDeniedException", "the key of the state directory is needed", 403)
        method = environ["REQUEST_METHOD"]
        value: Any
        if what == "health" and method == "GET":
            containers = docker.pids()  # of the engine, so none of our descendants
            value = {"status": "healthy", "busy": self.service.busy(), "misshapen": self.misshapen}
            value["containers"] = list(containers)
        elif what == "faults" and method == "GET":
            value = {"faults": self.service.faults.list(), "kinds": KINDS}
        elif what == "faults" and method == "POST":
            self.service.faults.add(_json(_body(environ, MAX_JSON)))
            value = {"faults": self.service.faults.list()}
        elif what == "faults" and method == "DELETE":
            self.service.faults.clear()
            value = {"faults": []}
        else:
            raise ApiError("ResourceNotFound", f"{method} /harness/{what}", 404)
        return _answer(start, 200, json.dumps(value).encode(), "application/json")


def _let_go_of_bodies() -> None:
    """Give the memory of earlier requests back: moto's hold themselves in cycles, with bodies of up to 64 MB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what many threads have freed


class _Headers(dict[str, str]):
    """The request's headers by name, read from WSGI's environment when asked for."""

    def __init__(self, environ: Environ) -> None:
        super().__init__()
        self.environ = environ

    def get(self, name: str, default: Any = None) -> Any:
        key = name.upper().replace("-", "_")
        return self.environ.get(key if key == "CONTENT_TYPE" else f"HTTP_{key}", default)

    def __getitem__(self, name: str) -> str:
        return str(self.get(name))


def _decoded(path: str) -> str:
    """WSGI gives the path as Latin-1."""
    return path.encode("latin-1").decode("utf-8", errors="replace")


def _body(environ: Environ, limit: int) -> bytes:
    """The whole body, with a length or in chunks; what is too long is not read."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    chunked = bool(environ.get("HTTP_TRANSFER_ENCODING"))
    data: bytes = environ["wsgi.input"].read(limit + 1 if chunked else length) if length <= limit else b""
    if max(length, len(data)) > limit:
        raise ApiError("413", f"HTTP content length exceeded {limit} bytes.", 413)
    return data


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise ApiError("SerializationException", "the body is not JSON") from None
    if not isinstance(value, dict):
        raise ApiError("SerializationException", "the body is not a JSON object")
    return value


def _answer(start: StartResponse, status: int, body: bytes, content_type: str) -> Iterable[bytes]:
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    start(f"{status} {'OK' if status < 300 else 'Error'}", headers)
    return [body]


def _error(start: StartResponse, error: ApiError, environ: Environ) -> Iterable[bytes]:
    """In the protocol of the service that was asked, so that a client shows the code and not a parser's error.

    JSON 1.1 has the code in the body, REST JSON in a header; both readers take both.
    """
    service = environ[SERVICE]
    if service in XML:
        code, text = xml_escape(error.code), xml_escape(error.message)
        inner = f"<Code>{code}</Code><Message>{text}</Message>"
        wrapped = f"<ErrorResponse><Error><Type>Sender</Type>{inner}</Error></ErrorResponse>"
        body = (f"<Error>{inner}</Error>" if service == "s3" else wrapped).encode()
        kind = "text/xml"
    else:
        members = {"__type": error.code, "message": error.message, "Message": error.message, **error.members}
        body = json.dumps(members).encode()
        rest = RUNTIME.fullmatch(environ.get("PATH_INFO", ""))
        kind = "application/json" if rest else "application/x-amz-json-1.1"
    if environ.get("REQUEST_METHOD") == "HEAD":
        body = b""
    start(
        f"{error.status} Error",
        [("Content-Type", kind), ("Content-Length", str(len(body))), ("x-amzn-ErrorType", error.code)],
    )
    return [body]
