"""What a Trainium or Inferentia host has: device files, driver, cores, and which of them are taken.

`root` stands before every path, so that tests can show a host that is not there.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import Busy, MissingPrerequisite, Problem

CORES_PER_DEVICE = 2  # Trainium 1 and Inferentia 2; as train/launch.py counts
# Driver versions that work with a stack's runtime, both ends included. The driver is backward compatible, except that
# 2.29 and later refuse runtimes before 2.33 (Neuron SDK, release-notes/components/runtime.rst); SDK 2.20 came with
# driver 2.18 and runtime 2.22.
DRIVERS = {"sdk2.20": ((2, 18), (2, 28))}
LOCKS = "run/lock/neuron-harness"


@dataclass(frozen=True)
class Host:
    """The devices of one host, as paths without `root`."""

    neuron: tuple[str, ...]
    efa: tuple[str, ...]
    driver: str

    @property
    def devices(self) -> tuple[str, ...]:
        """Everything that a container is given."""
        return self.neuron + self.efa

    @property
    def cores(self) -> int:
        return CORES_PER_DEVICE * len(self.neuron)


def look(root: Path = Path("/")) -> Host:
    """What is there. Without a driver there are no device files."""
    dev = root / "dev"
    neuron = sorted((p.name for p in dev.glob("neuron*") if re.fullmatch(r"neuron\d+", p.name)), key=_number)
    efa = sorted((p.name for p in (dev / "infiniband").glob("uverbs*")), key=_number)
    version = root / "sys" / "module" / "neuron" / "version"
    driver = version.read_text(encoding="utf-8").strip() if version.is_file() else ""
    return Host(tuple(f"/dev/{n}" for n in neuron), tuple(f"/dev/infiniband/{n}" for n in efa), driver)


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)


def problems(host: Host, stack: str, needed: int) -> list[Problem]:
    """Why a job of `needed` cores cannot run here with the images of `stack`."""
    if not host.neuron:
        why = "there is no /dev/neuron0: this is no Neuron host, or its driver is not loaded"
        hint = "install aws-neuronx-dkms, or use --platform local"
        return [Problem("this machine shows no Neuron device", why, hint)]
    found = []
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


def check(host: Host, stack: str, needed: int) -> None:
    """Raises MissingPrerequisite with everything that `problems` finds."""
    if found := problems(host, stack, needed):
        raise MissingPrerequisite.of(found)


class Cores:
    """Which container has which cores: a file for each, so that it holds across commands and their crashes.

    The runtime refuses a core that another process has, minutes after the start; this says so before. Cores of a
    container that no longer lives are free, whoever started it.
    """

    def __init__(self, host: Host, alive: Callable[[str], bool], root: Path = Path("/")) -> None:
        self.host, self.alive, self.folder = host, alive, root / LOCKS

    def claim(self, owner: str, count: int) -> range:
        """`count` neighbouring cores for the container `owner`. Raises Busy naming who has the others."""
        with self._alone():
            taken = self._taken()
            for first in range(0, self.host.cores - count + 1):
                wanted = range(first, first + count)
                if all(taken.get(core, owner) == owner for core in wanted):
                    self._drop(owner)
                    for core in wanted:
                        self._file(core).write_text(json.dumps({"container": owner}), encoding="utf-8")
                    return wanted
            holders = ", ".join(sorted(set(taken.values())))
            what = f"{count} neighbouring NeuronCores are not free; {len(taken)} of {self.host.cores} are taken"
            raise Busy(what, f"by {holders}", "wait, or take them down: harness ps, harness down RUN")

    def release(self, owner: str) -> None:
        """Give back what `owner` has."""
        with self._alone():
            self._drop(owner)

    def taken(self) -> dict[int, str]:
        """Core -> the living container that has it."""
        with self._alone():
            return self._taken()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held for a few file operations
            yield

    def _file(self, core: int) -> Path:
        return self.folder / f"core-{core}.json"

    def _taken(self) -> dict[int, str]:
        found = {}
        for core in range(self.host.cores):
            try:
                owner = str(json.loads(self._file(core).read_text(encoding="utf-8"))["container"])
            except (FileNotFoundError, ValueError, KeyError):
                continue
            if self.alive(owner):
                found[core] = owner
            else:
                self._file(core).unlink(missing_ok=True)
        return found

    def _drop(self, owner: str) -> None:
        for core, holder in self._taken().items():
            if holder == owner:
                self._file(core).unlink(missing_ok=True)


def environment(cores: range) -> dict[str, str]:
    """What tells the runtime its cores, and train/launch.py its workers: sysfs shows a container every device."""
    last = f"-{cores[-1]}" if len(cores) > 1 else ""
    return {"NEURON_RT_VISIBLE_CORES": f"{cores[0]}{last}", "NEURON_RT_NUM_CORES": str(len(cores))}
