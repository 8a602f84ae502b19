"""Host memory of a job's start and end on a model of 1.1 B random parameters, in units of its weights in bf16.

`NXD_SOURCE=CHECKOUT .venv/bin/python -m benchmarks.host_memory [--json]`: the real optimum-neuron and the real
neuronx-distributed load the model on two processes of XLA:CPU (tests/nxd/cores.py), with tensor_parallel_size 2;
then its shards are put together and exported. Compiling dies of host memory before device memory on hosts of 16 and
32 GB (docs/estimates.md), so what our side takes beyond what it has to is bounded:

- loading: above the rank's own shard in the dtype that it trains in, at most 1.0 in rank 0 and 0.2 in the others;
- putting shards together and exporting, without and with LoRA: at most 0.5.

Anonymous memory counts (RssAnon of /proc/self/status): pages of mapped files can be dropped by the kernel, and a
container is not killed for them. Without NXD_SOURCE the loading is left out, and said to be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STARTS = ("model", "pickled")  # of safetensors, and of pytorch_model.bin, which the first rank converts
ENDS = ("end", "end LoRA", "end one core")
MOST = {f"load {start} rank {rank}": most for start in STARTS for rank, most in ((0, 1.0), (1, 0.2))}
MOST |= dict.fromkeys(ENDS, 0.5)


def python(*words: str, **env: str) -> list[dict[str, Any]]:
    """The JSON lines that a module of this folder prints in .venv-neuron."""
    path = f"{ROOT / 'tests' / 'neuron' / 'shim'}:{ROOT}"
    given = {"PYTHONPATH": path, "PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    done = subprocess.run(
        [ROOT / ".venv-neuron" / "bin" / "python", "-m", "benchmarks.host_memory_job", *words],
        cwd=ROOT,
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> int:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="host-memory-") as folder:
        weights = python("model", folder)[0]["bytes"]
        if os.environ.get("NXD_SOURCE"):
            for start in STARTS:
                for row in python(f"load {start}", folder):
                    found[f"load {start} rank {row['rank']}"] = row["above"] / weights
        else:
            print("loading is left out: NXD_SOURCE names no checkout of neuronx-distributed", file=sys.stderr)
        python("cut", folder)
        for kind in ENDS:
            found[kind] = python(kind, folder)[0]["above"] / weights
    passed = all(found[name] <= MOST[name] for name in found)
    if "--json" in sys.argv:
        print(json.dumps({"weights_bytes": weights, **found, "pass": passed}))
    else:
        for name, ratio in found.items():
            print(f"{name:20s} {ratio:5.2f} times the bf16 weights ({weights / 1e9:.2f} GB); at most {MOST[name]}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
