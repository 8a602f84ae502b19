"""What the API costs: the demo by direct call and on `--platform local`, one after the other.

    make setup && .venv/bin/python benchmarks/local_platform.py

Same run file, same seed, same machine: the arms differ in how the requests reach the code that carries them out. By
direct call it is a function; on platform `local` it is boto3, a server process, uploads to S3, the artifact's archive
unpacked again for the endpoint. Each call is timed from outside, start and end of the server included; each run lies
in a directory of its own, which is deleted. Steps are timed by the run itself (result.json); the trainer's loop and
the model's answers stand by themselves, because there the processor's load decides and not the API. With `--rounds 2`
and more the arms change places every round, and the medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness import assets  # noqa: E402
from harness.assets import datasets, models  # noqa: E402
from harness.paths import CACHE  # noqa: E402

ARMS = {"direct": [], "local": ["--platform", "local"]}
DEMO = ROOT / "harness" / "runs" / "smollm2-sarcasm.toml"


def run(arm: str, run_file: Path) -> dict[str, float]:
    """Seconds of one call by step; `rest` is what is in no step: imports, checks, the server's start and end."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "harness", "run", str(run_file), "--json", *ARMS[arm]]
        began = time.monotonic()
        done = subprocess.run(
            words, cwd=folder, env=_environment(folder), stdout=subprocess.PIPE, text=True, check=True
        )
        call = time.monotonic() - began
        result = json.loads(done.stdout)
    steps: dict[str, float] = result["seconds"]
    steps.pop("total")
    steps["rest"] = call - sum(steps.values())
    loop = result["training"]["seconds"]
    model = loop + steps["evaluate_base"] + steps["evaluate_tuned"]
    around = {"trainer's loop": loop, "train, around it": steps.pop("train") - loop}
    return {**around, **steps, "the whole call": call, "without the model": call - model}


def _environment(folder: str) -> dict[str, str]:
    import os

    kept = {k: v for k, v in os.environ.items() if k not in ("EXECUTOR", "HARNESS_RUNS_DIR")}
    return {**kept, "PYTHONPATH": str(ROOT), "TMPDIR": folder}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--run-file", type=Path, default=DEMO)
    args = parser.parse_args()
    # Fetched before the clock starts, so that neither arm pays for the other.
    models.directory(assets.MODELS["smollm2-135m-instruct"], CACHE, print)
    datasets.examples(assets.DATA_SETS["sarcasm"], CACHE, print)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for number in range(args.rounds):
        for arm in list(ARMS) if number % 2 == 0 else reversed(ARMS):
            found[arm].append(run(arm, args.run_file.absolute()))
            print(f"{arm}: {found[arm][-1]['the whole call']:.1f} s", file=sys.stderr)
    rows = {arm: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for arm, runs in found.items()}
    print(f"{'seconds':<18}{'direct':>9}{'local':>9}{'more':>9}")
    for name in rows["direct"]:
        here, there = rows["direct"][name], rows["local"][name]
        print(f"{name:<18}{here:>9.1f}{there:>9.1f}{there - here:>+9.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
