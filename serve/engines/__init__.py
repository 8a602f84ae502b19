"""Back ends of the handler. An engine is a module with load(model_dir, options) -> Engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from serve.options import ENGINES, OptionError, ServeOptions
from serve.protocols.lmi import Generation, Parameters


class Engine(Protocol):
    """What the handler asks of a back end. Both raise RequestError for a prompt that does not fit."""

    def generate(self, prompts: Sequence[str], parameters: Parameters) -> list[Generation]:
        """Answer `prompts` together, in their order."""
        ...

    def stream(self, prompt: str, parameters: Parameters) -> Iterator[str | Generation]:
        """Pieces of text as they come, then the whole answer."""
        ...


def load(name: str, model_dir: Path, options: ServeOptions) -> Engine:
    """Load the model into the engine called `name`; there is no falling back to another."""
    if name not in ENGINES:
        raise OptionError(f"serve_engine is {name!r}; it must be one of {', '.join(ENGINES)}")
    engine: Engine = import_module(f"serve.engines.{name}").load(model_dir, options)
    return engine
