"""Executor `docker`: runs one container spec as a container of the local engine, under the same contract.

Through the docker command line rather than its API: contexts, DOCKER_HOST, credential helpers and rootless engines
are its business, an image build needs it anyway, and what is run can be typed by hand. A container is found again by
its label, by whoever looks, even after a crash of the harness.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from containers import contract
from harness.errors import HarnessError, MissingPrerequisite
from harness.executors.process import PASSED_ON
from harness.executors.spec import MARKER, OWNER, ContainerSpec, Handle
from harness.images import engine

RESERVED = 2 << 30  # bytes of the machine's memory that containers leave to it
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def memory_limit() -> int:
    """Bytes that one container may use: the machine's memory but for a rest."""
    return max(psutil.virtual_memory().total - RESERVED, RESERVED)


def arguments(spec: ContainerSpec) -> list[str]:
    """`docker create`'s arguments: volumes, limits, network, port on loopback only, environment."""
    words = ["--label", f"{MARKER}={spec.name}", "--pull", "never", "--hostname", spec.host]
    # Without swap: what does not fit is killed, as it is on an instance, and does not slow the machine down.
    words += ["--memory", str(memory_limit()), "--memory-swap", str(memory_limit())]
    if spec.port is not None:  # an endpoint
        words += ["--volume", f"{spec.base / 'model'}:{contract.DEFAULT_BASE}/model:ro"]
    else:
        words += ["--volume", f"{spec.base}:{contract.DEFAULT_BASE}"]
    if os.getuid() != 0:
        # SageMaker runs containers as root. Here root's files in a user's directory could not be deleted by the user.
        words += ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp"]
    words += _network_arguments(spec)
    if spec.port is not None:
        words += ["--publish", f"127.0.0.1:{spec.port}:{contract.DEFAULT_PORT}"]
    words += _device_arguments(spec.devices)
    if spec.network:
        for name in {os.environ[k] for k in CA_VARIABLES if os.path.isfile(os.environ.get(k, ""))}:  # noqa: PTH113
            words += ["--volume", f"{name}:{name}:ro"]
    for key, value in environment(spec).items():
        words += ["--env", f"{key}={value}" if _is_clients(key) else key]
    if spec.entrypoint:
        return [*words, "--entrypoint", spec.entrypoint[0], spec.image, *spec.entrypoint[1:], *spec.arguments]
    return [*words, spec.image, *(spec.arguments or (spec.command,))]


def environment(spec: ContainerSpec) -> dict[str, str]:
    """The container's variables. They reach it through the environment of the call, never through its words."""
    own = {MARKER: spec.name, OWNER: spec.owner or spec.name}
    if not spec.devices:
        own[contract.DEVICE_ENV] = "cpu"
    passed = {k: os.environ[k] for k in PASSED_ON if k in os.environ} if spec.network else {}
    return {**own, **passed, **spec.environment}


def _is_clients(variable: str) -> bool:
    """Whether the docker command line reads a variable itself, so that another value would change what it does."""
    return variable in ("PATH", "HOME", "TMPDIR") or variable.startswith(("DOCKER_", "XDG_"))


def _device_arguments(devices: Sequence[str]) -> list[str]:
    """Device files, and what programs that use them need besides."""
    if not devices:
        return []
    words = [word for device in devices for word in ("--device", device)]
    # A host's workers and data loaders share memory in /dev/shm: 64 MB by Docker, half of it all by Linux.
    words += ["--shm-size", str(memory_limit() // 2)]
    if any("/infiniband/" in device for device in devices):
        # Network adapters register memory, which must not be swapped (Neuron SDK, containers/faq.rst).
        words += ["--ulimit", "memlock=-1:-1", "--cap-add", "IPC_LOCK"]
    return words


def _network_arguments(spec: ContainerSpec) -> list[str]:
    if spec.job:
        return ["--network", network_name(spec.job), "--network-alias", spec.host]
    if spec.network:
        return []
    if spec.port is None:
        return ["--network", "none"]
    return ["--network", network_name(spec.name), "--dns", "127.0.0.1"]


def network_name(owner: str) -> str:
    """The network of a job or a container; by its name alone, so that it is found again after a crash."""
    return f"nh-{hashlib.sha256(f'{os.getuid()}-{owner}'.encode()).hexdigest()[:12]}"


START_WAIT = 60  # seconds for the engine to start a container whose image is there
PULL_WAIT = 3600  # seconds; a Deep Learning Container has 14 GB packed
NOWHERE = "000000000000."  # the local account's registry, in which images are only named

_clients: dict[str, subprocess.Popen[bytes]] = {}  # container id -> its attached client, of those started here
_pids: dict[str, int] = {}
_codes: dict[str, int] = {}  # of containers that are removed


def _docker(*words: str, check: bool = True, timeout: float = 120, more: Mapping[str, str] | None = None) -> str:
    """Standard output of one short docker call, in a session of its own: the harness handles Ctrl-C.

    `more` are variables for the call, besides this process's own.
    """
    try:
        done = subprocess.run(
            ["docker", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            start_new_session=True,
            env={**os.environ, **(more or {})},
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        engine.check()
        raise MissingPrerequisite(f"docker {words[0]}: no answer", str(error), "look at: docker info") from None
    if check and done.returncode != 0:
        engine.check()  # what is wrong with all of it goes before what is wrong with this call
        raise MissingPrerequisite(f"docker {words[0]} failed", done.stderr.strip()[-400:])
    return done.stdout.strip()


def check_environment(role: str) -> None:
    """Raises MissingPrerequisite where no engine answers. Whether `role`'s image is there, `start` says."""
    del role
    engine.check()


def _make_network(spec: ContainerSpec) -> None:
    if spec.job:
        kind = [] if spec.network else ["--internal"]
        owner = spec.job
    elif spec.network or spec.port is None:
        return
    else:
        # An internal network publishes no port. Without address translation the port is there, and what the container
        # asks for outside is never answered.
        kind = ["--opt", "com.docker.network.bridge.enable_ip_masquerade=false"]
        owner = spec.name
    name = network_name(owner)
    if name not in _docker("network", "ls", "--format", "{{.Name}}").split():
        # Two hosts of a job that start at once: the second one finds it made.
        with suppress(MissingPrerequisite):
            _docker("network", "create", "--label", f"{MARKER}={owner}", *kind, name)


def start(spec: ContainerSpec) -> Handle:
    """Start the container; its output goes to `spec.log` as it is written.

    Raises MissingPrerequisite where the image is not there or the engine cannot start it; nothing is left then.
    """
    check_environment(spec.role)
    _need_image(spec.image)
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    _make_network(spec)
    try:
        variables = {k: v for k, v in environment(spec).items() if not _is_clients(k)}
        container = _docker("create", *arguments(spec), more=variables)
        with spec.log.open("ab") as log:
            # Attached before the start, so that no line is lost; its exit code is the container's.
            client = subprocess.Popen(
                ["docker", "start", "--attach", container],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _clients[container] = client
        state = _wait_started(container, client, spec)
    except BaseException:
        sweep(spec.name)
        raise
    _pids[container] = int(state["Pid"])
    return Handle(spec.name, int(state["Pid"]), time.time(), str(spec.log), executor="docker", id=container)


def _need_image(image: str) -> None:
    """It is here, or is pulled with the credentials of the docker command line. Raises MissingPrerequisite."""
    if _docker("image", "ls", "--quiet", image):
        return
    if image.startswith(NOWHERE):
        raise MissingPrerequisite(f"no image {image} on this machine", hint="run: harness build --stand-in")
    try:
        _docker("pull", "--quiet", image, timeout=PULL_WAIT)
    except MissingPrerequisite as error:
        hint = "build it (harness build --stand-in), or log in to its registry: docker login"
        raise MissingPrerequisite(
            f"no image {image} on this machine, and none to pull", error.problems[0].why, hint
        ) from None


def _wait_started(container: str, client: subprocess.Popen[bytes], spec: ContainerSpec) -> dict[str, Any]:
    deadline = time.monotonic() + START_WAIT
    while time.monotonic() < deadline:
        ended = client.poll() is not None
        state = _state(container)
        if state is None:
            break
        if state["Status"] != "created":
            return state
        if ended:
            lines = spec.log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise MissingPrerequisite("docker could not start the container", "; ".join(lines[-2:])[-400:])
        time.sleep(0.05)
    raise MissingPrerequisite(f"docker did not start {spec.image} within {START_WAIT} s", hint="see: docker info")


def _state(container: str) -> dict[str, Any] | None:
    """docker inspect's State; None where there is no such container."""
    text = _docker("container", "inspect", "--format", "{{json .State}}", container, check=False)
    return json.loads(text) if text else None


def poll(handle: Handle) -> int | None:
    """The exit code once it has ended, else None; -1 where it is gone and nobody here knows how it ended."""
    if handle.id in _codes:
        return _codes[handle.id]
    client = _clients.get(handle.id)
    if client is not None and client.poll() is None:
        return None  # cheap, so that a caller may ask ten times a second
    state = _state(handle.id)
    if state is None:
        return -1
    return None if state["Running"] else int(state["ExitCode"])


def alive(handle: Handle) -> bool:
    """Whether the container runs."""
    if shutil.which("docker") is None:
        return False
    try:
        state = _state(handle.id)
    except HarnessError:
        return False
    return state is not None and bool(state["Running"])


def kill_largest(handle: Handle) -> bool:
    """KILL to its largest process; where that is not ours to kill, to the container. False where none runs yet."""
    lines = _docker("top", handle.id, "-eo", "pid,rss", check=False).splitlines()[1:]
    sizes = sorted((int(rss), int(pid)) for pid, rss in (line.split() for line in lines))
    if not sizes:
        return False
    try:
        os.kill(sizes[-1][1], signal.SIGKILL)  # the engine's process ids are this machine's, if it runs on it
    except OSError:
        _docker("kill", handle.id, check=False)
    return True


def stop(handle: Handle, wait: float) -> int | None:
    """docker stop: TERM to PID 1, after `wait` seconds KILL; then nothing of the container is left. The exit code."""
    _docker("stop", "--time", str(int(wait)), handle.id, check=False, timeout=wait + 60)
    return remove(handle)


def remove(handle: Handle) -> int | None:
    """Kill it if it runs, remove it and its network. The exit code."""
    state = _state(handle.id)
    if state is not None:
        if state["Running"]:
            _docker("kill", handle.id, check=False)
        code = _docker("wait", handle.id, check=False)
        _codes[handle.id] = int(code) if code.isdigit() else -1
    _pids.pop(handle.id, None)
    client = _clients.pop(handle.id, None)
    if client is not None:
        try:
            client.wait(timeout=10)  # the log is whole when it has ended
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()
    sweep(handle.name)
    return _codes.get(handle.id, -1)


def sweep(name: str) -> int:
    """Remove every container called `name`, and its network; returns how many there were."""
    if shutil.which("docker") is None:
        return 0
    found = _docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={MARKER}={name}", check=False).split()
    networks = set()
    if found:
        shown = _docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", *found, check=False)
        networks = {net for line in shown.splitlines() for net in json.loads(line) if net.startswith("nh-")}
        _docker("rm", "--force", "--volumes", *found, check=False)
    for network in networks | {network_name(name)}:
        _docker("network", "rm", network, check=False)  # a job's network stays until its last host has gone
    return len(found)


@dataclass(frozen=True)
class User:
    """Who has device files of the host in a running container of this engine, ours or not."""

    name: str
    """The job or endpoint; of a container that is not ours, its own name."""
    devices: tuple[str, ...]
    """As paths on the host."""
    environment: Mapping[str, str]


def users() -> list[User]:
    """Every running container that was given device files."""
    ids = _docker("ps", "--quiet", "--no-trunc").split()
    if not ids:
        return []
    form = '{"name": {{json .Name}}, "devices": {{json .HostConfig.Devices}}, "env": {{json .Config.Env}}}'
    found = []
    # One that ends between the two calls is no longer shown; docker then ends with 1 and has shown the others.
    for line in _docker("inspect", "--format", form, *ids, check=False).splitlines():
        raw = json.loads(line)
        variables = dict(word.partition("=")[::2] for word in raw["env"] or [])
        devices = tuple(device["PathOnHost"] for device in raw["devices"] or [])
        if devices:
            owner = variables.get(OWNER) or variables.get(MARKER) or raw["name"].lstrip("/")
            found.append(User(owner, devices, variables))
    return found


def pids() -> Sequence[int]:
    """Process ids, on this machine, of the first processes of the containers that this process has started."""
    return list(_pids.values())
