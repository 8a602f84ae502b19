"""A registry with ECR's manners: Debian's docker-registry behind a proxy of ours, and the few API calls of a push.

What ECR does and docker-registry does not (its documentation and errors): a repository must exist before a push,
a tag of an immutable repository never moves, a token ends after twelve hours. An image index is refused, too: ECR
takes it, but SageMaker does not. The proxy reads a request's head, and a manifest's body; everything else is passed
through as bytes, and counted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ACCOUNT = "123456789012"
TLS = 0x16  # the first byte of a handshake
INDEXES = ("application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json")
CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ecr:
    """Start with `with Ecr(folder) as ecr`; `ecr.host` is the registry, `ecr.api` the API's address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, dict[str, Any]] = {}
        self.lifecycle: dict[str, str] = {}
        self.tokens: dict[str, float] = {}
        self.token_seconds = 12 * 3600.0
        self.sent = 0  # bytes from clients to the registry, heads not counted
        self.regions: dict[str, Ecr] = {}  # whose calls another one answers
        self.refuses_manifests = False  # as where a push breaks off when its layers have arrived
        self.lies = False  # the API tells of another image than the one that was pushed

    def __enter__(self) -> Ecr:
        assert shutil.which("docker-registry"), "docker-registry is not on PATH; Debian: apt install docker-registry"
        self.upstream = free_port()
        config = self.folder / "registry.yml"
        config.write_text(CONFIG.format(root=self.folder / "blobs", port=self.upstream))
        self._registry = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._proxy = _Server(("127.0.0.1", 0), _Proxy)
        self._api = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
        for server in (self._proxy, self._api):
            server.ecr = self  # type: ignore[attr-defined]
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.host = f"127.0.0.1:{self._proxy.server_address[1]}"
        self.api = f"http://127.0.0.1:{self._api.server_address[1]}"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.upstream), timeout=1).close()
                return self
            time.sleep(0.05)
        raise AssertionError("docker-registry does not answer")

    def __exit__(self, *_: object) -> None:
        for server in (self._proxy, self._api):
            server.shutdown()
            server.server_close()
        self._registry.terminate()
        self._registry.wait(10)
        shutil.rmtree(self.folder / "blobs", ignore_errors=True)  # pytest keeps the directories of three sessions

    def token(self) -> str:
        """A fresh password for user AWS."""
        made = secrets.token_hex(16)
        self.tokens[made] = time.time() + self.token_seconds
        return made

    def manifest(self, repository: str, reference: str) -> tuple[str, bytes]:
        """(digest, bytes) of a manifest; raises OSError where it is not there."""
        url = f"http://127.0.0.1:{self.upstream}/v2/{repository}/manifests/{reference}"
        accept = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=20) as answer:
            return answer.headers["Docker-Content-Digest"], answer.read()

    def refusal(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, str] | None:
        """(status, code, message) of what ECR would refuse, else None."""
        user, _, password = (
            base64.b64decode(headers.get("authorization", "").partition(" ")[2]).decode().partition(":")
        )
        if user != "AWS" or password not in self.tokens:
            return 401, "UNAUTHORIZED", "Not Authorized"
        if self.tokens[password] < time.time():
            return 403, "DENIED", "Your authorization token has expired. Reauthenticate and try again."
        words = path.partition("?")[0].strip("/").split("/")
        if len(words) < 3:
            return None
        kinds = [i for i, word in enumerate(words) if word in ("manifests", "blobs", "tags")]
        name = "/".join(words[1 : kinds[-1]]) if kinds else ""
        if name not in self.repositories:
            message = f"The repository with name '{name}' does not exist in the registry with id '{ACCOUNT}'"
            return 404, "NAME_UNKNOWN", message
        if method == "PUT" and words[kinds[-1]] == "manifests":
            if self.refuses_manifests:
                return 403, "DENIED", "the connection to the registry was lost"
            return self._manifest_refusal(name, words[-1], headers, body)
        return None

    def _manifest_refusal(
        self, name: str, reference: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, str, str] | None:
        if headers.get("content-type") in INDEXES or json.loads(body).get("mediaType") in INDEXES:
            return 400, "MANIFEST_INVALID", "an image index: SageMaker runs single images only"
        if reference.startswith("sha256:") or self.repositories[name]["imageTagMutability"] != "IMMUTABLE":
            return None
        with suppress(OSError):
            digest, _ = self.manifest(name, reference)
            if digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
                message = f"The image tag '{reference}' already exists in the '{name}' repository and cannot be "
                return 400, "TAG_INVALID", message + "overwritten because the repository is immutable."
        return None


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


class _Proxy(socketserver.BaseRequestHandler):
    """One request a connection."""

    def handle(self) -> None:
        ecr: Ecr = self.server.ecr  # type: ignore[attr-defined]
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.request.recv(65536)
            if not piece:
                return
            data += piece
            if data[0] == TLS:  # docker tries https first, and waits ten seconds for an answer that is none
                return
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        if method == "PUT" and "/manifests/" in path:
            while len(body) < int(headers["content-length"]):
                body += self.request.recv(65536)
        refused = ecr.refusal(method, path, headers, body)
        if refused:
            self._refuse(*refused)
            return
        kept = [line for line in lines if line.partition(":")[0].lower() not in ("authorization", "connection")]
        with socket.create_connection(("127.0.0.1", ecr.upstream)) as upstream:
            upstream.sendall("\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1") + body)
            ecr.sent += len(body)
            threading.Thread(target=self._send, args=(ecr, upstream), daemon=True).start()
            with suppress(OSError):
                while piece := upstream.recv(1 << 16):
                    self.request.sendall(piece)

    def _send(self, ecr: Ecr, upstream: socket.socket) -> None:
        with suppress(OSError):
            while piece := self.request.recv(1 << 16):
                ecr.sent += len(piece)
                upstream.sendall(piece)

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        more = 'WWW-Authenticate: Basic realm="ecr",service="ecr.amazonaws.com"\r\n' if status == 401 else ""
        head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.request.sendall(f"{head}{more}Connection: close\r\n\r\n".encode() + body)
        # What the client still sends is read, so that the answer is not lost to a reset.
        self.request.settimeout(0.5)
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
            while self.request.recv(1 << 16):
                pass


class _Api(BaseHTTPRequestHandler):
    """AmazonEC2ContainerRegistry_V20150921, as far as harness/images/registry.py uses it."""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        home: Ecr = self.server.ecr  # type: ignore[attr-defined]
        # Credential=<key>/<date>/<region>/ecr/aws4_request, ...
        self.ecr = home.regions.get(self.headers["Authorization"].split("/")[2], home)
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = getattr(self, f"_{operation}")(request)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _GetAuthorizationToken(self, _request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        token = self.ecr.token()
        data = {
            "authorizationToken": base64.b64encode(f"AWS:{token}".encode()).decode(),
            "expiresAt": self.ecr.tokens[token],
            "proxyEndpoint": f"http://{self.ecr.host}",
        }
        return 200, {"authorizationData": [data]}

    def _missing(self, name: str) -> tuple[int, dict[str, Any]]:
        message = f"The repository with name '{name}' does not exist in the registry with id '{ACCOUNT}'"
        return 400, {"__type": "RepositoryNotFoundException", "message": message}

    def _DescribeRepositories(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        for name in request["repositoryNames"]:
            if name not in self.ecr.repositories:
                return self._missing(name)
        return 200, {"repositories": [self.ecr.repositories[n] for n in request["repositoryNames"]]}

    def _CreateRepository(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.ecr.repositories[request["repositoryName"]] = request
        return 200, {"repository": request}

    def _PutLifecyclePolicy(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.ecr.lifecycle[request["repositoryName"]] = request["lifecyclePolicyText"]
        return 200, {}

    def _BatchGetImage(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = request["repositoryName"]
        if name not in self.ecr.repositories:
            return self._missing(name)
        images, failures = [], []
        for wanted in request["imageIds"]:
            try:
                digest, manifest = self.ecr.manifest(name, wanted.get("imageTag") or wanted["imageDigest"])
            except OSError:
                failures.append({"imageId": wanted, "failureCode": "ImageNotFound", "failureReason": "not there"})
                continue
            if self.ecr.lies:
                manifest = manifest.replace(json.loads(manifest)["config"]["digest"].encode(), b"sha256:" + b"0" * 64)
            images.append({"imageId": {**wanted, "imageDigest": digest}, "imageManifest": manifest.decode()})
        return 200, {"images": images, "failures": failures}
