"""A trained model, wherever its weights are: in this process, on a device, or in shards on a disk.

What is made of it reads one tensor at a time: hosts of 16 and 32 GB do not hold a model of 7 B parameters twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from train import lora


@dataclass(frozen=True)
class Trained:
    """What training leaves: all that the artifact is made of."""

    config: Any
    generation_config: Any
    state: Callable[[], Iterable[tuple[str, Any]]]
    """(name, tensor) of the model's state_dict, PEFT's with adapters; each call gives all of them again."""
    adapters: Any = None
    """The adapters' peft configuration."""
    scratch: Path | None = None
    """A directory that `state` reads and nobody needs afterwards."""


def shell(trained: Trained, dtype: Any) -> Any:
    """transformers' model of that configuration, without weights."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(trained.config)).to(dtype)
    model.generation_config = copy.deepcopy(trained.generation_config)
    return model


def weights(trained: Trained) -> Iterator[tuple[str, Any]]:
    """(name, whole tensor on the host) of every weight of the plain model, adapters added in fp32, once each.

    Raises RuntimeError at the end unless every weight of the model was there, and no other.
    """
    model = shell(trained, torch.float32)
    expected = model.state_dict().keys()
    tied = set(model._tied_weights_keys or ()) if trained.config.tie_word_embeddings else set()
    plain = lora.plain(trained.state())
    if trained.adapters is not None:
        plain = lora.merged(model, plain, lora.adapted(trained.state()), trained.adapters)
    seen: set[str] = set()
    for name, tensor in plain:
        seen.add(name)
        if name not in tied:
            yield name, tensor.detach().to("cpu")
    if wrong := sorted((expected - seen - tied) | (seen - expected)):
        raise RuntimeError(f"the trained weights are not the model's: {', '.join(wrong[:5])}")
