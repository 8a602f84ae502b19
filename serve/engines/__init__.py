"""Back ends of the handler. An engine is a module with load(model_dir, options) -> Engine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve.options import ENGINES, OptionError, ServeOptions
from serve.scheduler import Shapes, Step


class Engine(Protocol):
    """A model with `shapes.slots` places to hold a sequence. What it is to compute is decided by the scheduler."""

    shapes: Shapes
    tokenizer: Any
    ends: frozenset[int]
    """Tokens that end an answer."""
    repetition_penalty: float
    """generation_config's, which holds where a request gives none."""
    description: str
    """One line for the log: what runs the model, in what number format and why."""
    prompt_logprobs: bool
    """Whether `forward_all` exists: logits of every position of a prompt."""

    def forward(self, step: Step) -> NDArray[np.float32]:
        """Read the step's rows into their slots; logits (sampled rows, vocabulary) in the order of `step.sampled`."""
        ...

    def forward_all(self, prompts: list[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        """Logits (tokens, vocabulary) of every position of each prompt, beside the slots: they are read once more.

        Raises NotImplementedError where `prompt_logprobs` is False.
        """
        ...


def load(name: str, model_dir: Path, options: ServeOptions) -> Engine:
    """Load the model into the engine called `name`; there is no falling back to another."""
    if name not in ENGINES:
        raise OptionError(f"serve_engine is {name!r}; it must be one of {', '.join(ENGINES)}")
    engine: Engine = import_module(f"serve.engines.{name}").load(model_dir, options)
    return engine
