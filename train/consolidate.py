"""From the shards that a tensor- or pipeline-parallel job leaves to safetensors that transformers and peft load.

Why not optimum-neuron's own consolidate_model_parallel_checkpoints_to_unified_checkpoint (0.0.28): it needs torch_xla
and neuronx-distributed, so no machine without the Neuron SDK can test it, and it is silently wrong where this one is
right or refuses (docs/internals/neuron-training.md; tests/shards compares the two): half of a tied lm_head is written
as the whole, a missing last rank is not noticed, a LoRA on o_proj keeps the shuffled heads of a replicated model.
This needs torch and safetensors only; tests/shards cuts shards from a known model and gets it back bit for bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from train import writer
from train.shards import ShardError, Stage, open_stages

MODEL, ADAPTER = "shards", "adapter_shards"
# Copies of one parameter on several ranks may drift by rounding (stochastic rounding draws per core), not by more.
DRIFT = 2**-5


def _joined(stage: Stage, name: str) -> Any:
    """The whole tensor, with the order of heads that the original has."""
    parts, entry = stage.parts(name), stage.sharded[name]
    if len({(part.shape, part.dtype) for part in parts}) > 1:
        raise ShardError(f"{name}: ranks differ: {', '.join(f'{p.dtype} {list(p.shape)}' for p in parts)}")
    if entry["kind"] != "sharded":
        return _agreed(name, parts)
    dim = entry["partition_dim"]
    if not 0 <= dim < parts[0].dim():
        raise ShardError(f"{name}: cut along dimension {dim}, but it has {parts[0].dim()}")
    if len(parts) == 1:
        raise ShardError(f"{name}: is cut into several ranks' parts, and there is one rank: shards are missing")
    full = torch.cat(parts, dim=dim)
    suffix = name.rpartition(".")[2] if stage.original(name) != name else ""
    if suffix and stage.gqa["num_key_value_heads"] * stage.gqa["kv_size_multiplier"] % len(parts):
        raise ShardError(f"{name}: {len(parts)} ranks cannot share its key-value heads evenly: shards are missing")
    if suffix in ("weight_k", "weight_v", "bias_k", "bias_v"):
        return _agreed(name, list(full.chunk(stage.gqa["kv_size_multiplier"], dim=0)))
    if suffix in ("weight_q", "bias_q"):
        return _heads_in_order(stage.gqa, full, 0)
    if name.replace(".lora_A.weight", ".weight") in stage.gqa["output_projections_names"]:
        return _heads_in_order(stage.gqa, full, 1)
    return full


def _heads_in_order(gqa: dict[str, Any], full: Any, dim: int) -> Any:
    """Undo the shuffle of query heads: they follow the copy of the key-value head they belong to."""
    heads, kv, copies = (gqa[k] for k in ("num_attention_heads", "num_key_value_heads", "kv_size_multiplier"))
    each = heads // (kv * copies)
    if each * kv * copies != heads or full.shape[dim] % heads:
        raise ShardError(f"{heads} heads, {kv} key-value heads {copies} times: no order of {full.shape[dim]} rows")
    slots = [(slot % kv) * each * copies + (slot // kv) * each for slot in range(kv * copies)]
    order = torch.tensor([first + i for first in slots for i in range(each)]).argsort()
    blocks = full.unflatten(dim, (heads, -1))
    return blocks.index_select(dim, order).flatten(dim, dim + 1)


def _same(a: Any, b: Any) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _agreed(name: str, copies: list[Any]) -> Any:
    """The first of several copies of one tensor; a line in the log where they differ by rounding."""
    first = copies[0].contiguous()
    for rank, other in enumerate(copies[1:], start=1):
        if _same(first, other):
            continue
        gap = float((first.double() - other.double()).abs().max() / first.double().abs().max())
        if not gap <= DRIFT:
            raise ShardError(f"{name}: copy {rank} differs from copy 0 by {gap:.2g} of the largest value")
        print(f"consolidate: {name}: copies differ by {gap:.2g} of the largest value; the first is used", flush=True)
    return first


def _unlisted(stage: Stage, name: str, stages: list[Stage]) -> Any | None:
    """A tensor without metadata: a buffer, equal on all ranks, or (None) a second name of a cut parameter."""
    parts = stage.parts(name)
    if all(_same(parts[0], part) for part in parts[1:]):
        return parts[0]
    for other in stages:
        for known in (k for k in other.ranks[0].values if k in other.sharded):
            if all(_same(a, b) for a, b in zip(parts, other.parts(known))):  # noqa: B905 (one width for all)
                return None  # tied: transformers and save_pretrained keep one name, too
    raise ShardError(f"{name}: not in the metadata, not the same on all ranks, and no other parameter's second name")


def _tensors(stages: list[Stage], adapter: bool) -> Iterator[tuple[str, Any]]:
    """(original name, whole tensor), one at a time. Raises ShardError with every problem at the end."""
    seen: set[str] = set()
    problems: list[str] = []
    for stage in stages:
        for name in stage.ranks[0].values:
            try:
                full = _joined(stage, name) if name in stage.sharded else _unlisted(stage, name, stages)
            except ShardError as error:
                problems += error.problems
                continue
            original = stage.original(name)
            if full is not None and original in seen:
                problems.append(f"{original}: on two pipeline stages")
            elif full is not None and not problems:
                seen.add(original)
                yield original, full.contiguous()
    wanted = {s.original(n) for s in stages for n in s.sharded if "lora_" in n or not adapter}
    problems += [f"{name}: in the metadata, but in no shard" for name in sorted(wanted - seen)[:3] if not problems]
    if problems:
        raise ShardError(*problems)


def opened(
    shards: Path, *, tp: int | None = None, pp: int | None = None
) -> tuple[Callable[[], Iterator[tuple[str, Any]]], bool]:
    """(what gives each (name, whole tensor), one at a time; whether they are a LoRA adapter's). See `consolidate`.

    Shards are mapped, not read, so that a tensor is in memory once it is put together and no longer than it is used.
    """
    folders = [shards] if shards.name in (MODEL, ADAPTER) else [shards / MODEL, shards / ADAPTER]
    found = [folder for folder in folders if folder.is_dir()]
    if len(found) != 1:
        raise ShardError(f"{shards}: needs one directory {MODEL} or {ADAPTER}, has {len(found)}")
    adapter = found[0].name == ADAPTER
    stages = open_stages(found[0], tp, pp)
    return lambda: _tensors(stages, adapter), adapter


def consolidate(
    shards: Path, out: Path, *, tp: int | None = None, pp: int | None = None, max_bytes: int = writer.MAX_BYTES
) -> list[str]:
    """Put the shards of a model or a LoRA adapter together in `out`; the names of the files written there.

    `shards` is the directory named shards or adapter_shards, or the checkpoint that holds one. Whoever knows `tp` and
    `pp` says so: nothing in the shards tells how many ranks there were, so a missing last rank is noticed only then
    (or when one is left). Nothing appears in `out` unless everything could be read, and each file appears whole.
    Raises ShardError with one line for each problem.
    """
    tensors, adapter = opened(shards, tp=tp, pp=pp)
    partial = out.parent / f".{out.name}.consolidating"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        name = writer.ADAPTER_FILE if adapter else writer.MODEL_FILE
        # peft reads one file only
        files = writer.write(tensors(), partial, name, writer.ONE_FILE if adapter else max_bytes)
        out.mkdir(parents=True, exist_ok=True)
        if odd := sorted({p.name for p in out.glob("*model*.safetensors*")} - set(files)):
            raise ShardError(f"{out}: already holds other weights: {', '.join(odd[:3])}")
        for file in files:
            os.replace(partial / file, out / file)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return files
