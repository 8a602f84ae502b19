"""Device `cpu`: transformers' Trainer, with the number format chosen by what the processor is good at."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from train import attention, best, hosts, lora, packing
from train.arguments import LoraArguments
from train.devices.ignored import HELP, NeuronFlags, given
from train.health import require_finite, require_finite_weights
from train.losses import STEP_TOKENS, causal_model, is_proven, label_count, summed_loss
from train.metrics import Work
from train.order import Counted, CountedRows, EpochSampler, label_counts
from train.precision import MasterWeights
from train.trained import Trained

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
        hosts.join()
        with hosts.alone():
            super().__post_init__()


ARGUMENTS = CpuArguments


def choose_dtype(flags: set[str]) -> tuple[str, str]:
    """("bf16" | "fp32", reason). `flags` are the processor's, as /proc/cpuinfo lists them.

    Measured on two cores (docs/limits.md): bf16 is 2 times faster with AMX; without AMX or AVX512_BF16 it is
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
    arguments.dataloader_pin_memory = False  # is for CUDA
    arguments.remove_unused_columns = False  # it would drop what model.forward does not name, as step_tokens
    dtype, reason = choose_dtype(processor_flags())
    arguments.number_format = dtype if arguments.bf16 else "fp32"
    # Not by autocast: train/precision.py.
    asked, arguments.bf16 = arguments.bf16, False
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    if arguments.gradient_checkpointing and arguments.gradient_checkpointing_kwargs is None:
        # torch's older way gives no gradients where the embedding is frozen, as with LoRA.
        arguments.gradient_checkpointing_kwargs = {"use_reentrant": False}
    ignored = given(arguments)
    without = f"; without effect here: {', '.join(ignored)}" if ignored else ""
    if asked and dtype == "fp32":
        return arguments, f"bf16 was asked for; training in fp32: {reason}{without}"
    if asked:
        return arguments, f"training in bf16 (with weights in fp32 for the optimizer): {reason}{without}"
    return arguments, f"training in fp32, as asked{without}"


def load_model(name: str, arguments: TrainingArguments, **hub: Any) -> Any:
    """The model in the number format that `adapt` chose."""
    dtype = torch.bfloat16 if arguments.number_format == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(name, torch_dtype=dtype, **hub)


def add_adapters(model: Any, arguments: LoraArguments) -> tuple[Any, int]:
    """(the model with LoRA adapters, number of trained parameters)."""
    from peft import get_peft_model

    return lora.wrap(model, arguments, get_peft_model)


class AnswerLossTrainer(Trainer):
    """Trainer whose loss is divided by the labels of the whole optimizer step, with less arithmetic where proven.

    For the families of train/losses.py the loss is our own; all others take model.forward's. tests/chain compares
    both with transformers' own Trainer.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.workers = hosts.Workers()
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # compute_loss has divided already
        self.own_loss = is_proven(self.model)
        self.masters: MasterWeights | None = None
        self.accelerator.clip_grad_norm_ = self._clip
        # Rows and labels of the evaluation data, so that each batch can be weighted by its labels.
        self.evaluated = (0, 0)
        packing.keep_segments(self)

    def get_train_dataloader(self) -> Any:
        """Rows in an order that depends on seed and epoch alone, each with the number of labels of its step."""
        rows, batch = self.train_dataset, self.args.train_batch_size
        lengths = None
        if self.args.group_by_length:
            lengths = rows.lengths.tolist()
        order = EpochSampler(len(rows), lengths, batch, self.args.seed)
        workers = self.workers
        step_rows = batch * self.args.gradient_accumulation_steps * workers.size
        loader = DataLoader(
            CountedRows(rows),
            batch_size=batch,
            sampler=Counted(order, rows, step_rows, (workers.rank, workers.size)),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            drop_last=self.args.dataloader_drop_last,
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every row counts: dataloader_drop_last is for the shapes of training, and the plan sets it."""
        rows = eval_dataset if eval_dataset is not None else self.eval_dataset
        self.evaluated = (len(rows), max(1, int(label_counts(rows).sum())))
        asked, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = asked

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int) -> tuple[list[Any], None]:
        """The batches of the next step. Upstream's number for the last step of an epoch is wrong: it is made from the
        rows instead of the batches, and what is left over is never learned from."""
        return list(islice(epoch_iterator, self.args.gradient_accumulation_steps)), None

    def create_optimizer(self) -> Any:
        """Upstream's; for weights in bf16 it works on copies in fp32."""
        if self.optimizer is None:
            super().create_optimizer()
            trained = [p for p in self.model.parameters() if p.requires_grad]
            if any(p.dtype == torch.bfloat16 for p in trained):
                self.masters = MasterWeights(trained)
                self.masters.attach(self.optimizer)
        return self.optimizer

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """AdamW in one pass over the weights where this torch can do it on a processor (2.4 and later)."""
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if kind is torch.optim.AdamW and has_fused_adamw():
            kwargs["fused"] = True
        return kind, kwargs

    def _trained(self) -> list[Any]:
        """What the optimizer works on: parameters, or their copies in fp32."""
        if self.masters is not None:
            return list(self.masters.of.values())
        return [p for p in self.model.parameters() if p.requires_grad]

    def _clip(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        norm = torch.nn.utils.clip_grad_norm_(self._trained(), max_norm, norm_type)
        require_finite(self.state.global_step + 1, "the gradient's norm", float(norm))
        return norm

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Upstream's; a loss that is not finite ends the job before it reaches the weights."""
        loss = super().training_step(model, inputs)
        step = self.state.global_step + 1
        self.workers.average_(step, [loss])
        require_finite(step, "the loss", float(loss))
        if self.accelerator.sync_gradients:
            self.workers.average_(step, [p.grad for p in self._trained() if p.grad is not None])
        return loss

    def is_world_process_zero(self) -> bool:
        """The first host writes logs and checkpoints."""
        return self.workers.rank == 0

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        if lora.is_wrapped(self.model):
            lora.load(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, on the first host, and of weights that are numbers."""
        require_finite_weights(self.state.global_step, dict(self.model.named_parameters()))
        if self.workers.rank == 0:
            super()._save_checkpoint(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        tokens = inputs.pop(STEP_TOKENS, None)
        if tokens is None:
            loss = self._loss(model, inputs, max(1, int(label_count(inputs["labels"]))), 0.0)
        else:
            # Losses and gradients are averaged over workers.
            divisor = int(tokens[0]) / self.workers.size
            loss = self._loss(model, inputs, divisor, self.args.label_smoothing_factor)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _loss(self, model: Any, inputs: dict[str, Any], divisor: float, smoothing: float) -> Any:
        """The losses of all labels of a batch, added up and divided."""
        if self.own_loss:
            return summed_loss(model, inputs, divisor, smoothing)
        outputs = model(**packing.attention(inputs, model.dtype))
        loss = self.label_smoother(outputs, inputs["labels"], shift_labels=True) if smoothing else outputs.loss
        return loss * (label_count(inputs["labels"]) / divisor)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, None, None]:
        """The loss alone, without label smoothing; Trainer's mean over rows becomes one over labels."""
        rows, labels = self.evaluated
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self._loss(model, inputs, labels * inputs["labels"].shape[0] / rows, 0.0)
        return loss.detach(), None, None


def has_fused_adamw() -> bool:
    """Whether this torch's AdamW has one pass over the weights for processors."""
    try:
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
    except RuntimeError:
        return False
    return True


def trainer(**kwargs: Any) -> Trainer:
    """What run_clm trains with on this device."""
    attention.install()
    return AnswerLossTrainer(**kwargs)


def number_format(arguments: Any) -> str:
    """bf16 or fp32, for the manifest and for what a checkpoint may be resumed by."""
    return str(arguments.number_format)


def work(trainer: Any, rows: Any, flops: float) -> Work:
    """What a step does; the processor's peak is a matrix product's speed in this number format, measured now."""
    arguments, workers = trainer.args, trainer.workers
    positions = arguments.train_batch_size * arguments.gradient_accumulation_steps * workers.size * rows.block_size
    peak = peak_flops(torch.bfloat16 if arguments.number_format == "bf16" else torch.float32)
    return Work(positions * rows.filled, positions, flops, peak * workers.size)


def peak_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 8) -> float:
    """Operations a second of the best of a few square matrix products."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best_seconds = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        torch.mm(a, b)
        best_seconds = min(best_seconds, time.perf_counter() - begin)
    return 2.0 * size**3 / best_seconds


def finished(trainer: Any) -> Trained | None:
    """What the artifact is made of; None on every host but the first.

    The weights are those of the best checkpoint where one is asked for (train/best.py).
    """
    workers, masters = trainer.workers, trainer.masters
    if workers.rank != 0:
        return None
    if chosen := best.checkpoint_of(trainer):
        trainer._load_from_checkpoint(str(chosen))
    elif masters is not None:
        masters.into_model()
    model = causal_model(trainer.model)
    original = model.config, model.generation_config
    adapters = (getattr(trainer.model, "peft_config", None) or {}).get("default")
    return Trained(*original, trainer.model.state_dict().items, adapters)


def compiling_only() -> bool:
    """Nothing is compiled here."""
    return False


def compilations() -> None:
    """Nothing is compiled here."""
