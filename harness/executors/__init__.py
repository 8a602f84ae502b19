"""Executors run one container spec: `process` needs nothing else on the machine."""

from __future__ import annotations

from importlib import import_module

from harness.executors.spec import Executor

NAMES = ("process",)


def named(name: str) -> Executor:
    """The executor called `name`, one of NAMES; imported when it is asked for."""
    module: Executor = import_module(f"harness.executors.{name}")
    return module
