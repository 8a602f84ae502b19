"""Eight rows a step, as 8 x 1, 2 x 4 and 1 x 8: equal losses and gradients, whatever the batches hold.

    .venv-train/bin/python -m tests.chain.accumulation_equal

Rows have one to nine labels, so a mean over batches is another number. For a family with our own loss, for two with
upstream's, with label smoothing, and over epochs whose last step has fewer rows. The evaluation's loss does not
depend on its batches either. At the end the same comparison sees a mean of batches' means.
"""

import tempfile
import warnings

import numpy as np
import torch
from transformers import TrainingArguments, default_data_collator

from tests.chain.own_loss import model_of
from train.data import IGNORED
from train.devices.cpu import AnswerLossTrainer
from train.losses import STEP_TOKENS, label_count


class SomeRows:
    """21 rows of 12 columns; row i has 1 + i % 9 labels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.ids = rng.integers(3, 101, (21, 12))

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int):
        labels, mask = self.ids[index].copy(), np.ones(12, int)
        labels[: 10 - index % 9] = IGNORED
        mask[11:] = index % 2
        labels[11:] = labels[11:] if index % 2 else IGNORED
        return {"input_ids": self.ids[index], "attention_mask": mask, "labels": labels}


class BatchMeans(AnswerLossTrainer):
    """What Trainer did up to 4.45: each batch of an accumulation counts the same."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        tokens = label_count(inputs["labels"]) * self.args.gradient_accumulation_steps
        return super().compute_loss(model, {**inputs, STEP_TOKENS: tokens[None]}, *args, **kwargs)


def losses(family, batch, accumulation, kind=AnswerLossTrainer, **more):
    model = model_of(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        max_steps=7,
        logging_steps=1,
        learning_rate=1e-2,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        optim="sgd",
        **more,
    )
    rows = SomeRows()
    trainer = kind(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=default_data_collator
    )
    trainer.train()
    found = [(r["loss"], r["grad_norm"]) for r in trainer.state.log_history if "loss" in r]
    return np.array([*found, (trainer.evaluate()["eval_loss"], 0.0)])


def main() -> None:
    warnings.simplefilter("ignore")
    for family, more in (
        ("llama", {}),
        ("llama", {"label_smoothing_factor": 0.4}),
        ("granite", {}),
        ("cohere", {"label_smoothing_factor": 0.4}),
    ):
        whole = losses(family, 8, 1, **more)
        assert len(whole) == 8
        for batch, accumulation in ((2, 4), (1, 8)):
            gap = np.abs(losses(family, batch, accumulation, **more) - whole).max()
            assert gap < 2e-4, (family, batch, accumulation, gap)
            print(f"{family} {more}: {batch} x {accumulation} equals 8 x 1 within {gap:.0e}")
    gap = np.abs(losses("llama", 2, 4, BatchMeans) - losses("llama", 8, 1)).max()
    assert gap > 1e-2, gap
    print(f"means over batches would differ by {gap:.0e}")
    plain, soft = losses("llama", 8, 1), losses("llama", 8, 1, label_smoothing_factor=0.4)
    assert abs(plain[0] - soft[0]).max() > 1e-2
    print("label smoothing has an effect")


if __name__ == "__main__":
    main()
