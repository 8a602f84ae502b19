"""Device cpu's trainer against transformers' own: the same losses, step by step, and the same evaluation loss.

.venv-train/bin/python -m tests.chain.losses_equal MODEL TRAIN_FILE
"""

import sys
import tempfile
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from containers.rows import Reading
from train.data import Options, from_files, prepare
from train.devices.cpu import AnswerLossTrainer
from train.order import EpochSampler


class Plain(Trainer):
    """transformers' Trainer as it is, but for the order of the rows."""

    def _get_train_sampler(self):
        rows = self.train_dataset
        lengths = rows.lengths.tolist() if self.args.group_by_length else None
        return EpochSampler(len(rows), lengths, self.args.train_batch_size, self.args.seed)


def losses(kind: type, model_dir: str, data: str, grouped: bool) -> list[tuple[float, float]]:
    set_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    reading = Reading()
    rows = prepare(from_files([Path(data)], reading, None), None, tokenizer, Options(24), [reading, reading]).train
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        max_steps=12,
        logging_steps=1,
        learning_rate=3e-3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        group_by_length=grouped,
        report_to="none",
        remove_unused_columns=False,
        save_strategy="no",
        optim="adamw_torch",
        disable_tqdm=True,
    )
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=default_data_collator,
    )
    trainer.train()
    steps = [(r["loss"], r["grad_norm"]) for r in trainer.state.log_history if "loss" in r]
    return [*steps, (trainer.evaluate()["eval_loss"], 0.0)]


def main(model_dir: str, data: str) -> None:
    for grouped in (False, True):
        ours, theirs = (losses(kind, model_dir, data, grouped) for kind in (AnswerLossTrainer, Plain))
        assert len(ours) == 13
        worst = max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
        assert worst < 2e-3, (grouped, worst, ours, theirs)
        assert ours[0][0] - ours[11][0] > 1, "it learns, so equal losses mean something"
        print(f"group_by_length {grouped}: 12 steps and the evaluation agree within {worst:.1e}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
