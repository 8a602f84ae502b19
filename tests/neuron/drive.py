"""run_clm on device neuron with its compilations counted, as a worker of torchrun, in .venv-neuron.

    python -m tests.neuron.drive COUNTS MUTANT ARGUMENTS…          tests.neuron.forge calls `main` with the same

COUNTS gets one line for each step and each batch of an evaluation. MUTANT is `none`, or what to break on purpose.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch_xla.debug.metrics as met
from optimum.neuron import NeuronTrainer
from transformers import Trainer, TrainerCallback

from train import run_clm, signature
from train.devices import neuron
from train.losses import STEP_TOKENS, label_count
from train.packing import Rows


class CountCompilations(TrainerCallback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, event: str, state: Any) -> None:
        data = met.metric_data("CompileTime")
        with self.path.open("a") as handle:
            handle.write(json.dumps([event, state.global_step, data[0] if data else 0]) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.note("step", state)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.note("evaluation", state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.note("evaluated", state)


def break_on_purpose(mutant: str) -> None:  # noqa: C901 (a list)
    """Each of these is a mistake that device neuron could have, most of them upstream's; a test has to see it."""
    trainer = neuron.StaticTrainer
    if mutant == "learning_rate":
        adapt = neuron.adapt

        def faster(arguments: Any) -> Any:
            arguments.learning_rate *= 1.1
            return adapt(arguments)

        neuron.adapt = faster
    elif mutant == "mask":
        row = Rows.__getitem__

        def unmasked(self: Any, index: int) -> Any:
            made = row(self, index)
            return {**made, "labels": np.where(made["attention_mask"] == 1, made["input_ids"], made["labels"])}

        Rows.__getitem__ = unmasked
    elif mutant == "attention":  # packed rows with a causal mask only
        neuron.packing.attention = lambda inputs, dtype: {k: v for k, v in inputs.items() if k != "segment_ids"}
    elif mutant in ("accumulation", "equal_microbatches"):  # upstream's own ways: sums, or means, of batches' means
        ours, share = trainer.compute_loss, mutant == "equal_microbatches"

        def by_batches(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            if return_outputs:
                return ours(self, model, inputs, return_outputs)
            inputs = {k: v for k, v in inputs.items() if k != STEP_TOKENS}
            loss = NeuronTrainer.compute_loss(self, model, inputs, label_count(inputs["labels"]))
            return loss / self.args.gradient_accumulation_steps if share else loss

        trainer.compute_loss = by_batches
    elif mutant == "order":  # the same order in every epoch, as upstream has with several workers
        loader = trainer.get_train_dataloader

        def deaf(self: Any) -> Any:
            found = loader(self)
            del found.set_epoch
            return found

        trainer.get_train_dataloader = deaf
    elif mutant == "evaluation":  # upstream's own way: TypeError
        trainer.compute_loss = NeuronTrainer.compute_loss
    elif mutant == "equal_batches":  # upstream's own way: every batch counts the same, however few rows it has
        trainer._evaluation_loss = plain_evaluation_loss
    elif mutant == "repeated_rows":  # torch's own way: the first rows once more, and they count again
        neuron.FullBatches.__getitem__ = lambda self, index: self.rows[index % len(self.rows)]
    elif mutant == "save":
        del trainer.save_model
    elif mutant == "resume":
        del trainer._save_checkpoint
    elif mutant == "epoch_end":  # upstream's own way: one more sum of losses
        del trainer._maybe_log_save_evaluate
    elif mutant in ("last_batch", "short_batch"):  # transformers' own way: a shorter last batch in evaluation
        neuron.FullBatches.__init__ = keep_length
        adapt_before = neuron.adapt

        def keep_last(arguments: Any) -> Any:
            arguments, reason = adapt_before(arguments)
            arguments.dataloader_drop_last = False
            return arguments, reason

        neuron.adapt = keep_last
        if mutant == "short_batch":
            signature.check = lambda *args: None
    elif mutant != "none":
        raise ValueError(mutant)


def plain_evaluation_loss(self: Any, model: Any, inputs: Any) -> Any:
    return Trainer.compute_loss(self, model, inputs, return_outputs=True)


def keep_length(self: Any, rows: Any, batch: int) -> None:
    self.rows, self.length = rows, len(rows)


def main(words: list[str]) -> int:
    counts, mutant, *argv = words
    break_on_purpose(mutant)
    init = neuron.StaticTrainer.__init__

    def counting(self: Any, **kwargs: Any) -> None:
        init(self, **{**kwargs, "callbacks": [*kwargs["callbacks"], CountCompilations(Path(counts))]})

    neuron.StaticTrainer.__init__ = counting
    return run_clm.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
