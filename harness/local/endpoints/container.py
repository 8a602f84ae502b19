"""The container behind an endpoint: model data into a read-only directory, start, health checks, deletion."""

from __future__ import annotations

import shutil
import socket
import stat
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

import psutil
import urllib3

from containers import contract
from containers.artifact import unpack
from containers.contract import Paths
from harness import executors
from harness.errors import Busy, EndpointFailed, NotFound, NotStarted
from harness.executors.spec import ContainerSpec, Handle
from harness.files import LineFollower
from harness.local.store.objects import ObjectStore


@dataclass
class Endpoint:
    """What DescribeEndpoint would say, and what the executor needs to find its container again."""

    name: str
    status: str
    port: int
    handle: Handle
    failure_reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Ping = Callable[[Endpoint], bool]
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_PORT = 10240  # above the ports that well-known servers have
TRIES = 100  # almost all are free; at random, so that two servers on one machine do not meet


@dataclass(frozen=True)
class Placement:
    """How an endpoint's container is run: `container` is its name if not the endpoint's, `port` None a free one."""

    launchers: tuple[Path, ...] = ()
    port: int | None = None
    executor: str = "process"
    container: str = ""


def create(
    name: str,
    model: dict[str, Any],
    store: ObjectStore,
    folder: Path,
    log: Path,
    place: Placement,
) -> Endpoint:
    """Start the container of a CreateModel request; the endpoint is Creating.

    Raises EndpointFailed where the model data cannot be had or the container not be started.
    """
    paths = Paths(folder)
    source = model_data(model["PrimaryContainer"])
    if source is None:
        paths.model.mkdir(parents=True, exist_ok=True)
    else:
        try:
            load_model_data(source, store, paths.model)
        except (NotFound, ValueError, tarfile.TarError, EOFError, OSError) as error:
            raise EndpointFailed(
                f"endpoint {name}: model data {source['S3Uri']} cannot be read", str(error)
            ) from None
    port = free_port() if place.port is None else claim_port(place.port)
    spec = ContainerSpec(
        name=place.container or name,
        owner=name,
        role="serve",
        command="serve",
        base=folder,
        log=log,
        environment=model["PrimaryContainer"].get("Environment", {}),
        port=port,
        image=model["PrimaryContainer"]["Image"],
        network=not model.get("EnableNetworkIsolation", False),
        path=place.launchers,
    )
    try:
        handle = executors.named(place.executor).start(spec)
    except NotStarted as error:
        raise EndpointFailed(f"endpoint {name}: the container did not start", str(error)) from None
    return Endpoint(name, "Creating", port, handle)


def model_data(container: dict[str, Any]) -> dict[str, Any] | None:
    """Where a container's model data is, ModelDataUrl in the words of ModelDataSource; None where it has none."""
    if "ModelDataUrl" in container:
        return {"S3Uri": container["ModelDataUrl"], "S3DataType": "S3Object", "CompressionType": "Gzip"}
    found: dict[str, Any] | None = container.get("ModelDataSource", {}).get("S3DataSource")
    return found


def load_model_data(source: dict[str, Any], store: ObjectStore, target: Path) -> None:
    """ModelDataSource into `target`, which is read-only afterwards, as it is on AWS."""
    target.mkdir(parents=True, exist_ok=True)
    if source["CompressionType"] == "Gzip":
        with tarfile.open(store.fetch(source["S3Uri"]), "r:gz") as tar:
            unpack(tar, target)
    else:
        store.download(source["S3Uri"], target)
    for path in [*target.rglob("*"), target]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def free_port() -> int:
    """A port on loopback that nothing listens on now.

    From below the range out of which the kernel serves connections and `bind(0)`: a container begins to listen
    seconds later, and on a busy machine some process's connection had the port by then.
    """
    try:
        above = int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        above = 32768  # Linux's default
    candidates = range(FIRST_PORT, above)
    for port in SystemRandom().sample(candidates, min(len(candidates), TRIES)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    with socket.socket() as probe:  # a machine whose range begins at 1024 has no others
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claim_port(port: int) -> int:
    """`port`, if nothing listens on it. Raises Busy naming who does, where that can be seen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            holders = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid]
            who = f"process {holders[0]} ({psutil.Process(holders[0]).name()}) has it" if holders else str(error)
            raise Busy(f"port {port} is taken", who, "leave --port out to get a free one") from None
    return port


def wait_in_service(
    endpoint: Endpoint,
    window: float,
    on_tick: Callable[[], None] = lambda: None,
    check: Ping | None = None,
) -> None:
    """Health checks until two in a row answer 200. Sets status InService, or Failed and raises EndpointFailed.

    `check` is `ping` unless a fault stands in for it.
    """
    check = check or ping
    executor = executors.named(endpoint.handle.executor)
    started = time.monotonic()
    healthy = 0
    while healthy < 2:
        if executor.poll(endpoint.handle) is not None:
            _fail(endpoint, "the container ended while it started")
        if time.monotonic() - started > window:
            _fail(endpoint, f"no healthy /ping within {window:.0f} s")
        healthy = healthy + 1 if check(endpoint) else 0
        on_tick()
        time.sleep(0.1)
    endpoint.status = "InService"


def ping(endpoint: Endpoint) -> bool:
    """One health check under SageMaker's two-second limit, on a connection of its own, which ends with it."""
    try:
        with urllib3.HTTPConnectionPool("127.0.0.1", endpoint.port, timeout=contract.PING_TIMEOUT) as pool:
            answer = pool.request("GET", "/ping", retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == 200


def _fail(endpoint: Endpoint, reason: str) -> None:
    endpoint.status, endpoint.failure_reason = "Failed", reason
    executors.named(endpoint.handle.executor).remove(endpoint.handle)
    tail = [line for line in _tail(Path(endpoint.handle.log)) if line.strip()]
    # The reason is in the log, most often as the last exception or as the entrypoint's own line.
    telling = [line for line in tail if "Error" in line or line.startswith("entrypoint:")]
    why = (telling or tail or ["it wrote nothing"])[-1].strip()
    raise EndpointFailed(f"endpoint {endpoint.name}: {reason}", why[:400], f"see {endpoint.handle.log}")


def _tail(log: Path, lines: int = 80) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] if log.exists() else []


def delete(endpoint: Endpoint) -> None:
    """DeleteEndpoint: TERM, the contract's wait, KILL; nothing of the container is left."""
    executors.named(endpoint.handle.executor).stop(endpoint.handle, contract.SERVE_STOP_WAIT)
    endpoint.status = "Deleted"


def delete_tree(folder: Path) -> None:
    """Also a read-only one."""
    if not folder.exists():
        return
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


class Ports:
    """Ports on loopback for endpoints: none is given twice while the one who has it has not begun to listen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()

    def take(self) -> int:
        """A port that nobody listens on and nobody was given."""
        with self._lock:
            while (port := free_port()) in self._taken:
                continue
            self._taken.add(port)
            return port

    def give_back(self, port: int) -> None:
        with self._lock:
            self._taken.discard(port)


@dataclass
class Deployed:
    """A container that serves: `made_of` is what it can be started from again, whatever was deleted meanwhile."""

    endpoint: Endpoint
    folder: Path
    stream: str
    follower: LineFollower
    made_of: dict[str, Any]

    def __post_init__(self) -> None:
        self.pool = urllib3.HTTPConnectionPool("127.0.0.1", self.endpoint.port, maxsize=16)
