"""TERM at random steps, resumed each time; the losses must be those of the run that nobody stopped, bit for bit.

    .venv-train/bin/python -m tests.chain.resume_rounds MODEL TRAIN_FILE ROUNDS SEED

All in one process, so that a round costs a second: all that a step depends on comes from the disk and the seed.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from train import run_clm

STEPS = 24
SENT: list[int] = []


class SignalAt(TrainerCallback):
    """Sends TERM to this very process at the steps in `at`."""

    at: ClassVar[set[int]] = set()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step in self.at:
            self.at.discard(state.global_step)
            os.kill(os.getpid(), signal.SIGTERM)
            SENT.append(state.global_step)


def train(model: str, data: str, base: Path) -> int:
    more = "--per_device_train_batch_size 4 --max_steps 24 --logging_steps 1 --learning_rate 5e-3 --block_size 24"
    fixed = "--report_to none --save_strategy no --optim adamw_torch --disable_tqdm true --device cpu --seed 7"
    return run_clm.main(
        [
            *("--model_name_or_path", model, "--train_file", data, *more.split(), *fixed.split()),
            *("--group_by_length", "true", "--save_total_limit", "2", "--gradient_accumulation_steps", "2"),
            *("--output_dir", str(base / "checkpoints"), "--export_dir", str(base / "model")),
            *("--metrics_dir", str(base / "metrics")),
        ]
    )


def losses(base: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (base / "metrics" / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def main(model: str, data: str, rounds: int, seed: int) -> None:
    original = CallbackHandler.__init__

    def with_signals(self, callbacks, *args, **kwargs):
        original(self, [*callbacks, SignalAt()], *args, **kwargs)

    CallbackHandler.__init__ = with_signals
    scratch = Path(tempfile.mkdtemp())
    try:
        assert train(model, data, scratch / "whole") == 0
        wanted = losses(scratch / "whole")
        assert len(wanted) == STEPS, wanted
        rng = random.Random(seed)
        for number in range(rounds):
            base = scratch / f"round-{number}"
            SignalAt.at = set(rng.sample(range(1, STEPS - 1), 3))
            stops = sorted(SignalAt.at)
            codes = []
            while not codes or codes[-1] != 0:
                codes.append(train(model, data, base))
                assert len(codes) < 6
            assert codes == [143, 143, 143, 0], (stops, codes)
            assert losses(base) == wanted, (stops, losses(base), wanted)
            weights = [(p / "model" / "model.safetensors").read_bytes() for p in (scratch / "whole", base)]
            assert weights[0] == weights[1], stops
            print(f"round {number}: TERM before the end of steps {stops}: {STEPS} losses and the weights are equal")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
