"""Back ends of the trainer. A device is a module with the names of train/devices/cpu.py that run_clm calls."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

DEVICES = {"cpu": "train.devices.cpu", "neuron": "train.devices.neuron"}


def load(name: str) -> ModuleType:
    """The module of a device. Raises ValueError naming the known ones; there is no falling back to another."""
    if name not in DEVICES:
        raise ValueError(f"device {name} is not in this image; it has: {', '.join(DEVICES)}")
    return import_module(DEVICES[name])
