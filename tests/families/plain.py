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


class PlainTrainer(cpu.AnswerLossTrainer):
    compute_loss = Trainer.compute_loss
    prediction_step = Trainer.prediction_step


def trainer(**kwargs: Any) -> Trainer:
    return PlainTrainer(**kwargs)


if __name__ == "__main__":
    cpu.trainer = trainer
    sys.exit(run_clm.guarded(sys.argv[1:]))
