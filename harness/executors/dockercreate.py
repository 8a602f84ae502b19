"""How a container spec becomes `docker create`'s arguments. Nothing is asked of the engine here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import psutil

from containers import contract
from harness.executors.process import PASSED_ON
from harness.executors.spec import MARKER, ContainerSpec

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
    environment = {MARKER: spec.name} if spec.devices else {contract.DEVICE_ENV: "cpu", MARKER: spec.name}
    if spec.network:
        environment |= {k: os.environ[k] for k in PASSED_ON if k in os.environ}
        for name in {os.environ[k] for k in CA_VARIABLES if os.path.isfile(os.environ.get(k, ""))}:  # noqa: PTH113
            words += ["--volume", f"{name}:{name}:ro"]
    for key, value in {**environment, **spec.environment}.items():
        words += ["--env", f"{key}={value}"]
    if spec.entrypoint:
        return [*words, "--entrypoint", spec.entrypoint[0], spec.image, *spec.entrypoint[1:], *spec.arguments]
    return [*words, spec.image, *(spec.arguments or (spec.command,))]


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
