"""Seconds a training step on device cpu, against transformers' own Trainer on the same rows.

    make setup && .venv/bin/python benchmarks/training_step.py

The peer is `transformers.Trainer` with its default collator and the system's malloc: every row padded to block_size,
logits at every position. Ours is what `make demo` trains with. Both see SmolLM2-135M, the demo's rows, the same
batch size, learning rate and number format; arms alternate and each one's best round counts, since other load only
ever adds time. Losses differ in the rows' order alone, and are printed so that nobody need believe that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from containers.entrypoint import CPU_TUNABLES  # noqa: E402
from harness import assets  # noqa: E402
from harness.assets import datasets, models  # noqa: E402
from harness.paths import CACHE, python_of  # noqa: E402

PEER = """
import sys
from transformers import Trainer
from train import run_clm
from train.devices import cpu
cpu.trainer = lambda **given: Trainer(**given)
sys.exit(run_clm.main(sys.argv[1:]))
"""


def prepare(folder: Path) -> tuple[Path, Path]:
    """The demo's model directory and training rows."""
    demo = tomllib.loads((ROOT / "harness/runs/smollm2-sarcasm.toml").read_text(encoding="utf-8"))["data"]
    model = models.directory(assets.MODELS["smollm2-135m-instruct"], CACHE, print)
    rows = datasets.examples(assets.DATA_SETS[demo["id"]], CACHE, print)
    split = datasets.split(rows, demo["examples"], demo["seed"])
    return model, datasets.write_channels(split, demo["prompt"], demo["labels"], folder)["train"]


def run(arm: str, model: Path, rows: Path, steps: int) -> tuple[float, float]:
    """(seconds a step, mean training loss) of one process."""
    with tempfile.TemporaryDirectory() as scratch:
        given = {
            "device": "cpu",
            "model_name_or_path": model,
            "train_file": rows,
            "block_size": 64,
            "per_device_train_batch_size": 16,
            "max_steps": steps,
            "learning_rate": 1e-4,
            "bf16": True,
            "group_by_length": arm == "ours",  # changes nothing where every row has one width
            "save_strategy": "no",
            "report_to": "none",
            "output_dir": f"{scratch}/checkpoints",
            "export_dir": f"{scratch}/model",
            "metrics_dir": f"{scratch}/metrics",
        }
        argv = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        start = ["-m", "train.run_clm"] if arm == "ours" else ["-c", PEER]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        if arm == "ours":
            env["GLIBC_TUNABLES"] = CPU_TUNABLES
        done = subprocess.run(
            [python_of("train"), *start, *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{arm} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        metrics = json.loads(Path(scratch, "model", "manifest.json").read_text(encoding="utf-8"))["metrics"]
        return metrics["seconds"] / steps, metrics["train_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16, help="training steps of each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each arm")
    args = parser.parse_args()
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, rows = prepare(Path(folder))
        for i in range(args.rounds):
            for arm in ("ours", "peer"):
                seconds, loss = run(arm, model, rows, args.steps)
                best[arm] = min(seconds, best.get(arm, seconds))
                print(f"round {i + 1} {arm}: {seconds:.3f} s a step, mean loss {loss:.4f}", flush=True)
    print(f"transformers' Trainer takes {best['peer'] / best['ours']:.2f} times as long a step")


if __name__ == "__main__":
    main()
