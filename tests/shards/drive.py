"""Runs inside .venv-train: cut, consolidate, compare; one JSON object on the last line for the tests to judge.

.venv-train/bin/python -m tests.shards.drive cases|mutants FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.shards import models
from tests.shards.cut import cut
from train.consolidate import ShardError, consolidate


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit: names, shapes, types, values."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


def read(folder: Path) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out.update(load_file(file))
    return out


def without_tied(state: dict[str, torch.Tensor], layout: models.Layout) -> dict[str, torch.Tensor]:
    """What save_pretrained writes: a tied output layer has no entry of its own."""
    return {k: v for k, v in state.items() if not (layout.tied and k == "lm_head.weight")}


def cases(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for number, (case, layout) in enumerate(models.CASES.items()):
        here = folder / str(number)
        original = models.model(case, layout)
        cut(state_of(original), here / "checkpoint", layout)
        out = here / "out"
        out.mkdir()
        models.config(case, layout).save_pretrained(out)
        small = 8000 if case == "tp2" else 5_000_000_000
        files = consolidate(here / "checkpoint", out, tp=layout.tp, pp=layout.pp, max_bytes=small)
        loaded, info = AutoModelForCausalLM.from_pretrained(out, torch_dtype="auto", output_loading_info=True)
        results[case] = {
            "files": files,
            "equal": same(state_of(loaded), state_of(original)),
            "stored": same(read(out), without_tied(state_of(original), layout)),
            "info": {key: list(value) for key, value in info.items()},
            "left": sorted(p.name for p in here.iterdir()),
        }
    for number, (case, (layout, targets)) in enumerate(models.ADAPTERS.items()):
        here = folder / f"lora{number}"
        state, base = models.adapter(layout, targets)
        cut(state, here, layout, base)
        files = consolidate(here, here / "out", tp=layout.tp)
        results[case] = {"files": files, "stored": same(read(here / "out"), state)}
    return results


def _rank(root: Path, rank: int, suffix: str = "") -> Path:
    return root / "model" / f"dp_rank_00_tp_rank_{rank:02d}_pp_rank_00.pt{suffix}"


def _change(path: Path, change: Callable[[Any], Any]) -> None:
    value = torch.load(path, weights_only=False)
    torch.save(change(value) or value, path)


def _dimension(root: Path, name: str, dim: int) -> None:
    _change(root / "mp_metadata_pp_rank_0.pt", lambda m: m["sharded_metadata"][name].update(partition_dim=dim))


def _swap(a: Path, b: Path) -> None:
    a.rename(a.with_suffix(".x"))
    b.rename(a)
    a.with_suffix(".x").rename(b)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


class Intruder:
    """Pickles into a call that must never happen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


NORM, QUERY, KEY = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.qkv_proj."
FLAT, REPEATED = replace(models.PLAIN, xser=False), replace(models.REPEATED, xser=False)


def _scale(name: str, by: float) -> Callable[[Any], None]:
    def change(state: Any) -> None:
        state[name] = state[name] * by

    return change


# name -> (layout, what is done to the shards, tp that the caller says)
MUTANTS: dict[str, tuple[models.Layout, Callable[[Path], Any], int | None]] = {
    "untouched": (FLAT, lambda root: None, None),
    "cut along the wrong dimension": (FLAT, lambda root: _dimension(root, QUERY, 1), None),
    "cut along dimension 2": (FLAT, lambda root: _dimension(root, QUERY, 2), None),
    "ranks swapped": (FLAT, lambda root: _swap(_rank(root, 0), _rank(root, 1)), None),
    "xser tensors swapped": (
        models.PLAIN,
        lambda root: _swap(_rank(root, 0, ".tensors/tensor_0.pt"), _rank(root, 0, ".tensors/tensor_1.pt")),
        None,
    ),
    "last of two ranks missing": (FLAT, lambda root: _rank(root, 1).unlink(), None),
    "first of two ranks missing": (FLAT, lambda root: _rank(root, 0).unlink(), None),
    "last of four missing, told": (REPEATED, lambda root: _rank(root, 3).unlink(), 4),
    "last of four missing, not told": (REPEATED, lambda root: _rank(root, 3).unlink(), None),
    "more ranks than told": (FLAT, lambda root: None, 1),
    "shard truncated": (FLAT, lambda root: _truncate(_rank(root, 1)), None),
    "xser tensor truncated": (models.PLAIN, lambda root: _truncate(_rank(root, 1, ".tensors/tensor_3.pt")), None),
    "xser tensor missing": (models.PLAIN, lambda root: _rank(root, 1, ".tensors/tensor_3.pt").unlink(), None),
    "metadata missing": (FLAT, lambda root: (root / "mp_metadata_pp_rank_0.pt").unlink(), None),
    "metadata of another kind": (FLAT, lambda root: torch.save({"a": 1}, root / "mp_metadata_pp_rank_0.pt"), None),
    "not finished": (FLAT, lambda root: (root / "done").unlink(), None),
    "no model directory": (FLAT, lambda root: shutil.rmtree(root / "model"), None),
    "norm differs": (FLAT, lambda root: _change(_rank(root, 1), _scale(NORM, 2)), None),
    "norm differs by rounding": (FLAT, lambda root: _change(_rank(root, 1), _scale(NORM, 1.001)), None),
    "norm is NaN on one rank": (FLAT, lambda root: _change(_rank(root, 1), _scale(NORM, float("nan"))), None),
    "copy of a kv head differs": (
        REPEATED,
        lambda root: _change(_rank(root, 3), _scale(KEY + "weight_k", -1)),
        None,
    ),
    "kv multiplier wrong": (
        REPEATED,
        lambda root: _change(
            root / "mp_metadata_pp_rank_0.pt", lambda m: m["gqa_qkv_metadata"].update(kv_size_multiplier=1)
        ),
        None,
    ),
    "heads wrong": (
        REPEATED,
        lambda root: _change(
            root / "mp_metadata_pp_rank_0.pt", lambda m: m["gqa_qkv_metadata"].update(num_attention_heads=6)
        ),
        None,
    ),
    "parameter missing on one rank": (
        FLAT,
        lambda root: _change(_rank(root, 1), lambda s: s.pop(NORM) is None),
        None,
    ),
    "parameter missing everywhere": (
        FLAT,
        lambda root: [_change(_rank(root, r), lambda s: s.pop(QUERY) is None) for r in (0, 1)],
        None,
    ),
    "parameter that nothing explains": (
        FLAT,
        lambda root: [_change(_rank(root, r), lambda s, r=r: s.update(odd=torch.ones(3) * r)) for r in (0, 1)],
        None,
    ),
    "type differs": (FLAT, lambda root: _change(_rank(root, 1), lambda s: s.update({QUERY: s[QUERY].half()})), None),
    "code in a shard": (FLAT, lambda root: torch.save(Intruder(), _rank(root, 1)), None),
}


def mutants(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    os.chdir(folder)
    for number, (mutant, (layout, change, tp)) in enumerate(MUTANTS.items()):
        here = folder / str(number)
        original = state_of(models.model("", layout))
        change(cut(original, here, layout))
        try:
            consolidate(here, here / "out", tp=tp)
            refused: list[str] = []
        except ShardError as error:
            refused = list(error.problems)
        results[mutant] = {
            "refused": refused,
            "equal": same(read(here / "out"), original),
            "left": sorted(p.name for p in here.iterdir()),
            "ran": (folder / "ran").exists(),
        }
    here = folder / "occupied"
    cut(original, here, layout)
    (here / "out").mkdir()
    (here / "out" / "model-00001-of-00002.safetensors").write_text("")
    try:
        consolidate(here, here / "out")
    except ShardError as error:
        results["out holds other weights"] = {"refused": list(error.problems), "equal": False}
    return results


if __name__ == "__main__":
    target = Path(sys.argv[2]).resolve()
    torch.set_num_threads(1)
    print(json.dumps({"cases": cases, "mutants": mutants}[sys.argv[1]](target)))
