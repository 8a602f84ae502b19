"""How long training takes on this machine's processor, before it starts.

Rates are measured, not modelled: SmolLM2-135M, rows of 64 tokens, transformers' Trainer, two cores
(benchmarks/train_rate.py prints them; docs/status.md has the figures). Other models scale by their parameters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Padded tokens per second and core, by what the processor can do.
RATES = {"amx_bf16": 390.0, "avx512_bf16": 190.0, "other": 100.0}
PARAMETERS = 134.5e6
REFERENCE_SECONDS_OVERHEAD = 12.0  # imports, tokenising, export


@dataclass(frozen=True)
class Estimate:
    """Seconds of training and the line that explains it."""

    seconds: float
    text: str
    slow: bool


def training(rows: int, block_size: int, epochs: float, cpuinfo: Path = Path("/proc/cpuinfo")) -> Estimate:
    """An estimate for `rows` of `block_size` padded tokens; `slow` where it is over five minutes."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    kind = next((k for k in ("amx_bf16", "avx512_bf16") if k in text), "other")
    cores = max(len(os.sched_getaffinity(0)), 1)
    seconds = rows * block_size * epochs / (RATES[kind] * cores) + REFERENCE_SECONDS_OVERHEAD
    how = {"amx_bf16": "bf16 on AMX", "avx512_bf16": "bf16", "other": "fp32, no native bf16"}[kind]
    line = f"training should take about {_minutes(seconds)} here ({cores} cores, {how})"
    return Estimate(seconds, line, seconds > 300)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
