"""Device `neuron`: optimum-neuron 0.0.28's NeuronTrainer on Trainium. The only file that knows torch_xla and optimum.

What that version gets wrong is put right here, each with its reason; docs/internals/neuron-training.md has the
evidence: evaluation raises TypeError; a job with tensor parallelism takes its loss over padding and prompts, too; the
logged loss and the gradient are multiplied by the accumulation, and each batch counts the same, however many labels
it has; with several workers every epoch has one order of rows, whatever --seed says; after the first checkpoint
nothing is learned any more, and to resume from it raises TypeError.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch_xla._internal.neuron as torch_xla_neuron
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as met
from optimum.neuron import NeuronTrainer, NeuronTrainingArguments
from optimum.neuron.distributed import lazy_load_for_parallelism, parallel_layers
from optimum.neuron.utils import misc
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

from train import best, lora, packing, parallel
from train.arguments import LoraArguments
from train.consolidate import opened
from train.data import IGNORED
from train.export import save
from train.health import require_finite, require_finite_weights
from train.launch import EXTRACT_ENV, LENT, PEAK_FLOPS, VISIBLE_CORES, environment, own_core
from train.losses import STEP_TOKENS, causal_model, label_count
from train.metrics import Work
from train.order import Counted, CountedRows, EpochSampler, label_counts
from train.signature import Layout, SignatureError, family_problems, layout_problems
from train.trained import Trained, shell, weights

STATIC_SHAPES = True
PRECOMPILE_STEPS = 12  # 10 to 15 reach every graph of a step: Neuron SDK, pytorch-neuron-parallel-compile.rst


@dataclasses.dataclass
class NeuronArguments(NeuronTrainingArguments):
    """Upstream's arguments. Making them starts XLA, so the environment is put in place before."""

    def __post_init__(self) -> None:
        try:
            os.environ.update(environment(self, os.environ))
            own_core(LENT, int(os.environ.get("LOCAL_RANK", "0")))
        except ValueError as error:
            raise SignatureError(str(error)) from None
        if problems := layout_problems(Layout.of(self, STATIC_SHAPES)):
            raise SignatureError("\n".join(problems))
        torch_xla_neuron.initialize_env = set_own_core
        super().__post_init__()


def set_own_core(local_rank: int) -> None:
    """This worker's core among those that the container was lent.

    torch_xla 2.1.0 takes the worker's number for it (_internal/neuron.py, initialize_env): of a container that was
    lent the cores 4-5 of a host, the workers would take 0 and 1, perhaps another container's.
    """
    os.environ["NEURON_PJRT_PROCESS_INDEX"] = str(local_rank)
    os.environ[VISIBLE_CORES] = own_core(LENT, local_rank)


ARGUMENTS = NeuronArguments


def compiling_only() -> bool:
    """Inside neuron_parallel_compile's trial run: nothing is really computed, every output is invalid."""
    return os.environ.get(EXTRACT_ENV) == "1"


def compilations() -> int:
    """Graphs compiled so far in this process; one that the compile cache had counts, too."""
    data = met.metric_data("CompileTime")
    return int(data[0]) if data else 0


def adapt(arguments: Any) -> tuple[Any, str]:
    """The arguments as they run here, and why they differ from what was asked for."""
    arguments.dataloader_drop_last = True  # a shorter last batch is one more graph, and hangs several workers
    arguments.dataloader_pin_memory = False  # is for CUDA
    arguments.prediction_loss_only = True  # logits would be moved to the host, batch by batch
    arguments.skip_cache_push = "CUSTOM_CACHE_REPO" not in os.environ  # the public repository is not ours to write
    arguments.remove_unused_columns = False  # it would drop what model.forward does not name, as step_tokens
    notes = ["incomplete steps are left out"]
    if arguments.group_by_length:
        arguments.group_by_length = False
        notes.append("group_by_length does nothing, since every row has one length")
    if arguments.pipeline_parallel_size > 1 and arguments.gradient_accumulation_steps > 1:
        notes.append("each microbatch of the pipeline counts the same, however many labels it has")
    if compiling_only():
        arguments.max_steps = max(PRECOMPILE_STEPS, int(arguments.logging_steps) + 2)
        arguments.save_strategy, arguments.eval_strategy = "no", "no"  # type: ignore[assignment, unused-ignore]
        notes.append(f"compiling only: {arguments.max_steps} steps, nothing is exported")
    sizes = f"TP {arguments.tensor_parallel_size}, PP {arguments.pipeline_parallel_size}"
    kind = f"bf16 ({arguments.half_precision_backend})" if arguments.bf16 else "fp32"
    cache = os.environ.get("NEURON_COMPILE_CACHE_URL", "/var/tmp/neuron-compile-cache")  # noqa: S108 (the SDK's)
    return arguments, f"{kind}, {sizes}, compile cache {cache}; {'; '.join(notes)}"


def load_model(name: str, arguments: Any, **hub: Any) -> Any:
    """The model with eager attention: sdpa asks the device for values while the mask is made. With TP or PP the
    weights stay in their files until each worker knows its part."""
    problems, unknown = family_problems(Layout.of(arguments, STATIC_SHAPES), AutoConfig.from_pretrained(name, **hub))
    if problems:
        raise SignatureError("\n".join(problems))
    if unknown:
        print(unknown, flush=True)
    misc.convert_checkpoint_to_safetensors = converted_once_a_host
    sizes = (arguments.tensor_parallel_size, arguments.pipeline_parallel_size)
    with lazy_load_for_parallelism(*sizes):
        return AutoModelForCausalLM.from_pretrained(name, torch_dtype="float32", attn_implementation="eager", **hub)


_convert, _load = misc.convert_checkpoint_to_safetensors, torch.load


def converted_once_a_host(*args: Any, **kwargs: Any) -> Any:
    """Upstream's conversion of pytorch_model.bin, which TP and PP need, with every worker waiting for it.

    Upstream converts on the first worker of the job and lets the others open the file at once, which is not there yet
    (utils/misc.py), and on other hosts never is.
    """
    if xm.get_local_ordinal() == 0:
        known, read = torch.distributed.is_initialized, torch.load
        torch.distributed.is_initialized = lambda: False  # on its own, whichever host this is
        torch.load = _load_mapped
        try:
            _convert(*args, **kwargs)
        finally:
            torch.distributed.is_initialized, torch.load = known, read
    xm.rendezvous("pytorch_model.bin is converted on every host")
    return _convert(*args, **kwargs)  # there now: the path


def _load_mapped(path: Any, **kwargs: Any) -> Any:
    """torch.load that maps the file: upstream reads it whole, and copies it once more to write it. A file from before
    torch 1.6 is no archive and has to be read."""
    return _load(str(path), mmap=zipfile.is_zipfile(path), **kwargs)


def add_adapters(model: Any, arguments: LoraArguments) -> tuple[Any, int]:
    """(the model with LoRA adapters that upstream can cut and save, number of trained parameters)."""
    from optimum.neuron.utils.peft_utils import get_peft_model

    return lora.wrap(model, arguments, get_peft_model)


# What upstream puts in the place of torch's cross entropy where the vocabulary is cut into parts.
_every_position = parallel_layers.safe_parallel_cross_entropy


def masked_cross_entropy(logits: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's vocabulary-parallel loss without the ignored positions, as torch's cross entropy leaves them out.

    neuronx-distributed 0.9 has no ignore_index: a label of -100 is in no worker's part, so its loss is the whole
    log-sum-exp, and upstream averages it in. With answers a tenth of a row, nine tenths of the gradient are wrong.
    """
    reduction = kwargs.pop("reduction", "mean")
    kept = labels != kwargs.pop("ignore_index", IGNORED)
    losses = _every_position(logits, labels * kept, *args, reduction="none", **kwargs) * kept
    if reduction == "none":
        return losses
    # A microbatch of filling rows only has no labels: its loss is 0.
    return losses.sum() / kept.sum().clamp(min=1) if reduction == "mean" else losses.sum()


class EpochShard(DistributedSampler[Any]):
    """One data-parallel worker's part of the cpu device's order: by seed and epoch alone.

    A DistributedSampler, because upstream replaces every other kind by one with the seed 0. Whole optimizer steps
    only: upstream goes on with a step in the next epoch, which its number of labels could not know.
    """

    def __init__(self, rows: Any, replicas: int, rank: int, order: Counted) -> None:
        super().__init__(rows, num_replicas=replicas, rank=rank, drop_last=True)
        self.order = order
        self.total_size = len(rows) // order.step_rows * order.step_rows
        self.num_samples = self.total_size // replicas

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.order.set_epoch(self.epoch)
        return iter(list(self.order)[: self.total_size][self.rank :: self.num_replicas])


class FullBatches(torch.utils.data.Dataset[Any]):
    """Rows filled up to a whole number of batches with rows that have no labels: evaluation leaves no row out."""

    def __init__(self, rows: Any, batch: int) -> None:
        self.rows, self.length = rows, -(-len(rows) // batch) * batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index % len(self.rows)]
        return row if index < len(self.rows) else {**row, "labels": row["labels"] * 0 + IGNORED}


class StaticTrainer(NeuronTrainer):
    """NeuronTrainer that evaluates, resumes, orders its rows by seed and epoch, and reports the loss per step."""

    optimizer: Any

    def __init__(self, **kwargs: Any) -> None:
        model = causal_model(kwargs["model"])
        # Both are changed by parallelisation: the vocabulary becomes one worker's part.
        self.original = (copy.deepcopy(model.config), copy.deepcopy(model.generation_config))
        self.adapters = (getattr(kwargs["model"], "peft_config", None) or {}).get("default")
        super().__init__(**kwargs)
        # Upstream means its accelerator to divide by the accumulation and never tells it the number, so gradients and
        # logged losses would be sums over the batches.
        if self.accelerator.gradient_accumulation_steps != 1:
            raise RuntimeError("optimum-neuron divides by the accumulation itself: this is not version 0.0.28")
        self.takes_divisor = bool(getattr(self, "model_accepts_loss_kwargs"))  # noqa: B009 (untyped upstream)
        # compute_loss has divided already; a pipeline's loss upstream divides by the accumulation.
        self.model_accepts_loss_kwargs = True
        packing.keep_segments(self)
        self.evaluation_scale = 1.0
        self.handled_step = 0

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        # Upstream takes the newest directory of output_dir, torn or of another run, while it parses the arguments.
        self.args.mp_plugin.checkpoint_dir = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        # The first moment at which model, optimizer and schedule are the ones that the loop goes on with; what a
        # checkpoint says of them is loaded next.
        parallel.let_schedule_reach(self.optimizer, self.lr_scheduler)
        if Layout.of(self.args, STATIC_SHAPES).sequence_parallel:
            parallel.mark_norms(self.model_wrapped)
        if checkpoint is None or not self.mp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # neuronx-distributed reads into a dictionary or into its own optimizers, and refuses accelerate's wrapper,
        # which is what upstream gives it: no job with TP or PP could go on from a checkpoint.
        wrapper, real = self.optimizer, self.optimizer.optimizer
        own = type(real).__name__ == "NeuronZero1Optimizer"
        self.optimizer = state = real if own else {}
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        finally:
            self.optimizer = wrapper
        if not own:
            real.load_state_dict(state)

    def get_train_dataloader(self) -> Any:
        from neuronx_distributed.parallel_layers import parallel_state

        replicas, rank = parallel_state.get_data_parallel_size(), parallel_state.get_data_parallel_rank()
        rows, batch = self.train_dataset, self._train_batch_size
        order = EpochSampler(len(rows), None, batch, self.args.seed)
        counted = Counted(order, rows, batch * self.args.gradient_accumulation_steps * replicas)
        # A pipeline takes no other inputs than the model's: optimum-neuron 0.0.28, pipeline inputs.
        sampler = EpochShard(CountedRows(rows), replicas, rank, counted)
        loader = self.accelerator.prepare(
            DataLoader(
                sampler.dataset,
                batch_size=batch,
                sampler=sampler,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                drop_last=True,
            )
        )
        loader.set_epoch = sampler.set_epoch  # upstream's loop calls it where a loader has it; its own has not
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        from neuronx_distributed.parallel_layers import parallel_state

        rows = eval_dataset if eval_dataset is not None else self.eval_dataset
        batch = self.args.eval_batch_size
        full = FullBatches(rows, batch * parallel_state.get_data_parallel_size())
        self.evaluation_scale = len(full) / (batch * max(1, int(label_counts(rows).sum())))
        return super().get_eval_dataloader(full)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        from neuronx_distributed.parallel_layers import parallel_state

        inputs = packing.attention(dict(inputs), next(model.parameters()).dtype)
        tokens = inputs.pop(STEP_TOKENS, None)
        if return_outputs:
            return self._evaluation_loss(model, inputs)
        if self.args.pipeline_parallel_size > 1:
            return super().compute_loss(model, inputs, None)
        # A tensor of the batch and no number: another number would be another graph. Upstream takes the mean of the
        # gradients of data-parallel workers.
        divisor = tokens[0].float() / parallel_state.get_data_parallel_size()
        if self.takes_divisor and self.label_smoother is None:
            return super().compute_loss(model, inputs, divisor)
        count = label_count(inputs["labels"])  # before the smoother takes the labels out
        self.model_accepts_loss_kwargs = False
        loss = super().compute_loss(model, inputs, None)
        self.model_accepts_loss_kwargs = True
        return torch.where(count > 0, loss, 0.0) * count / divisor

    def _evaluation_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """The mean over labels, without smoothing, as on device cpu; a pipeline has its own way and never comes here.

        transformers takes the mean over rows of what this returns, the rows that filled the last batch among them.
        """
        count = label_count(inputs["labels"])
        smoother = getattr(self, "label_smoother")  # noqa: B009 (untyped upstream)
        self.label_smoother = None
        loss, outputs = Trainer.compute_loss(self, model, inputs, return_outputs=True)
        self.label_smoother = smoother
        return torch.where(count > 0, loss, 0.0) * count * self.evaluation_scale, outputs

    def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> None:
        if self.mp_enabled or compiling_only():
            if not compiling_only():
                parallel.make_directories(Path(output_dir or self.args.output_dir), self.adapters is not None)
            super().save_model(output_dir, _internal_call)
            return
        # Upstream moves the model to the host and back, which makes its parameters new ones that the optimizer does
        # not know: after the first checkpoint nothing is learned any more.
        xm.mark_step()
        if xm.get_ordinal() == 0:
            folder = Path(output_dir or self.args.output_dir)
            state = self.model.state_dict()
            if self.adapters is not None:
                base = self.original[0]._name_or_path
                lora.save_adapter(lora.adapted(state.items()), self.adapters, folder, base)
            else:
                made = Trained(*self.original, state.items)
                save(shell(made, torch.float32), weights(made), folder)
            torch.save(self.args, folder / "training_args.bin")
        xm.rendezvous("the model is saved")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The losses of a step are added up on the device, so one that is not finite is seen here at the latest."""
        for name in ("loss", "grad_norm", "eval_loss"):
            require_finite(self.state.global_step, f"{name} in the log line", logs.get(name, 0.0))
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, of weights that are numbers. A loss since the last log line that is none has made them so: the
        optimizer's step after it is done before this is called. On the host, since it is one more graph elsewhere."""
        xm.mark_step()
        require_finite_weights(self.state.global_step, OnHost(self.model.named_parameters()))
        self.state.train_batch_size = self._train_batch_size  # upstream leaves it None, and a resume divides by it
        super()._save_checkpoint(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Upstream calls it again at the end of an epoch, before what it left to do for the last step has been done:
        # that step would be saved twice, and the second sum of losses is one more graph to compile.
        by_epoch = "epoch" in (self.args.logging_strategy, self.args.eval_strategy, self.args.save_strategy)
        if by_epoch or self.state.global_step != self.handled_step:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        self.handled_step = self.state.global_step


def trainer(**kwargs: Any) -> Any:
    """What run_clm trains with on this device."""
    parallel_layers.safe_parallel_cross_entropy = masked_cross_entropy
    return StaticTrainer(**kwargs)


def number_format(arguments: Any) -> str:
    """bf16 or fp32, for the manifest and for what a checkpoint may be resumed by."""
    return "bf16" if arguments.bf16 else "fp32"


def work(trainer: Any, rows: Any, flops: float) -> Work:
    """What a step does on all cores of the job."""
    arguments = trainer.args
    layout = Layout.of(arguments, STATIC_SHAPES)
    positions = layout.batch * layout.accumulation * layout.data * rows.block_size
    peak = PEAK_FLOPS["bf16" if arguments.bf16 else "fp32"] * (layout.world or 1)
    return Work(positions * rows.filled, positions, flops, peak)


def finished(trainer: Any) -> Trained | None:
    """What the artifact is made of; None on every rank but the first.

    With tensor or pipeline parallelism each worker writes its shards, and the first puts them together. Where the
    best checkpoint is asked for, its shards or weights are taken (train/best.py).
    """
    if compiling_only():
        return None
    arguments = trainer.args
    chosen = best.checkpoint_of(trainer)
    if not trainer.mp_enabled:
        xm.mark_step()
        if xm.get_ordinal() != 0:
            return None
        state = {**trainer.model.state_dict(), **(_stored(chosen) if chosen else {})}
        config, generation = trainer.original
        return Trained(config, generation, state.items, trainer.adapters)
    # One parent, torchrun, for the workers of a host; tensor parallelism stays within one.
    folder = chosen or Path(tempfile.gettempdir()) / f"shards-of-{os.getppid()}"
    if chosen is None:
        # With xser data-parallel workers split the tensor files between them, and those of other hosts are not here.
        trainer.accelerator.state.mp_plugin.use_xser = False
        arguments.save_only_model = True
        trainer.save_model(str(folder))
        xm.rendezvous("every worker has written its shards")
    if xm.get_ordinal() != 0:
        return None
    made = of_shards(
        folder, trainer.original, arguments.tensor_parallel_size, arguments.pipeline_parallel_size, trainer.adapters
    )
    return made if chosen else dataclasses.replace(made, scratch=folder)


def of_shards(folder: Path, original: tuple[Any, Any], tp: int, pp: int, adapters: Any) -> Trained:
    """What the artifact is made of, where the workers of a job have left their parts of it.

    `original` are the configurations of the model, `adapters` is PEFT's where the parts are an adapter's.
    """
    whole, _ = opened(folder, tp=tp, pp=pp)
    if adapters is None:
        return Trained(*original, whole)
    name = original[0]._name_or_path  # the rest was not trained: in its own dtype, mapped from its files
    base = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto", low_cpu_mem_usage=True)
    return Trained(*original, lambda: chain(base.state_dict().items(), whole()), adapters)


class OnHost(dict[str, Any]):
    """Named tensors that come to the host one at a time."""

    def items(self) -> Any:
        return ((name, tensor.detach().to("cpu")) for name, tensor in super().items())


def _stored(folder: Path) -> dict[str, Any]:
    """The weights or adapters of a checkpoint, mapped from one file or several."""
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for file in sorted(folder.glob("*model*.safetensors")):
        weights |= load_file(file)
    return weights
