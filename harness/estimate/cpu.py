"""How long training takes on this machine's processor, before it starts.

Rates are measured, not modelled (docs/internals/measurements.md): SmolLM2-135M with the run file of the demo. They
say what to expect
of that model alone; another one scales with its parameters, which are not known before it is downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MEASURED = "smollm2-135m-instruct"
# Tokens per second and core of the demo's training, by what the processor can do. Measured but for the AMX figure,
# which is Trainer's bf16 rate at 512 tokens a row, measured with other code.
RATES = {"amx_bf16": 220.0, "avx512_bf16": 225.0, "other": 90.0}
CHARACTERS_PER_TOKEN = 3.8  # English headlines with SmolLM2's tokenizer
OVERHEAD_SECONDS = 20.0  # imports, tokenising, evaluation loss, export, packing


@dataclass(frozen=True)
class Estimate:
    """Seconds of training and the line that explains it."""

    seconds: float
    text: str


def training(characters: float, cpuinfo: Path = Path("/proc/cpuinfo")) -> Estimate:
    """An estimate for training on `characters` of text, every epoch counted."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    kind = next((k for k in ("amx_bf16", "avx512_bf16") if k in text), "other")
    cores = max(len(os.sched_getaffinity(0)), 1)
    seconds = characters / CHARACTERS_PER_TOKEN / (RATES[kind] * cores) + OVERHEAD_SECONDS
    how = {"amx_bf16": "bf16 on AMX", "avx512_bf16": "bf16", "other": "fp32, no native bf16"}[kind]
    line = f"a model of 135 M parameters takes about {_minutes(seconds)} to train on this here ({cores} cores, {how})"
    return Estimate(seconds, line)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
