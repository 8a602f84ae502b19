"""The same shards through optimum-neuron 0.0.28's own code, beside ours.

    .venv-train/bin/python -m tests.shards.compare FOLDER     (or .venv-neuron: then with the real torch_xla)

optimum's consolidate function and its functions that deal heads to ranks are run as they are in the wheel. What they
need from neuronx-distributed is the rank and its size; from torch_xla the class of a reference and the walk over
containers, which are stubbed here where torch_xla is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

from tests.shards import models
from tests.shards.cut import Layout, cut, local_part
from tests.shards.drive import read, same, state_of
from train.consolidate import ShardError, consolidate

# TP, heads, key-value heads, --kv_size_multiplier
DEALS = ((2, 4, 1, None), (4, 4, 2, None), (8, 8, 2, None), (8, 32, 4, None), (32, 32, 8, None), (4, 16, 1, None))
DEALS += ((4, 8, 2, 4), (16, 32, 4, 8))


class Rank:
    """What parallel_state says."""

    rank = 0
    size = 1


class _Reference:
    def __init__(self, tid: int) -> None:
        self.tid = tid


class _Arena:
    """torch_xla's ToXlaTensorArena, for a flat dictionary."""

    def __init__(self, convert: Any, select: Any) -> None:
        self.convert, self.select = convert, select

    def transform(self, value: dict[str, Any]) -> dict[str, Any]:
        names = [name for name, item in value.items() if self.select(item)]
        return {**value, **dict(zip(names, self.convert([value[name] for name in names]), strict=True))}


class _Absent(ModuleType):
    """A module whose every name is an empty class: enough to be imported from and inherited."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder:
    """Answers for the packages in `roots` and all below them."""

    def __init__(self, *roots: str) -> None:
        self.roots = roots

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.roots else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stub() -> bool:
    """Make optimum's modules importable; whether torch_xla is the real one."""
    real = importlib.util.find_spec("torch_xla") is not None
    closed = ("neuronx_distributed", "torch_neuronx", "libneuronxla", *(() if real else ("torch_xla",)))
    sys.meta_path.append(_Finder(*closed))
    state = importlib.import_module("neuronx_distributed.parallel_layers.parallel_state")
    vars(state)["get_tensor_model_parallel_rank"] = lambda: Rank.rank
    vars(state)["get_tensor_model_parallel_size"] = lambda: Rank.size
    if not real:
        _Reference.__module__, _Reference.__qualname__ = "torch_xla.utils.serialization", "TensorReference"
        vars(importlib.import_module("torch_xla.core.xla_model"))["ToXlaTensorArena"] = _Arena
        vars(importlib.import_module("torch_xla.utils.serialization"))["TensorReference"] = _Reference
    return real


def theirs(shards: Path, out: Path) -> str:
    """optimum's consolidation; the error's first line where there is one."""
    from optimum.neuron.distributed import checkpointing

    # What peft calls the file, where peft is not installed.
    checkpointing.PEFT_SAFETENSORS_WEIGHTS_NAME = (
        checkpointing.PEFT_SAFETENSORS_WEIGHTS_NAME or "adapter_model.safetensors"
    )
    # torch.load's default changed in torch 2.6; optimum was written for 2.1.
    load = torch.load
    with mock.patch.object(torch, "load", lambda *a, **k: load(*a, **{"weights_only": False, **k})):
        try:
            checkpointing.consolidate_model_parallel_checkpoints_to_unified_checkpoint(shards, out)
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def dealt(layout: Layout) -> bool:
    """Whether optimum's functions cut q, k, v and o as tests/shards/cut.py does, on every rank."""
    from optimum.neuron.distributed import utils

    Rank.size = layout.tp
    head = 4
    query = torch.randn(layout.heads * head, 8)
    key = torch.randn(layout.kv_heads * head, 8)
    how = (layout.heads, layout.kv_heads, layout.copies)
    make = utils.create_query_or_output_projection_local_weight_from_regular_weight
    prefix, agree = "model.layers.0.self_attn.", True
    for Rank.rank in range(layout.tp):
        rows = layout.kv_heads * layout.copies * head // layout.tp
        pairs = [
            ("q_proj", query, make(query, *how, "query")),
            ("o_proj", query.t().contiguous(), make(query.t().contiguous(), *how, "output")),
            ("k_proj", key, utils.create_kv_proj_local_weight_from_regular_weight(key, layout.copies, rows)),
        ]
        for name, full, part in pairs:
            agree &= torch.equal(local_part(f"{prefix}{name}.weight", full, layout, Rank.rank), part)
    return agree


def main(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"real torch_xla": stub(), "cases": {}, "dealt": {}}
    for number, (case, layout) in enumerate(models.CASES.items()):
        here = folder / str(number)
        cut(state_of(models.model(case, layout)), here, layout)
        consolidate(here, here / "ours", tp=layout.tp, pp=layout.pp)
        results["cases"][case] = _judge(here)
        models.config(case, layout).save_pretrained(here / "theirs")
        results["cases"][case]["loads"] = _loads(here / "theirs")
    for number, (case, (layout, targets)) in enumerate(models.ADAPTERS.items()):
        here = folder / f"lora{number}"
        state, base = models.adapter(layout, targets)
        cut(state, here, layout, base)
        consolidate(here, here / "ours", tp=layout.tp)
        results["cases"][case] = _judge(here)
    here = folder / "missing"
    shards = cut(state_of(models.model("", models.PLAIN)), here, replace(models.PLAIN, xser=False))
    (shards / "model" / "dp_rank_00_tp_rank_01_pp_rank_00.pt").unlink()
    try:
        consolidate(here, here / "ours")
        ours = ""
    except ShardError as error:
        ours = error.problems[0]
    results["missing rank"] = {"theirs": theirs(here, here / "theirs"), "ours": ours}
    for tp, heads, kv_heads, multiplier in DEALS:
        layout = Layout(tp=tp, heads=heads, kv_heads=kv_heads, layers=1, multiplier=multiplier)
        results["dealt"][f"tp {tp}, {heads} heads, {kv_heads} kv heads, {multiplier}"] = dealt(layout)
    return results


def _loads(folder: Path) -> str:
    """What transformers says to optimum's result; nothing when it loads it whole."""
    try:
        _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # noqa: BLE001
        return " ".join(str(error).split())[:200]
    return ", ".join(f"{key} {value}" for key, value in info.items() if value)


def _judge(here: Path) -> dict[str, Any]:
    error = theirs(here, here / "theirs")
    if error:
        return {"error": error, "same": False, "differ": {}}
    ours, other = read(here / "ours"), read(here / "theirs")
    differ = {
        name: [list(side[name].shape) if name in side else None for side in (ours, other)]
        for name in sorted(ours.keys() | other.keys())
        if name not in ours or name not in other or not torch.equal(ours[name], other[name])
    }
    return {"error": "", "same": same(ours, other), "differ": differ}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]).resolve())))
