"""How long: tokens, steps, training time, compile time, download and start-up, as spans in seconds.

Throughput is bounded by published runs, not modelled; every figure names its source and date.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from harness.estimate.architecture import Architecture
from harness.estimate.hardware import GIB, Instance
from harness.estimate.memory import Serving, kv_cache, relative_size, serving_weights


@dataclass(frozen=True)
class Seconds:
    """A span of time, and what it rests on."""

    low: float
    high: float
    because: str

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.low + other.low, self.high + other.high, f"{self.because}; {other.because}")


@dataclass(frozen=True)
class Assumption:
    """A published figure that an estimate rests on."""

    name: str
    value: str
    source: str
    date: str
    status: str


# Share of the peak that training reached, of what was published. High: pretraining of a 7 B model on 16 hosts, MFU
# 30.8 %. Low: the same model fine-tuned on one trn1.32xlarge at TP 8 (three epochs of Dolly in 31:46, about 7 %);
# a quarter of that for small models, whose steps are too short to hide the launch of a graph.
MFU_HIGH, MFU_LOW = 0.30, 0.07
SMALL_MODEL_FACTOR = 0.25
SMALL_MODEL = 2e9


@lru_cache(maxsize=1)
def assumptions() -> tuple[Assumption, ...]:
    """Every figure that the spans below rest on (data/assumptions.json)."""
    raw = json.loads(files("harness.estimate").joinpath("data/assumptions.json").read_text(encoding="utf-8"))
    return tuple(Assumption(**item) for item in raw["assumptions"])


# Launching a graph takes its time however little it reads: 6.4 ms a step is the shortest that was published
# (data/assumptions.json, benchmarks).
MOST_STEPS = 160 / 0.5
DOWNLOAD_BYTES_PER_SECOND = (0.1e9, 0.5e9)


@dataclass(frozen=True)
class Work:
    """What a training run goes through."""

    steps: int | None
    """Optimizer steps; None where the number of rows is not known before the job."""
    tokens: int | None
    """Token positions that are computed, filling included."""
    graphs: int
    """Training graphs that are compiled."""


def training_work(
    max_steps: int, epochs: float, rows: int | None, per_step_rows: int, block: int, evaluates: bool
) -> Work:
    """Steps and tokens. `rows`: of `block` tokens each after packing or filling; `per_step_rows`: of all workers and
    accumulations. max_steps above 0 wins over epochs, as in transformers."""
    steps = max_steps if max_steps > 0 else None
    if steps is None and rows is not None:
        steps = max(int(rows * epochs) // max(per_step_rows, 1), 1)
    tokens = None if steps is None else steps * per_step_rows * block
    return Work(steps, tokens, 4 if evaluates else 3)


def training_time(arch: Architecture, work: Work, instance: Instance, hosts: int, precision: str) -> Seconds | None:
    """Time in the training loop, or None where the number of tokens is not known.

    6 floating-point operations per active parameter and token (https://arxiv.org/abs/2001.08361), 8 with
    recomputation inside the span; fp32 has a quarter of the bf16 peak on NeuronCore-v2.
    """
    if work.tokens is None:
        return None
    peak = instance.tflops * 1e12 * hosts / (4 if precision == "fp32" else 1)
    small = arch.parameters < SMALL_MODEL
    low_mfu = MFU_LOW * (SMALL_MODEL_FACTOR if small else 1.0)
    operations = 6.0 * arch.active_parameters * work.tokens
    because = f"{work.tokens:,} tokens at {100 * low_mfu:.1f} to {100 * MFU_HIGH:.0f} % of {peak / 1e12:,.0f} TFLOPS"
    slowest = max(operations / (peak * low_mfu), 0.5 * (work.steps or 0))  # a step takes its time, however small
    return Seconds(operations / (peak * MFU_HIGH), slowest, because)


def training_compile(arch: Architecture, work: Work) -> Seconds:
    """Compiling before the first step; nothing where a cache already has the graphs."""
    size = max(relative_size(arch), 0.1)
    return Seconds(180 * size, 2400 * max(size, 0.3), f"{work.graphs} graphs compiled, none cached")


def serving_compile(arch: Architecture, serving: Serving, at_once: int) -> Seconds:
    """Compiling every graph of an endpoint, `at_once` at a time."""
    size = max(relative_size(arch), 0.1)
    rounds = -(-serving.graphs // max(at_once, 1))
    return Seconds(60 * size * rounds, 150 * size * serving.graphs, f"{serving.graphs} graphs, {at_once} at once")


def download(count: float, what: str) -> Seconds:
    slow, fast = DOWNLOAD_BYTES_PER_SECOND
    return Seconds(count / fast, count / slow, f"{count / 1e9:.2f} GB of {what}")


def artifact_bytes(arch: Architecture, compiled_graphs: int = 0) -> float:
    """What training exports: bf16 safetensors, and with compiled graphs about 20 MB for each of 32 layers' worth."""
    return arch.parameters * 2.0 + compiled_graphs * 20e6 * max(relative_size(arch), 0.1)


def decoding_rate(arch: Architecture, serving: Serving, instance: Instance) -> tuple[float, float]:
    """Tokens per second of one full replica, low and high: a step reads the weights and the cache once."""
    per_core = instance.gib_per_s * GIB / instance.cores
    read = serving_weights(arch, serving.tp, serving.dtype) + 0.5 * kv_cache(arch, serving)
    steps = min(per_core / read, MOST_STEPS)
    return 0.15 * steps * serving.batch, 0.5 * steps * serving.batch
