"""Executor `process`: runs one container spec as a plain process, no Docker needed, under the same contract.

The process gets a private base directory instead of /opt/ml and an environment as bare as a container's. Every
process of one "container" carries the marker variable, so that all of them are found again, by whoever looks,
even after a crash of the harness or of the container's own PID 1.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from containers import contract
from harness.errors import MissingPrerequisite, NotStarted
from harness.executors.spec import MARKER, ContainerSpec, Handle
from harness.paths import PRODUCT, environment as environment_of, python_of

# What a container inherits of the host's network set-up: without these a proxy or a company CA blocks the hub.
PASSED_ON = (
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "HF_TOKEN",
    "HF_ENDPOINT",
)
# Names a directory with stand-ins for the packages that are published for Neuron hosts only: role neuron needs it.
STAND_IN_ENV = "NEURON_HARNESS_STAND_INS"


def environment(spec: ContainerSpec, scratch: Path) -> dict[str, str]:
    """The container's environment: nothing of the user's but the network set-up, then the request's own."""
    python = python_of(spec.role)
    env = {
        "PATH": os.pathsep.join([*map(str, spec.path), str(python.parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(PRODUCT),
        contract.BASE_ENV: str(spec.base),
        contract.DEVICE_ENV: "cpu",
        MARKER: spec.name,
    }
    if spec.network:
        env.update({k: os.environ[k] for k in PASSED_ON if k in os.environ})
    else:
        env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if spec.role == "neuron":
        # The packages that are published for Neuron hosts only have stand-ins; everything else is real.
        stand_ins = os.environ[STAND_IN_ENV]
        env.update(PYTHONPATH=os.pathsep.join([stand_ins, str(PRODUCT)]), PJRT_DEVICE="CPU", OMP_NUM_THREADS="1")
    if spec.port is not None:
        env[contract.PORT_ENV] = str(spec.port)
        env[contract.LOOPBACK_ENV] = "1"
    return {**env, **spec.environment}


def command(spec: ContainerSpec) -> list[str]:
    """What `docker run` would make of entrypoint, arguments and command; programs are sought on the spec's PATH."""
    if spec.entrypoint:
        return [*spec.entrypoint, *spec.arguments]
    return [str(python_of(spec.role)), "-m", "containers.entrypoint", *(spec.arguments or (spec.command,))]


def scratch_of(name: str) -> Path:
    """The container's /tmp. By its name alone, so that it is found again after a crash between making and noting it.

    Short, because the server's Unix socket lies in it and such a path may have 107 bytes.
    """
    return Path("/tmp") / f"nh-{hashlib.sha256(f'{os.getuid()}-{name}'.encode()).hexdigest()[:12]}"  # noqa: S108


def check_environment(role: str) -> None:
    """Raises MissingPrerequisite where the environment of `role` is missing or its set-up was interrupted."""
    folder = environment_of(role)
    if not folder.is_dir():
        raise MissingPrerequisite(f"the environment {folder.name} is not set up", hint="run: harness setup")
    if not (folder / "setup-complete").exists():
        why = "its set-up was interrupted: packages may be missing"
        raise MissingPrerequisite(f"the environment {folder.name} is half installed", why, "run: harness setup")
    if role == "neuron" and not os.environ.get(STAND_IN_ENV):
        why = f"the training image's Neuron packages run here on XLA:CPU, with stand-ins that {STAND_IN_ENV} names"
        raise MissingPrerequisite("this machine has no Neuron device", why, "in a checkout: make test-neuron sets it")


def start(spec: ContainerSpec) -> Handle:
    """Start `python -m containers.entrypoint <command>`, or what the spec has instead; its output goes to `spec.log`.

    Raises NotStarted where there is no such program.
    """
    check_environment(spec.role)
    scratch = scratch_of(spec.name)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    with spec.log.open("ab") as log:
        try:
            child = subprocess.Popen(
                command(spec),
                cwd=scratch,
                env=environment(spec, scratch),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise NotStarted(f"{spec.name}: {command(spec)[0]}: {error.strerror}") from None
    _children[child.pid] = child
    return Handle(spec.name, child.pid, psutil.Process(child.pid).create_time(), str(spec.log))


_children: dict[int, subprocess.Popen[bytes]] = {}  # ours to reap; a handle from a record has none


def poll(handle: Handle) -> int | None:
    """The exit code once it has ended (128 + n for signal n, -1 where another process started it), else None."""
    child = _children.get(handle.pid)
    if child is not None:
        code = child.poll()
        return None if code is None else (code if code >= 0 else 128 - code)
    return None if alive(handle) else -1


def alive(handle: Handle) -> bool:
    """Whether the container's first process still runs."""
    try:
        process = psutil.Process(handle.pid)
        return abs(process.create_time() - handle.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(name: str) -> list[psutil.Process]:
    """Every living process of the container called `name`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARKER) == name:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # it ended meanwhile, or is another user's
    return found


def kill_largest(handle: Handle) -> bool:
    """What the kernel does when memory runs out: KILL to the process that has most. False where none runs yet."""
    sizes = []
    for process in members(handle.name):
        with suppress(psutil.NoSuchProcess):
            sizes.append((process.memory_info().rss, process))
    if not sizes:
        return False
    with suppress(psutil.NoSuchProcess):
        max(sizes, key=lambda pair: pair[0])[1].kill()
    return True


def stop(handle: Handle, wait: float) -> int | None:
    """`docker stop -t <wait>`: TERM to the first process, after `wait` seconds KILL to all. Returns the exit code."""
    if alive(handle):
        os.kill(handle.pid, signal.SIGTERM)
        deadline = time.monotonic() + wait
        while poll(handle) is None and time.monotonic() < deadline:
            time.sleep(0.05)
    return remove(handle)


def remove(handle: Handle) -> int | None:
    """What the end of a container's PID 1 does: everything in it is killed, its scratch directory deleted."""
    sweep(handle.name)
    child = _children.get(handle.pid)
    if child is not None:
        child.wait(timeout=10)
    code = poll(handle)
    _children.pop(handle.pid, None)  # a service starts thousands
    return code


def sweep(name: str) -> int:
    """Kill every process of the container called `name` and delete its scratch; returns how many there were."""
    found = 0
    for _ in range(5):  # a process may fork while the list is made
        left = members(name)
        found += len(left)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if not left:
            break
        psutil.wait_procs(left, timeout=5)
    shutil.rmtree(scratch_of(name), ignore_errors=True)
    return found
