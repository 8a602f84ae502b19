"""How many graphs are compiled at once: what the host's memory holds, where the library starts one compiler a graph.

transformers-neuronx 0.12 compiles with as many processes as there are graphs (base.py, compile): eight on the 4 vCPU
and 16 GiB of an inf2.xlarge, where the kernel then kills one and the endpoint fails for want of host memory, not the
device's (aws-neuron-samples #10, nki-samples #87). Pure Python; the library's own steps are called one by one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

GIB = 1 << 30
# Of one neuronx-cc at work on a decoder. AWS's tutorials ask for 32 GB of host memory with two compilers
# (Neuron SDK 2.20, finetune_hftrainer.rst); never measured by us: unverified.
COMPILER_BYTES = 8 * GIB


def at_once(graphs: int, available: int, processors: int) -> int:
    """Compilers to run at once: at least 1, at most one a graph and one a processor.

    `available`: bytes of host memory that are free once the weights are on the device.
    """
    return max(1, min(graphs, processors, available // COMPILER_BYTES))


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a new process can have: the kernel's estimate, or what a container's limit leaves."""
    free = 0
    for line in meminfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            free = min(free, int(limit) - int(used))
    except OSError:
        pass  # no limit of its own
    return max(0, free)


def to_device(model: Any, compiled: Path | None) -> None:
    """What the library's to_neuron does, with a number of compilers that the host can hold.

    With `compiled`, the directory of a prepared artifact, nothing is compiled.
    """
    if compiled is not None:
        model.load(str(compiled))  # before to_neuron, which compiles unless a directory is set
        model.to_neuron()
        return
    model.load_weights()
    graphs = len(model._get_all_kernels())
    degree = at_once(graphs, available_memory(), len(os.sched_getaffinity(0)))
    print(f"engine neuron: compiling {graphs} graphs, {degree} at once", flush=True)
    model.compile(parallel_degree=degree)
    model.setup()
