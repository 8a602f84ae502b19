"""The serving options: one dataclass that makes the endpoint's environment and parses DJL's INIT call.

The harness writes them into CreateModel's Environment as OPTION_<NAME>; DJL hands them to the handler as
properties without the prefix, once, with the first (empty) call. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from containers.contract import ANSWER_DEADLINE, INVOCATION_TIMEOUT, STREAM_DEADLINE, STREAM_TIMEOUT

# What DJL calls an option where we use the field's own term.
DJL_NAMES = {"tp_degree": "tensor_parallel_degree"}
ENGINES = ("cpu", "neuron")
DTYPES = ("bf16", "fp16", "fp32")


class OptionError(ValueError):
    """An option's value is wrong; one line that names it."""


@dataclass(frozen=True)
class ServeOptions:
    """How an endpoint serves. Every default has its reason beside it."""

    tp_degree: int = 1
    """NeuronCores that share one copy of the model. 1 fits models up to about 6 B parameters in bf16 (16 GiB)."""
    n_positions: int = 1024
    """Tokens of prompt and answer together. A static shape on Inferentia: compile time and memory grow with it."""
    dtype: str = "bf16"
    """Number format of the weights. bf16 keeps fp32's range, so nothing overflows that trained in bf16."""
    max_batch_size: int = 32
    """Prompts answered together. 32 keeps the step of a 1 B model memory-bound on one Inferentia2 chip."""
    answer_timeout: int = ANSWER_DEADLINE
    """Seconds for an answer that does not stream; it then ends with what there is. Below SageMaker's 60 s."""
    stream_timeout: int = STREAM_DEADLINE
    """Seconds for a whole stream; it then ends with what there is. Below SageMaker's 8 minutes."""
    replicas: int = 1
    """Copies of the model on device cpu, each in its own process. On Neuron DJL loads cores / tp_degree copies."""

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.type == "int"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, limit in (("answer_timeout", INVOCATION_TIMEOUT), ("stream_timeout", STREAM_TIMEOUT)):
            if getattr(self, name) >= limit:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be below SageMaker's own {limit} s")
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")


def names() -> list[str]:
    """Every option's name, as run files write it."""
    return [f.name for f in fields(ServeOptions)]


def to_environment(options: ServeOptions) -> dict[str, str]:
    """CreateModel's Environment: OPTION_TENSOR_PARALLEL_DEGREE and so on, every one written out."""
    return {
        f"OPTION_{DJL_NAMES.get(f.name, f.name).upper()}": str(getattr(options, f.name)) for f in fields(ServeOptions)
    }


def from_properties(properties: Mapping[str, Any]) -> ServeOptions:
    """Parse what the INIT call carries; properties that are DJL's own are let pass."""
    values: dict[str, Any] = {}
    for f in fields(ServeOptions):
        text = properties.get(DJL_NAMES.get(f.name, f.name))
        if text is None:
            continue
        try:
            values[f.name] = int(text) if f.type == "int" else str(text)
        except ValueError:
            raise OptionError(f"{f.name} is {text!r}; a whole number expected") from None
    return ServeOptions(**values)
