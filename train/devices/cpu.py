"""Device `cpu`: transformers' Trainer, with the number format chosen by what the processor is good at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from train import packing
from train.data import IGNORED
from train.devices.ignored import HELP, NeuronFlags, given

STATIC_SHAPES = False


@dataclass
class CpuArguments(NeuronFlags, TrainingArguments):
    """transformers' arguments; flags that only Trainium has are accepted, checked and without effect."""

    # transformers' choices and upstream's for Trainium; none of them matters on this device.
    half_precision_backend: str = field(
        default="auto", metadata={"help": HELP["help"], "choices": ["auto", "apex", "cpu_amp", "xla", "amp"]}
    )

    def __post_init__(self) -> None:
        self.half_precision_backend = "auto"
        super().__post_init__()


ARGUMENTS = CpuArguments


def choose_dtype(flags: set[str]) -> tuple[str, str]:
    """("bf16" | "fp32", reason). `flags` are the processor's, as /proc/cpuinfo lists them.

    Measured on two cores (docs/status.md): bf16 is 2 times faster with AMX; without AMX or AVX512_BF16 it is
    emulated and slower than fp32.
    """
    if "amx_bf16" in flags:
        return "bf16", "this processor has AMX (amx_bf16)"
    if "avx512_bf16" in flags:
        return "bf16", "this processor has AVX512_BF16"
    return "fp32", "this processor has neither amx_bf16 nor avx512_bf16, where bf16 is emulated"


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The flags of the first processor; empty where the file has none."""
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []:
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def adapt(arguments: TrainingArguments) -> tuple[TrainingArguments, str]:
    """The arguments as they run here, and why they differ from what was asked for."""
    dtype, reason = choose_dtype(processor_flags())
    ignored = given(arguments)
    without = f"; without effect here: {', '.join(ignored)}" if ignored else ""
    if arguments.bf16 and dtype == "fp32":
        arguments.bf16 = False
        return arguments, f"bf16 was asked for; training in fp32: {reason}{without}"
    if arguments.bf16:
        return arguments, f"training in bf16 (autocast, fp32 weights): {reason}{without}"
    return arguments, f"training in fp32, as asked{without}"


def load_model(name: str, arguments: TrainingArguments, **hub: Any) -> Any:
    """The model in fp32; bf16 is autocast's."""
    return AutoModelForCausalLM.from_pretrained(name, torch_dtype="float32", **hub)


class EpochSampler(torch.utils.data.Sampler[int]):
    """A permutation by seed and epoch; with `lengths`, rows of like length come together (group_by_length)."""

    def __init__(self, rows: int, lengths: list[int] | None, batch: int, seed: int) -> None:
        self.rows, self.lengths, self.batch, self.seed, self.epoch = rows, lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.lengths is None:
            return iter(torch.randperm(self.rows, generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class AnswerLossTrainer(Trainer):
    """The same losses as Trainer's with less arithmetic: tests/chain/test_losses.py compares the two.

    Logits are computed only where there is a label: fine-tuning on answers has labels on a few tokens of a row,
    while the output layer is a fifth of a small model. Columns that are padding in every row of a batch are left
    out: rows are right padded and causal attention never looks at them.
    """

    def _get_train_sampler(self) -> Any:
        """An order that depends on seed and epoch alone, so that a resumed run goes on with the same rows."""
        rows = self.train_dataset
        lengths = rows.lengths.tolist() if self.args.group_by_length else None
        return EpochSampler(len(rows), lengths, self.args.train_batch_size, self.args.seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every row counts: dataloader_drop_last is for the shapes of training, and the plan sets it."""
        asked, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = asked

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        width = int(inputs["attention_mask"].sum(dim=1).max())
        labels = inputs["labels"][:, 1:width]
        rest = {k: v[:, :width] for k, v in inputs.items() if k != "labels"}
        hidden = model.get_decoder()(**packing.attention(rest, model.dtype))[0][:, :-1]
        wanted = labels != IGNORED
        logits = model.get_output_embeddings()(hidden[wanted]).float()
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = torch.nn.functional.cross_entropy(logits, labels[wanted], reduction=reduction)
        if num_items_in_batch is not None:
            loss = loss / num_items_in_batch
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, None, None]:
        """Evaluation needs the loss alone."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def trainer(**kwargs: Any) -> Trainer:
    """What run_clm trains with on this device."""
    return AnswerLossTrainer(**kwargs)


def finished(trainer: Any) -> Any:
    """The trained model; on other devices it may have to be fetched, and only one worker has it."""
    return trainer.model


def compiling_only() -> bool:
    """Nothing is compiled here."""
    return False


def compilations() -> None:
    """Nothing is compiled here."""
