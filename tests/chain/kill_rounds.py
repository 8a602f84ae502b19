"""KILL at random steps, resumed each time; losses and weights must be those of the run that nobody killed.

    .venv-train/bin/python -m tests.chain.kill_rounds MODEL TRAIN_FILE SEED [KILLS [full|packed|lora|bf16 ...]]

Each attempt is a fork of this process, which has imported everything and started nothing of torch's threads: a round
costs a second. A child kills itself at the begin of a step or in the middle of writing a checkpoint. A checkpoint is
written after every step, so that a kill costs one step at most.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import ClassVar

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from train import run_clm

STEPS = 24
KINDS = {
    "full": (),
    "packed": ("--packing", "true"),
    "lora": ("--use_peft", "true", "--lora_r", "4", "--lora_dropout", "0.1"),
    "bf16": ("--bf16", "true", "--use_peft", "true", "--lora_r", "4", "--packing", "true"),
}


class KillAt(TrainerCallback):
    """KILL of this very process at the begin of step `at`, or while its checkpoint is written."""

    at: ClassVar[int] = -1
    inside: ClassVar[bool] = False

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.at and not self.inside:
            os.kill(os.getpid(), signal.SIGKILL)
        if state.global_step + 1 == self.at and self.inside:
            torch.save = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)


def train(model: str, data: str, base: Path, more: tuple[str, ...]) -> int:
    numbers = "--per_device_train_batch_size 4 --max_steps 24 --logging_steps 1 --learning_rate 5e-3 --block_size 24"
    fixed = "--report_to none --save_strategy steps --save_steps 1 --optim adamw_torch --disable_tqdm true"
    return run_clm.main(
        [
            *("--model_name_or_path", model, "--train_file", data, *numbers.split(), *fixed.split(), *more),
            *("--device", "cpu", "--seed", "7", "--save_total_limit", "2", "--gradient_accumulation_steps", "2"),
            *("--output_dir", str(base / "checkpoints"), "--export_dir", str(base / "model")),
            *("--metrics_dir", str(base / "metrics")),
        ]
    )


def forked(base: Path, at: int, inside: bool, *words) -> int:
    """The exit code of a child that trains; 137 where it was killed."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        log = os.open(base.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        KillAt.at, KillAt.inside = at, inside
        torch.set_num_threads(1)
        code = 1
        try:
            code = train(*words)
        except BaseException:  # noqa: BLE001 (shown; the code is 1)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def losses(base: Path) -> dict[int, tuple[float, float]]:
    rows = [json.loads(line) for line in (base / "metrics" / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def main(model: str, data: str, seed: int, kills: int, kinds: list[str]) -> None:
    original = CallbackHandler.__init__

    def with_kills(self, callbacks, *args, **kwargs):
        original(self, [*callbacks, KillAt()], *args, **kwargs)

    CallbackHandler.__init__ = with_kills
    scratch = Path(tempfile.mkdtemp())
    rng = random.Random(seed)
    try:
        for kind in kinds:
            whole, base = scratch / f"{kind}-whole", scratch / kind
            assert forked(whole, -1, False, model, data, whole, KINDS[kind]) == 0, (scratch / kind).read_text()
            at = sorted(rng.sample(range(2, STEPS), kills))
            moments = [(step, rng.random() < 0.5) for step in at]
            for step, inside in moments:
                code = forked(base, step, inside, model, data, base, KINDS[kind])
                assert code == -signal.SIGKILL, (step, inside, code, base.with_suffix(".log").read_text()[-2000:])
            assert forked(base, -1, False, model, data, base, KINDS[kind]) == 0
            said = base.with_suffix(".log").read_text()
            assert said.count("resuming from checkpoint-") == kills, said[-3000:]
            wanted = losses(whole)
            assert len(wanted) == STEPS and wanted[1][0] - wanted[STEPS][0] > 0.2, wanted
            assert losses(base) == wanted, (moments, losses(base), wanted)
            for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
                files = [p / "model" / name for p in (whole, base)]
                assert files[0].exists() == files[1].exists()
                assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes(), name
            print(f"{kind}: KILL at {moments}: {STEPS} losses and the weights are equal", flush=True)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    more = sys.argv[4:] or ["10"]
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(more[0]), more[1:] or list(KINDS))
