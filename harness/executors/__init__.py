"""Executors run one container spec: `process` needs nothing more on the machine, `docker` engine and images."""

from __future__ import annotations

from importlib import import_module

from harness.errors import InvalidInput, did_you_mean
from harness.executors.spec import Executor, Handle

NAMES = ("process", "docker")


def named(name: str) -> Executor:
    """The executor called `name`, one of NAMES; imported when it is asked for."""
    module: Executor = import_module(f"harness.executors.{name}")
    return module


def check_name(name: str) -> None:
    """Raises InvalidInput for what is neither empty nor one of NAMES."""
    if name and name not in NAMES:
        raise InvalidInput(f"no executor {name!r}", hint=did_you_mean(name, NAMES) or f"known: {', '.join(NAMES)}")


def of(handle: Handle) -> Executor:
    """The executor that made `handle`."""
    return named(handle.executor)
