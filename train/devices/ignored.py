"""Flags that only Trainium has, accepted elsewhere too, so that one set of hyperparameters runs on every device.

tests/neuron compares the names and defaults with optimum-neuron 0.0.28's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Optional

# ruff: noqa: UP045  (HfArgumentParser, see train/arguments.py)
HELP = {"help": "Device neuron only; checked, and otherwise without effect here."}


@dataclass
class NeuronFlags:
    """What optimum-neuron 0.0.28 adds to transformers' TrainingArguments."""

    skip_cache_push: bool = field(default=False, metadata=HELP)
    zero_1: bool = field(default=False, metadata=HELP)
    tensor_parallel_size: int = field(default=1, metadata=HELP)
    disable_embedding_parallelization: bool = field(default=False, metadata=HELP)
    disable_sequence_parallel: bool = field(default=False, metadata=HELP)
    neuron_cc_optlevel: Optional[int] = field(default=None, metadata=HELP)
    pipeline_parallel_size: int = field(default=1, metadata=HELP)
    pipeline_parallel_num_microbatches: int = field(default=-1, metadata=HELP)
    kv_size_multiplier: Optional[int] = field(default=None, metadata=HELP)
    num_local_ranks_per_step: int = field(default=8, metadata=HELP)
    use_xser: bool = field(default=True, metadata=HELP)
    async_save: bool = field(default=False, metadata=HELP)


def given(arguments: Any) -> list[str]:
    """`name value` of each flag that has another value than its default."""
    values = [(f.name, getattr(arguments, f.name), f.default) for f in fields(NeuronFlags)]
    return [f"{name} {value}" for name, value, default in values if value != default]
