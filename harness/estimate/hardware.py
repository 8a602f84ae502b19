"""Neuron instances: cores, memory, bandwidth, regions. data/instances.json has the sources."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

GIB = 1024**3

# Tensor-parallel degrees that the SDK's collectives know, by chip.
# https://awsdocs-neuron.readthedocs-hosted.com/en/v2.33.0/archive/transformers-neuronx/generative-llm-inference-with-neuron.html
# (inf2: also 12, the whole of an inf2.24xlarge; trn1: 16 is used by AWS's own Mixtral sample).
TP_DEGREES = {
    "inferentia2": (1, 2, 4, 8, 12, 24),
    "trainium": (1, 2, 4, 8, 16, 32),
    "trainium2": (1, 2, 4, 8, 16, 32, 64),
}


@dataclass(frozen=True)
class Instance:
    """One instance type, without SageMaker's "ml." in front."""

    name: str
    chip: str
    chips: int
    cores: int
    """NeuronCores that software addresses."""
    core_gib: float
    """Device memory of one core."""
    vcpus: int
    host_gib: int
    tflops: float
    """bf16, the whole instance."""
    gib_per_s: float
    """Device memory bandwidth, the whole instance."""
    efa: bool
    training: bool
    """SageMaker trains on it (botocore's TrainingInstanceType)."""
    hosting: bool
    disk_gb: int
    regions: dict[str, tuple[str, ...]]
    """Region -> zone ids where known; an empty tuple: some zone, not known which."""


@lru_cache(maxsize=1)
def instances() -> dict[str, Instance]:
    raw = json.loads(files("harness.estimate").joinpath("data/instances.json").read_text(encoding="utf-8"))
    out = {}
    for item in raw["instances"]:
        regions = {region: tuple(zones) for region, zones in item["regions"].items()}
        out[item["name"]] = Instance(**{**item, "regions": regions})
    return out


def find(name: str) -> Instance | None:
    """By EC2's or SageMaker's name; None for what has no NeuronCores or is not in the table."""
    return instances().get(name.removeprefix("ml."))
