"""run_clm on device cpu with transformers' own loss: `python -m tests.families.plain ARGUMENTS…` in .venv-neuron.

The reference for every family: device cpu's own loss takes a short way that not every family has. Its order of rows
stays, since it is the one that device neuron has as well.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import Trainer

from train import run_clm
from train.devices import cpu
from train.losses import STEP_TOKENS


class PlainTrainer(cpu.AnswerLossTrainer):
    prediction_step = Trainer.prediction_step

    def compute_loss(self, model: Any, inputs: Any, *given: Any, **more: Any) -> Any:
        """The model's own mean over a batch, which is the step where nothing is accumulated."""
        plain = {name: value for name, value in inputs.items() if name != STEP_TOKENS}
        return Trainer.compute_loss(self, model, plain, *given, **more)


def trainer(**kwargs: Any) -> Trainer:
    return PlainTrainer(**kwargs)


if __name__ == "__main__":
    cpu.trainer = trainer
    sys.exit(run_clm.guarded(sys.argv[1:]))
