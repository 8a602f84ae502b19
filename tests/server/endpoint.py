"""An endpoint as executor `process` runs it: our entrypoint, the local front, serve/model.py on a model directory."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.assets.djl import ensure
from harness.executors import process
from harness.executors.spec import ContainerSpec
from harness.paths import CACHE


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Endpoint:
    """A started container; `with Endpoint(model, …) as endpoint` waits until it answers."""

    model: Path
    environment: dict[str, str] = field(default_factory=dict)
    wait: bool = True

    def __post_init__(self) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.home = Path(tempfile.mkdtemp(prefix="endpoint-"))
        (self.home / "ml").mkdir()
        (self.home / "ml" / "model").symlink_to(self.model)
        self.began = time.monotonic()
        self.handle = process.start(
            ContainerSpec(
                name=self.home.name,
                role="serve",
                command="serve",
                base=self.home / "ml",
                log=self.home / "log",
                environment=self.environment,
                network=False,
                port=self.port,
                path=(ensure(CACHE, lambda _: None),),
            )
        )
        if self.wait:
            wait_for(lambda: self.code is not None or self.ping() == 200, 120)
            assert self.code is None, self.log()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def code(self) -> int | None:
        """The container's exit code once it has ended."""
        return process.poll(self.handle)

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def ping(self) -> int:
        try:
            return self.request("GET", "/ping", timeout=2).status
        except OSError:
            return 0

    def request(self, method: str, path: str, body: bytes = b"", timeout: float = 120, **headers: str) -> Answer:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read(), time.monotonic() - began)
        finally:
            connection.close()

    def post(self, timeout: float = 120, **body: Any) -> Answer:
        return self.request("POST", "/invocations", json.dumps(body).encode(), timeout)

    def stream(self, timeout: float = 120, **body: Any) -> Iterator[tuple[float, bytes]]:
        """The parts of a streamed answer, each with the seconds since the request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        began = time.monotonic()
        try:
            connection.request("POST", "/invocations", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            while part := response.read1(65536):
                yield time.monotonic() - began, part
        finally:
            connection.close()

    def handlers(self) -> list[psutil.Process]:
        """The Python processes that hold the model."""
        found = psutil.Process(self.handle.pid).children(recursive=True)
        return [p for p in found if "djl_python_engine.py" in " ".join(p.cmdline())]

    def terminate(self) -> None:
        psutil.Process(self.handle.pid).send_signal(signal.SIGTERM)

    def close(self) -> None:
        family = []
        if self.code is None:
            root = psutil.Process(self.handle.pid)
            family = [root, *root.children(recursive=True)]
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        wait_for(lambda: self.code is not None, 20)
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(process.scratch_of(self.home.name), ignore_errors=True)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
