"""How workers start: on Trainium one process per core under torchrun, with the Neuron SDK's environment.

Standard library only: it runs before torch is imported. `python -m train.run_clm` on device neuron becomes torchrun,
which starts run_clm once per core; the workers know themselves by torchrun's variables. On device cpu a job of
several hosts has one worker on each.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from containers.contract import Paths, Resources, read_training_input
from train import gloo

CORES_PER_DEVICE = 2  # Trainium 1 and Inferentia 2; optimum-neuron 0.0.28 counts so, too (utils/cache_utils.py)
PRECOMPILE_ENV = "RUN_NEURON_PARALLEL_COMPILE"  # the name SageMaker's training toolkit knows it by
VISIBLE_CORES = "NEURON_RT_VISIBLE_CORES"
# What the container was lent, read before torch_xla and torch_neuronx are imported: they set it for the worker.
LENT = os.environ.get(VISIBLE_CORES, "")
EXTRACT_ENV = "NEURON_EXTRACT_GRAPHS_ONLY"  # set by neuron_parallel_compile for its trial run
# Of one core, operations a second: Trainium 1 has 190 TFLOPS in bf16 and 47.5 in fp32 on two
# (https://aws.amazon.com/machine-learning/trainium/, AWS Neuron documentation, trn1 architecture).
PEAK_FLOPS = {"bf16": 95e12, "fp32": 23.75e12}
RENDEZVOUS_PORT = 41000  # as in AWS's multi-node examples
# The workers of one host meet on loopback, at a port that is free. Not `--standalone`: torchrun would give them
# getfqdn(gethostname()) for MASTER_ADDR (torch 2.1.2, elastic/agent/server/api.py, _set_master_addr_port). A
# container of SageMaker calls itself "aws", which resolves to nothing, and all would wait for an address that nobody
# has.
ONE_HOST = ("--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1")
# SageMaker's training toolkit, which AWS's images have, brings a library whose gethostname() reads
# resourceconfig.json (v4.8.3, c/gethostname.c); its MPI runner preloads it on every host (mpi.py, LD_PRELOAD).
HOST_NAME_MODULE = "gethostname"

# name -> (value, source). Flags of NEURON_CC_FLAGS are added to what the user gave; everything else is a default.
COMPILER_FLAGS = {
    "--model-type": ("--model-type=transformer", "optimum-neuron 0.0.28 examples; set_common_flags adds it as well"),
    "--distribution-strategy": (
        "--distribution-strategy=llm-training",
        "optimum-neuron 0.0.28 warns without it (check_neuron_cc_flags_for_model)",
    ),
    "--retry_failed_compilation": (
        "--retry_failed_compilation",
        "failed graphs are cached and fail again: Neuron SDK 2.20, neuron-caching.rst",
    ),
}
ALWAYS = {
    "NEURON_FUSE_SOFTMAX": ("1", "optimum-neuron 0.0.28 examples"),
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": ("3", "optimum-neuron 0.0.28 examples; ends with SDK 2.31"),
    "MALLOC_ARENA_MAX": ("64", "Neuron SDK release notes, glibc memory growth; optimum-neuron sets it too late"),
}
# Instances with Elastic Fabric Adapters; trn1.2xlarge has none, so its hosts talk over TCP. SageMaker's training
# toolkit 5.1.4 knows the first one only (params.py), and sets no FI_EFA_FORK_SAFE.
EFA_INSTANCES = ("ml.trn1.32xlarge", "ml.trn1n.32xlarge")
EFA = {
    "FI_PROVIDER": ("efa", "Neuron SDK 2.20, EFA set-up"),
    "FI_EFA_USE_DEVICE_RDMA": ("1", "Neuron SDK 2.20, EFA set-up"),
    "FI_EFA_FORK_SAFE": ("1", "Neuron SDK 2.20, kernels before 5.15"),
    "RDMAV_FORK_SAFE": ("1", "SageMaker's training toolkit 5.1.4, torch_distributed.py"),
}
BF16 = {
    "NEURON_RT_STOCHASTIC_ROUNDING_EN": ("1", "Neuron SDK 2.20, rounding modes: bf16 weights stall without it"),
}
BF16_XLA = {
    "XLA_USE_BF16": ("1", "optimum-neuron 0.0.28 sets it itself, but under neuron_parallel_compile it must be given"),
}
PRECOMPILE = {
    "NEURON_PARALLEL_COMPILE_MAX_RETRIES": ("1", "Neuron SDK 2.20, finetune_hftrainer.rst: 32 GB of host memory"),
}


def environment(arguments: Any, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the SDK wants in the environment for `arguments`; a variable that the user has `given` is left alone.

    Raises ValueError for a compile cache that optimum-neuron would look for in another place.
    """
    given = given or {}
    flags = given.get("NEURON_CC_FLAGS", "")
    cache = re.search(r"--cache_dir[= ](\S*)", flags)
    if cache and not re.fullmatch(r"[\w/-]+", cache.group(1)):
        # Its regular expression ends at the first other character: s3://b/c becomes "s3", /mnt/v1.2 "/mnt/v1".
        raise ValueError(
            f"NEURON_CC_FLAGS has --cache_dir={cache.group(1)}, which optimum-neuron 0.0.28 reads up to the first "
            f"dot or colon only: set NEURON_COMPILE_CACHE_URL={cache.group(1)} instead"
        )
    added = [flag for name, (flag, _) in COMPILER_FLAGS.items() if name not in flags]
    wanted = {**ALWAYS}
    if arguments.bf16:
        wanted |= BF16
        if getattr(arguments, "half_precision_backend", "xla") == "xla":
            wanted |= BF16_XLA
    if given.get(EXTRACT_ENV) == "1":
        wanted |= PRECOMPILE
    out = {name: value for name, (value, _) in wanted.items() if name not in given}
    if added:
        out["NEURON_CC_FLAGS"] = " ".join([flags, *added]).strip()
    return out


def cores(given: Mapping[str, str], devices: Path = Path("/sys/class/neuron_device")) -> int:
    """Workers on this host: NEURON_RT_NUM_CORES, else NEURON_RT_VISIBLE_CORES, else what the driver shows, else 1
    (no accelerator: tests)."""
    if given.get("NEURON_RT_NUM_CORES"):
        return int(given["NEURON_RT_NUM_CORES"])
    if given.get(VISIBLE_CORES):
        return len(numbers(given[VISIBLE_CORES]))
    return max(1, CORES_PER_DEVICE * len(list(devices.iterdir())) if devices.is_dir() else 1)


def numbers(text: str) -> list[int]:
    """The cores that NEURON_RT_VISIBLE_CORES names: "4", "0-3", "0-3,6". Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def own_core(lent: str, local_rank: int) -> str:
    """The core of a worker: the `local_rank`th of `lent`, which is NEURON_RT_VISIBLE_CORES ("4-5", "0,2-3", "").

    Without a range the workers count from 0. Raises ValueError where there are fewer cores than workers.
    """
    if not lent:
        return str(local_rank)
    found = numbers(lent)
    if local_rank >= len(found):
        raise ValueError(
            f"{VISIBLE_CORES}={lent} has {len(found)} cores, and this is worker {local_rank} (counted from 0): set "
            f"NEURON_RT_NUM_CORES to {len(found)}"
        )
    return str(found[local_rank])


def early_environment(who: Resources, given: Mapping[str, str]) -> dict[str, str]:
    """What must be there before torchrun starts its workers; a variable that the user has `given` is left alone."""
    wanted = {**ALWAYS}
    if len(who.hosts) > 1:
        wanted |= _own_name()
        if who.instance_type in EFA_INSTANCES:
            wanted |= EFA
    if given.get(PRECOMPILE_ENV) == "1":
        wanted |= PRECOMPILE
    return {name: value for name, (value, _) in wanted.items() if name not in given}


def _own_name() -> dict[str, tuple[str, str]]:
    """Every host of a job is called "aws", and collectives take processes on hosts of one name for neighbours: with
    several hosts, gethostname() is to say algo-1, algo-2 and so on, as AWS's own entrypoint sees to
    (deep-learning-containers 2.20.0, pytorch/training/common/start_with_right_hostname.sh)."""
    found = find_spec(HOST_NAME_MODULE)
    if found is None or not (found.origin or "").endswith(".so"):
        return {}
    return {"LD_PRELOAD": (str(found.origin), "SageMaker's training toolkit 4.8.3, mpi.py")}


def command(
    argv: list[str], given: Mapping[str, str], hosts: tuple[str, ...], host: str, device: str = "neuron"
) -> list[str]:
    """torchrun over all hosts of the job; behind neuron_parallel_compile where the job is to compile only."""
    workers, port = (cores(given), RENDEZVOUS_PORT) if device == "neuron" else (1, gloo.port(given))
    words = [sys.executable, "-u", "-m", "train.workers", f"--nproc_per_node={workers}"]
    if len(hosts) > 1:
        words += [f"--nnodes={len(hosts)}", f"--node_rank={hosts.index(host)}"]
        words += [f"--master_addr={hosts[0]}", f"--master_port={port}"]
    else:
        words += ONE_HOST
    words += ["-m", "train.run_clm", *argv]
    return ["neuron_parallel_compile", *words] if given.get(PRECOMPILE_ENV) == "1" else words


def device_of(argv: list[str]) -> str:
    """What --device says, which has to be known before the flags that the device adds can be read."""
    for word, following in zip(argv, [*argv[1:], ""]):  # noqa: B905 (3.10)
        if word == "--device" or word.startswith("--device="):
            return word.partition("=")[2] or following
    return "neuron"


def start_workers(argv: list[str]) -> None:
    """Become torchrun where there are to be several workers and this is none yet; otherwise return."""
    device = device_of(argv)
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        return
    who = read_training_input(Paths.from_environment()).resources
    if device != "neuron" and len(who.hosts) == 1:
        return
    words = command(argv, os.environ, who.ordered_hosts, who.current_host, device)
    print("launch:", " ".join(words), flush=True)
    sys.stdout.flush()
    more = early_environment(who, os.environ) if device == "neuron" else gloo.environment(who, os.environ)
    os.execvpe(words[0], words, {**os.environ, **more})  # noqa: S606 (no shell, on purpose)
