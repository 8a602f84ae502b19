"""A Trainium or Inferentia host: device files, driver, cores; why a job cannot run on it, and which cores a job gets.

`root` stands before every path, so that tests can show a host that is not there: the variable HARNESS_FAKE_HOST names
a directory with dev/ and sys/ in it, and whoever uses it says that nothing of it is an accelerator.

The choice of cores is a pure plan of places, with locks that let several commands plan at once. What is taken is
asked, not remembered: a running container's own devices and variables say which cores it has (executors/docker.py),
whoever started it. A lock is only for the moment between the choice of cores and the container's start; the kernel
releases it when its process ends, also by KILL.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import Busy, InvalidInput, Problem
from harness.spec.instances import CORES_PER_DEVICE

# Driver versions that work with a stack's runtime, both ends included. The driver is backward compatible, except that
# 2.29 and later refuse runtimes before 2.33 (Neuron SDK, release-notes/components/runtime.rst); SDK 2.20 came with
# driver 2.18 and runtime 2.22.
DRIVERS = {"sdk2.20": ((2, 18), (2, 28))}
FAKE = "HARNESS_FAKE_HOST"


def root() -> Path:
    """Where the host's file system begins: "/", or what HARNESS_FAKE_HOST says."""
    return Path(os.environ.get(FAKE) or "/")


@dataclass(frozen=True)
class Host:
    """The devices of one host, as paths without `root`."""

    neuron: tuple[str, ...]
    efa: tuple[str, ...]
    driver: str
    root: Path = Path("/")

    @property
    def cores(self) -> int:
        return CORES_PER_DEVICE * len(self.neuron)

    def lent(self, cores: range) -> tuple[str, ...]:
        """What docker's --device is given for these cores: their devices; the network adapters to who has them all.

        A job that shares the host is one of a single instance, whose devices talk over NeuronLink.
        """
        first, last = cores[0] // CORES_PER_DEVICE, cores[-1] // CORES_PER_DEVICE
        files = self.neuron[first : last + 1] + (self.efa if len(cores) == self.cores else ())
        if self.root == Path("/"):
            return files
        return tuple(f"{self.path(file)}:{file}" for file in files)

    def path(self, file: str) -> Path:
        """Where a device file really is."""
        return self.root / file.removeprefix("/")


def look(where: Path | None = None) -> Host:
    """What is there. Without a driver there are no device files."""
    where = root() if where is None else where
    dev = where / "dev"
    neuron = sorted((p.name for p in dev.glob("neuron*") if re.fullmatch(r"neuron\d+", p.name)), key=_number)
    efa = sorted((p.name for p in (dev / "infiniband").glob("uverbs*")), key=_number)
    version = where / "sys" / "module" / "neuron" / "version"
    driver = version.read_text(encoding="utf-8").strip() if version.is_file() else ""
    return Host(tuple(f"/dev/{n}" for n in neuron), tuple(f"/dev/infiniband/{n}" for n in efa), driver, where)


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)


def problems(host: Host, stack: str, needed: int) -> list[Problem]:
    """Why a job of `needed` cores cannot run here with the images of `stack`, whoever else runs."""
    if not host.neuron:
        why = "there is no /dev/neuron0: this is not a Neuron host, or its driver is not loaded"
        hint = "install aws-neuronx-dkms, or use --platform local"
        return [Problem("this machine shows no Neuron device", why, hint)]
    found = []
    numbers = [_number(name) for name in host.neuron]
    if numbers != list(range(len(numbers))):
        why = "the runtime wants device numbers without gaps (Neuron SDK, containers/troubleshooting)"
        found.append(Problem(f"device files are missing: there are {', '.join(host.neuron)}", why, "see: dmesg"))
    low, high = DRIVERS[stack]
    match = re.match(r"(\d+)\.(\d+)", host.driver)
    if not match:
        found.append(Problem("the Neuron driver's version cannot be read", "/sys/module/neuron/version is not there"))
    elif not low <= (int(match[1]), int(match[2])) <= high:
        wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1]}"
        why = f"the images of stack {stack} need {wanted}; a newer driver refuses their runtime"
        hint = f"apt-get install aws-neuronx-dkms={high[0]}.{high[1]}.*, or a Neuron DLAMI with it"
        found.append(Problem(f"Neuron driver {host.driver} does not fit", why, hint))
    if needed > host.cores:
        found.append(Problem(f"the run needs {needed} NeuronCores, this host has {host.cores}"))
    return found


# Devices that a job may have where 16 are connected as a torus (trn1.32xlarge, trn1n.32xlarge): Neuron SDK,
# deploy/infrastructure/scheduler.rst. Elsewhere they are a ring (inf2), or there is one.
TORUS, ON_TORUS = 16, (1, 4, 8, 16)
# Of all users alike: /run/lock is writable for everybody on Debian and not on Amazon Linux.
LOCKS = "tmp/neuron-harness"
VISIBLE, COUNT = "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"


def places(devices: int, count: int) -> list[range]:
    """Every place that a job of `count` cores may have on a host of `devices`, lowest first; empty where none fits.

    A range within one device, or one that begins with a device: NEURON_RT_VISIBLE_CORES is one range, and no job
    lies across the border of two devices when it fits into one. On a torus blocks begin at a multiple of their size,
    which makes them rows of four devices or halves of the host.
    """
    if count < 1:
        return []
    if count <= CORES_PER_DEVICE:
        step = count if CORES_PER_DEVICE % count == 0 else CORES_PER_DEVICE
        return [range(first, first + count) for first in range(0, devices * CORES_PER_DEVICE, step)]
    wanted = -(-count // CORES_PER_DEVICE)
    if devices == TORUS and wanted not in ON_TORUS:
        return []
    step = wanted if devices == TORUS else 1
    starts = range(0, devices - wanted + 1, step)
    return [range(d * CORES_PER_DEVICE, d * CORES_PER_DEVICE + count) for d in starts]


def place(devices: int, count: int, taken: set[int] | Mapping[int, str]) -> range | None:
    """The lowest place with no core in `taken`; None where there is none."""
    return next((cores for cores in places(devices, count) if not any(core in taken for core in cores)), None)


def range_problems(host: Host, count: int) -> list[Problem]:
    """Why no job may have `count` cores of this host, even if all are free."""
    if count > host.cores or places(len(host.neuron), count):
        return []  # too many is neuron_host's to say
    allowed = ", ".join(str(n * CORES_PER_DEVICE) for n in ON_TORUS)
    why = f"{TORUS} devices are connected as a torus, on which collectives run over {allowed} cores (or one)"
    return [Problem(f"{count} NeuronCores are no part of this host that a job can have", why)]


def busy(host: Host, count: int, taken: Mapping[int, str]) -> list[Problem]:
    """Why a job of `count` cores must wait; empty where there is a place."""
    if place(len(host.neuron), count, taken) is not None:
        return []
    holders = ", ".join(sorted(set(taken.values())))
    what = f"{count} neighbouring NeuronCores are not free; {len(taken)} of {host.cores} are taken"
    return [Problem(what, f"by {holders}", "wait, or take them down: harness ps, harness down RUN")]


def numbers(text: str) -> set[int]:
    """The cores that NEURON_RT_VISIBLE_CORES names: "4", "0-3", "0-3,6". Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def environment(cores: range) -> dict[str, str]:
    """What tells the runtime its cores, and train/launch.py its workers: sysfs shows a container every device.

    Cores are counted over all devices of the host, also where a container sees a part of them (Neuron SDK,
    containers/faq.rst). torch-neuronx gives worker N the Nth of them, and wants as many as there are workers.
    """
    last = f"-{cores[-1]}" if len(cores) > 1 else ""
    return {VISIBLE: f"{cores[0]}{last}", COUNT: str(len(cores))}


class Cores:
    """The cores of this host: `in_use` says core -> name of the running container that has it."""

    def __init__(self, host: Host, in_use: Callable[[], dict[int, str]]) -> None:
        self.host, self.in_use, self.folder = host, in_use, host.root / LOCKS

    @contextmanager
    def lent(self, owner: str, count: int) -> Iterator[range]:
        """`count` neighbouring cores that nobody else is lent meanwhile; start the container inside.

        Raises Busy naming who has the others, InvalidInput where no host of this kind has such a place.
        """
        if wrong := range_problems(self.host, count):
            raise InvalidInput.of(wrong)
        with ExitStack() as held:
            with self._alone():
                taken = {**self.in_use(), **self._about_to_start()}
                cores = place(len(self.host.neuron), count, taken)
                if cores is None:
                    raise Busy.of(busy(self.host, count, taken))
                for core in cores:
                    handle = held.enter_context(self._open(f"core-{core}"))
                    fcntl.flock(handle, fcntl.LOCK_EX)
                    handle.truncate(0)
                    handle.write(owner)
                    handle.flush()
            yield cores

    def taken(self) -> dict[int, str]:
        """Core -> who has it or is about to."""
        with self._alone():
            return {**self.in_use(), **self._about_to_start()}

    def _about_to_start(self) -> dict[int, str]:
        found = {}
        for core in range(self.host.cores):
            with self._open(f"core-{core}") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    handle.seek(0)
                    found[core] = handle.read() or "another command"
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._open("lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held for a few file operations and one question to the engine
            yield

    def _open(self, name: str) -> IO[str]:
        """A lock file that every user of the host can open."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):  # another user has just made it
                self.folder.chmod(0o1777)  # nobody deletes or renames another user's locks
        path = self.folder / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with suppress(PermissionError):
            os.fchmod(fd, 0o666)
        return os.fdopen(fd, "r+", encoding="utf-8")
