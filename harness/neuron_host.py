"""What a Trainium or Inferentia host has: device files, driver, cores. And why a job cannot run on it.

`root` stands before every path, so that tests can show a host that is not there: the variable HARNESS_FAKE_HOST names
a directory with dev/ and sys/ in it, and whoever uses it says that nothing of it is an accelerator.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import Problem

CORES_PER_DEVICE = 2  # Trainium 1 and Inferentia 2; as train/launch.py counts
# What an instance has, so that a job for it gets as many workers here: Neuron SDK, general/arch/neuron-hardware.
INSTANCE_CORES = {
    "ml.trn1.2xlarge": 2,
    "ml.trn1.32xlarge": 32,
    "ml.trn1n.32xlarge": 32,
    "ml.inf2.xlarge": 2,
    "ml.inf2.8xlarge": 2,
    "ml.inf2.24xlarge": 12,
    "ml.inf2.48xlarge": 24,
}
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
        why = "there is no /dev/neuron0: this is no Neuron host, or its driver is not loaded"
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
