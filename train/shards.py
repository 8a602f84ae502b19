"""Read the shards of a tensor- or pipeline-parallel job, without torch_xla and without running what they name.

The layout is that of neuronx-distributed 0.9.0 (commit 083d3ea, trainer/checkpoint.py) with the metadata that
optimum-neuron 0.0.28 adds (distributed/base.py, utils/peft_utils.py); tests/shards/cut.py writes the same:

    shards/ (adapter_shards/)  done  mp_metadata_pp_rank_<p>.pt
      model/dp_rank_00_tp_rank_<tt>_pp_rank_<pp>.pt       names -> tensors, or -> references (xser) into
            ... .pt.tensors/tensor_<i>.pt  ... .pt.info.pt
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SHARD = re.compile(r"dp_rank_00_tp_rank_(\d+)_pp_rank_(\d+)\.pt")
ALLOWED = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("torch", "Size")}
ALLOWED |= {("collections", "OrderedDict"), ("builtins", "set"), ("__builtin__", "set")}


class ShardError(ValueError):
    """The shards cannot be put together: one line for each reason, also in `problems`."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Reference:
    """Stands in for torch_xla.utils.serialization.TensorReference: the number of a file."""

    tid: int


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; a shard has no need to run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch_xla.utils.serialization", "TensorReference"):
            return _Reference
        if (module, name) in ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a shard")


_PICKLE = ModuleType("shard_pickle")
_PICKLE.Unpickler = _Unpickler  # type: ignore[attr-defined]


def _load(path: Path) -> Any:
    try:
        return torch.load(str(path), map_location="cpu", mmap=True, weights_only=False, pickle_module=_PICKLE)
    except FileNotFoundError:
        raise ShardError(f"{path.name} is missing from {path.parent}") from None
    except Exception as error:  # noqa: BLE001 (torch raises many kinds for a damaged file)
        reason = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
        raise ShardError(f"{path} cannot be read, it is damaged or no shard ({reason})") from None


class Shard:
    """One rank's parameters, read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = _load(path)
        if not isinstance(self.values, dict):
            raise ShardError(f"{path}: holds a {type(self.values).__name__}, not named tensors")
        info = path.with_name(path.name + ".info.pt")
        self.info = _load(info) if info.exists() else {}

    def tensor(self, name: str) -> Any:
        value = self.values[name]
        if isinstance(value, _Reference):
            file = self.path.with_name(self.path.name + ".tensors") / f"tensor_{value.tid}.pt"
            said, value = self.info.get(value.tid, {}), _load(file)
            if said and (said["shape"], said["dtype"]) != (value.shape, value.dtype):
                raise ShardError(
                    f"{file}: {list(value.shape)} {value.dtype}, not {list(said['shape'])} {said['dtype']}"
                )
        return value


@dataclass(frozen=True)
class Stage:
    """A pipeline stage: its tensor-parallel ranks in order, and what optimum-neuron wrote about the parameters."""

    ranks: list[Shard]
    sharded: dict[str, dict[str, Any]]
    gqa: dict[str, Any]

    def parts(self, name: str) -> list[Any]:
        return [rank.tensor(name) for rank in self.ranks]

    def original(self, name: str) -> str:
        names = {new: old for old, new in self.gqa["original_names_to_gqa_qkv_names"].items()}
        return str(names.get(name, name))


def open_stages(folder: Path, tp: int | None, pp: int | None) -> list[Stage]:
    """Open every shard. Raises ShardError where the grid of ranks has a hole, or ranks do not fit together."""
    files = {}
    for path in sorted((folder / "model").glob("dp_rank_*.pt")):
        if match := SHARD.fullmatch(path.name):
            files[int(match[2]), int(match[1])] = path
    if not files:
        raise ShardError(f"{folder}: no shards (model/dp_rank_*_tp_rank_*_pp_rank_*.pt)")
    if not (folder / "done").is_file():
        raise ShardError(f"{folder}: no file `done`; the shards were not written to their end")
    depth, width = pp or max(p for p, _ in files) + 1, tp or max(t for _, t in files) + 1
    grid = [(p, t) for p in range(depth) for t in range(width)]
    problems = [f"{folder}: tp_rank {t} pp_rank {p} is missing" for p, t in grid if (p, t) not in files]
    problems += [f"{files[k]}: not of a job with TP {width} and PP {depth}" for k in sorted(files.keys() - set(grid))]
    if problems:
        raise ShardError(*problems)
    stages = []
    for p in range(depth):
        file = folder / f"mp_metadata_pp_rank_{p}.pt"
        metadata = _load(file)
        if not isinstance(metadata, dict) or not {"sharded_metadata", "gqa_qkv_metadata"} <= metadata.keys():
            raise ShardError(f"{file}: does not say how the parameters were cut")
        ranks = [Shard(files[p, t]) for t in range(width)]
        for rank in ranks[1:]:
            if odd := sorted(rank.values.keys() ^ ranks[0].values.keys()):
                problems.append(f"{rank.path.name}: has other parameters than rank 0: {', '.join(odd[:3])}")
        stages.append(Stage(ranks, metadata["sharded_metadata"], metadata["gqa_qkv_metadata"]))
    if problems:
        raise ShardError(*problems)
    return stages
