"""What an executor is given, what it gives back, and what it does: the same for processes and for Docker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from containers.contract import DEVICE_ENV

# Carried by every process and container of ours, with the container's name as its value.
MARKER = "NEURON_HARNESS_CONTAINER"
# And the job or endpoint it belongs to, which is what users know.
OWNER = "NEURON_HARNESS_OWNER"


@dataclass(frozen=True)
class ContainerSpec:
    """What to run: `role` (train or serve) picks interpreter or image, `command` is the entrypoint's argument."""

    name: str
    role: str
    command: str
    base: Path
    """The directory that is /opt/ml in the container."""
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    network: bool = True
    port: int | None = None
    """Where /ping and /invocations are to be had on 127.0.0.1; None for a training container."""
    path: tuple[Path, ...] = ()
    """Executor process: directories put before PATH, with launchers that the image has and this machine has not."""
    image: str = ""
    """Executor docker: the image, by digest where there is one."""
    host: str = "algo-1"
    """This container's name on the job's network."""
    entrypoint: tuple[str, ...] = ()
    """ContainerEntrypoint: replaces the image's own, and `command` with it."""
    arguments: tuple[str, ...] = ()
    """ContainerArguments: stand in the place of `command`."""
    job: str = ""
    """Executor docker: the job of several hosts that this is one of; they share a network with nobody else on it."""
    owner: str = ""
    """The job or endpoint that this is a container of: messages name it. Empty: the container has only its name."""
    devices: tuple[str, ...] = ()
    """Executor docker: device files as --device takes them. A container with some is not told to use the CPU."""


def role_of(image: str, environment: Mapping[str, str]) -> str:
    """The environment of this machine that stands in for a job's image, for executor process.

    `neuron` is the training image's Neuron packages on XLA:CPU (.venv-neuron), for a job that asks for that device.
    """
    if "/neuron-serve" in image:
        return "serve"
    return "neuron" if environment.get(DEVICE_ENV) == "neuron" else "train"


@dataclass(frozen=True)
class Handle:
    """A started container; `created` tells a recycled process id from the real one."""

    name: str
    pid: int
    created: float
    log: str
    executor: str = "process"
    id: str = ""
    """Executor docker: the container's id."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Executor(Protocol):
    """Modules of this package have this shape."""

    def check_environment(self, role: str) -> None:
        """Raise MissingPrerequisite, before anything is started, where `role` cannot run here."""

    def start(self, spec: ContainerSpec) -> Handle:
        """Start the container; its output goes to `spec.log`."""

    def poll(self, handle: Handle) -> int | None:
        """The exit code once it has ended (128 + n for signal n, -1 where it cannot be known), else None."""

    def alive(self, handle: Handle) -> bool:
        """Whether the container's first process still runs."""

    def stop(self, handle: Handle, wait: float) -> int | None:
        """TERM to the first process, after `wait` seconds KILL to all; nothing of it is left. The exit code."""

    def remove(self, handle: Handle) -> int | None:
        """Kill whatever of it still runs and delete its scratch. The exit code."""

    def kill_largest(self, handle: Handle) -> bool:
        """KILL to the process of it that has most memory, as the kernel does; False where none runs yet."""

    def sweep(self, name: str) -> int:
        """`remove` by name alone, for a container whose handle was lost in a crash; how many processes there were."""
