"""What a device with static shapes needs, checked before the first step: one batch signature, and what divides what.

On Trainium every new shape of a batch is a new graph: minutes of compiling, with several workers a hang. And a
model is cut into `tensor_parallel_size` parts only where its dimensions allow it, which upstream finds out late, one
dimension after the other. So everything is collected here and raised at once, one line each, with what to do.
Pure functions; nothing of torch is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from containers import families
from train.data import DataError

Signature = tuple[tuple[str, tuple[int, ...], str], ...]  # (key, shape, dtype), by key


class SignatureError(DataError):
    """Data, model and layout do not fit each other; one line for each problem."""


@dataclass(frozen=True)
class Layout:
    """How a job is laid out over cores and batches."""

    batch: int = 1  # rows of one forward pass of one data-parallel worker
    eval_batch: int = 1
    accumulation: int = 1
    tensor: int = 1
    pipeline: int = 1
    microbatches: int = -1  # of the pipeline; -1: one row each
    sequence_parallel: bool = False
    world: int | None = None  # cores of the job; None where the device has none
    async_save: bool = False
    static: bool = True  # False: the device takes batches of any shape

    @classmethod
    def of(cls, arguments: Any, static: bool) -> Layout:
        """From training arguments; what they do not have is 1. `world` is torchrun's."""
        tensor = int(getattr(arguments, "tensor_parallel_size", 1))
        return cls(
            batch=arguments.per_device_train_batch_size,
            eval_batch=arguments.per_device_eval_batch_size,
            accumulation=arguments.gradient_accumulation_steps,
            tensor=tensor,
            pipeline=int(getattr(arguments, "pipeline_parallel_size", 1)),
            microbatches=int(getattr(arguments, "pipeline_parallel_num_microbatches", -1)),
            sequence_parallel=tensor > 1 and not getattr(arguments, "disable_sequence_parallel", False),
            async_save=bool(getattr(arguments, "async_save", False)),
            world=int(os.environ.get("WORLD_SIZE", "1")) if static else None,
            static=static,
        )

    @property
    def data(self) -> int:
        """Data-parallel workers."""
        return max(1, (self.world or 1) // (self.tensor * self.pipeline))


def family_problems(layout: Layout, config: Any, lora: bool = False) -> tuple[list[str], str]:
    """Why this device does not train the model's family so, and a line where nobody has tried it; the table of what
    runs where is containers/families.json. For the device with static shapes; others take any family."""
    if not layout.static:
        return [], ""
    kind = families.Dimensions.of(config).model_type
    found = families.training_problems(kind, tensor=layout.tensor, pipeline=layout.pipeline, lora=lora)
    return found, families.unknown_family(kind)


def layout_problems(layout: Layout) -> list[str]:
    """What can be said without model and data, and has to be before upstream's arguments build a process group."""
    product, problems = layout.tensor * layout.pipeline, []
    if layout.world is not None and layout.world % product:
        problems.append(
            f"{layout.world} cores are no multiple of tensor_parallel_size {layout.tensor} x pipeline_parallel_size "
            f"{layout.pipeline}: use an instance with {product} cores or more, or smaller sizes"
        )
    if layout.tensor == 4 and layout.world is not None and not layout.world % product and layout.data % 8:
        # It deals the cores of whole trn1.32xlarge out in fours of neighbours (parallel_layers/parallel_state.py).
        problems.append(
            f"neuronx-distributed 0.9.0 makes groups of 4 cores for 8 data-parallel workers at a time, and "
            f"{layout.world} cores make {layout.data}: use tensor_parallel_size 2 or 8"
        )
    if layout.pipeline > 1:
        problems += _microbatch_problems(layout)
    if layout.async_save:
        problems.append(
            "async_save goes on training before a checkpoint's files are written: it would be marked as complete, "
            "and its parts put together, while some are missing: leave it out"
        )
    return problems


def rule_problems(layout: Layout, config: Any, block_size: int) -> list[str]:
    """Dimensions of the model and of the rows that the layout does not divide. Sources: optimum-neuron 0.0.28."""
    size = families.Dimensions.of(config)
    return [
        *layout_problems(layout),
        *families.tensor_problems(size, layout.tensor, layout.sequence_parallel, block_size),
        *families.pipeline_problems(size, layout.pipeline),
        *families.position_problems(size, block_size),
    ]


def _microbatch_problems(layout: Layout) -> list[str]:
    problems = []
    # Upstream folds the accumulation into the pipeline's batch before it cuts that into microbatches; the arguments
    # that come here may be either before or after it.
    for name, batch in (("train", layout.batch), ("eval", layout.eval_batch)):
        rows = batch * layout.accumulation
        pieces = layout.microbatches if layout.microbatches > 0 else layout.batch * layout.accumulation
        if rows % pieces:
            problems.append(
                f"the pipeline's {pieces} microbatches do not divide {rows} rows (per_device_{name}_batch_size x "
                f"gradient_accumulation_steps): set per_device_{name}_batch_size to a multiple of {pieces}"
            )
    return problems


def row_problems(layout: Layout, train_rows: int) -> list[str]:
    """Whether one optimizer step has enough rows; incomplete batches are left out on a static device."""
    step = layout.batch * layout.accumulation * layout.data
    if not layout.static or train_rows >= step:
        return []
    return [
        f"{train_rows} rows make no step: {layout.batch} rows x {layout.accumulation} accumulation steps x "
        f"{layout.data} data-parallel workers need {step}: lower per_device_train_batch_size or "
        f"gradient_accumulation_steps, or add data"
    ]


def signature_of(batch: Mapping[str, Any]) -> Signature:
    """Key, shape and dtype of everything in a batch. What has no shape is no tensor and cannot be compiled."""
    found = []
    for key in sorted(batch):
        value = batch[key]
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise SignatureError(f"a batch has {key} as a {type(value).__name__}, not as a tensor: use Rows")
        found.append((key, tuple(int(n) for n in value.shape), str(value.dtype)))
    return tuple(found)


def shown(signature: Signature) -> str:
    """`input_ids (8, 64) torch.int64, …`."""
    return ", ".join(f"{key} {shape} {dtype}" for key, shape, dtype in signature)


def loader_problems(channel: str, batches: Iterable[Mapping[str, Any]], static: bool) -> list[str]:
    """Batches that differ from the first one, over the whole loader. On a device without static shapes the last
    batch may have fewer rows, and nothing else may differ."""
    first: Signature | None = None
    count = 0
    odd: list[tuple[int, Signature]] = []
    for number, batch in enumerate(batches, start=1):
        count, found = number, signature_of(batch)
        first = first if first is not None else found
        if found != first:
            odd.append((number, found))
    if first is None:
        return [f"{channel}: the data loader has no batch: lower the batch size or add data"]
    if not static and len(odd) == 1 and odd[0][0] == count and _without_rows(odd[0][1]) == _without_rows(first):
        return []
    if not odd:
        return []
    number, found = odd[0]
    where = f"batch {number} of {count}" + (" (the last)" if number == count else "")
    return [
        f"{channel}: {len(odd)} of {count} batches have another shape: {where} is {shown(found)}, the first is "
        f"{shown(first)}: pad every row to block_size and leave incomplete batches out (dataloader_drop_last)"
    ]


def _without_rows(signature: Signature) -> Signature:
    return tuple((key, shape[1:], dtype) for key, shape, dtype in signature)


def on_host(loader: Any) -> Iterator[Mapping[str, Any]]:
    """The batches before they go to the device: torch_xla's device loader wraps the real one."""
    return iter(getattr(loader, "_loader", loader))


def check(layout: Layout, config: Any, block_size: int, train_rows: int, loaders: Mapping[str, Any]) -> None:
    """Raises SignatureError with every problem of layout, model and data, one line each."""
    problems = rule_problems(layout, config, block_size) + row_problems(layout, train_rows)
    for channel, loader in loaders.items():
        if channel == "train" and row_problems(layout, train_rows):
            continue  # said above, with the numbers
        problems += loader_problems(channel, on_host(loader), layout.static)
    if problems:
        raise SignatureError("\n".join(problems))
