"""Stacks: coherent pairs of base images and their pins. The data is harness/stacks.json."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.resources import files
from typing import Any

from containers.model_dir import Known
from harness.errors import InvalidInput, did_you_mean
from harness.paths import IN_CHECKOUT, PRODUCT

DEFAULT = "sdk2.20"


@dataclass(frozen=True)
class Stack:
    """A training and a serving base image that belong together, and what is pinned in them."""

    name: str
    train_base: str
    serve_base: str
    train_pins: dict[str, str]
    serve_pins: dict[str, str]


@lru_cache(maxsize=1)
def all_stacks() -> dict[str, Stack]:
    """Every stack by name."""
    raw = json.loads(files("harness").joinpath("stacks.json").read_text(encoding="utf-8"))
    return {name: Stack(name=name, **value) for name, value in raw.items()}


def get(name: str) -> Stack:
    """Raises InvalidInput for a name that is not in stacks.json."""
    stacks = all_stacks()
    if name not in stacks:
        raise InvalidInput(f"no stack {name}", hint=did_you_mean(name, list(stacks)) or f"known: {', '.join(stacks)}")
    return stacks[name]


def version() -> str:
    """The harness's own."""
    if IN_CHECKOUT:
        project = tomllib.loads((PRODUCT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])
    return metadata.version("neuron-harness")


def versions() -> list[str]:
    """A line for the harness, and one for each image of each stack: its base and what is pinned in it."""
    lines = [f"neuron-harness {version()}"]
    for stack in all_stacks().values():
        for role, base, pins in (
            ("train", stack.train_base, stack.train_pins),
            ("serve", stack.serve_base, stack.serve_pins),
        ):
            lines.append(f"{stack.name} {role}: {base}: {', '.join(f'{n} {v}' for n, v in pins.items())}")
    return lines


@lru_cache(maxsize=4)
def train_options(stack: str) -> dict[str, dict[str, Any]]:
    """Valid training flags of a stack: name -> {"type", "default", "choices"}; generated from the real packages."""
    path = PRODUCT / "train" / "options" / f"{stack}.json"
    options: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return options


@lru_cache(maxsize=4)
def known_models(stack: str) -> Known:
    """Which models a stack's transformers understands; generated from the real package."""
    path = PRODUCT / "train" / "options" / f"{stack}-models.json"
    return Known.of(json.loads(path.read_text(encoding="utf-8")))
