"""Several NeuronCores as processes of XLA:CPU, which has one core: `install()` in each, before anything trains.

Real are the graphs, which XLA:CPU compiles and runs, torch_xla's process group and loops, neuronx-distributed from
NXD_SOURCE, and optimum-neuron. In the place of the collectives stands an exchange over torchrun's store: a tensor is
fetched to the host, the members of a group give each other theirs, and the result goes back to the device. What an
XLA collective does with its inputs follows torch_xla 2.1.0, core/xla_model.py (docstrings and _XLAC calls).
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch

WAIT = timedelta(seconds=120)
# Not on the registry, or (boto3, s3transfer) not needed: checkpoints go to a directory.
CLOSED = ("torch_neuronx", "libneuronxla", "neuronxcc", "boto3", "botocore", "s3transfer")
Groups = Sequence[Sequence[int]] | None


class Exchange:
    """Tensors between the processes of a job, through the key-value store."""

    def __init__(self, rank: int, world: int, store: Any) -> None:
        self.rank, self.world, self.store = rank, world, store
        self.calls: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def members(self, groups: Groups) -> tuple[int, ...]:
        """The group that this rank is in; all ranks where there are no groups."""
        if not groups:
            return tuple(range(self.world))
        return next(tuple(group) for group in groups if self.rank in group)

    def all(self, kind: str, mine: bytes, group: tuple[int, ...]) -> list[bytes]:
        """What each member gave in its same call, in the order of the group."""
        self.calls[kind, group] += 1
        if group == (self.rank,):
            return [mine]
        key = f"{kind}/{group}/{self.calls[kind, group]}"
        self.store.set(f"{key}/{self.rank}", mine)
        found = [self.store.get(f"{key}/{member}") for member in group]
        if self.store.add(f"{key}/read", 1) == len(group):
            for member in group:
                self.store.delete_key(f"{key}/{member}")
        return found

    def tensors(self, kind: str, mine: torch.Tensor, groups: Groups) -> list[torch.Tensor]:
        buffer = io.BytesIO()
        torch.save(mine.detach().cpu().contiguous(), buffer)
        raw = self.all(kind, buffer.getvalue(), self.members(groups))
        return [torch.load(io.BytesIO(one)) for one in raw]


def _reduced(kind: str, parts: list[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(parts)
    if kind == "sum":
        return stacked.sum(dim=0)
    found: torch.Tensor = {"max": stacked.amax, "min": stacked.amin}[kind](dim=0)
    return found


def prepare() -> None:
    """Imports that are the same for every core; before anything of optimum-neuron is imported."""
    _import_closed_packages()
    _import_nxd(Path(os.environ["NXD_SOURCE"]))


def install() -> Exchange:
    """Make this process one core of WORLD_SIZE; RANK, MASTER_ADDR and the rest are torchrun's."""
    import torch_xla.core.xla_model as xm
    import torch_xla.runtime as xr
    from torch.distributed import TCPStore

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Not the store that the process group has: its keys are torch's. One that rank 0 opens beside it.
    port = int(os.environ["MASTER_PORT"]) + 1
    store = TCPStore(os.environ["MASTER_ADDR"], port, world, rank == 0, timeout=WAIT)
    exchange = Exchange(rank, world, store)
    for module, names in (
        (xm, ("xrt_world_size",)),
        (xr, ("world_size", "process_count", "global_device_count")),
    ):
        for name in names:
            setattr(module, name, lambda *_: world)
    for module, names in (
        (xm, ("get_ordinal", "get_local_ordinal")),
        (xr, ("global_ordinal", "local_ordinal", "process_index")),
    ):
        for name in names:
            setattr(module, name, lambda *_: rank)
    xm.is_master_ordinal = lambda local=True: rank == 0
    collectives = Collectives(exchange)
    for name in ("all_reduce", "all_gather", "reduce_scatter", "rendezvous", "all_to_all"):
        setattr(xm, name, getattr(collectives, name))
    return exchange


class Collectives:
    """torch_xla.core.xla_model's functions of the same names, over an exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def all_reduce(
        self, reduce_type: str, inputs: Any, scale: float = 1.0, groups: Groups = None, pin_layout: bool = True
    ) -> Any:
        given = [inputs] if isinstance(inputs, torch.Tensor) else inputs
        found = []
        for tensor in given:
            parts = self.exchange.tensors("all_reduce", tensor, groups)
            found.append((_reduced(reduce_type, parts) * scale).to(tensor.dtype).to(tensor.device))
        if isinstance(inputs, torch.Tensor):
            return found[0]
        with torch.no_grad():
            for tensor, result in zip(given, found, strict=True):
                tensor.copy_(result)
        return inputs

    def all_gather(
        self, value: Any, dim: int = 0, groups: Groups = None, output: Any = None, pin_layout: bool = True
    ) -> Any:
        result = torch.cat(self.exchange.tensors("all_gather", value, groups), dim=dim).to(value.device)
        return result if output is None else output.copy_(result)

    def reduce_scatter(
        self,
        reduce_type: str,
        input: Any,
        scale: float,
        scatter_dim: int,
        shard_count: int,
        groups: Groups = None,
        output: Any = None,
        pin_layout: bool = True,
    ) -> Any:
        def mine(tensor: torch.Tensor) -> torch.Tensor:
            whole = _reduced(reduce_type, self.exchange.tensors("reduce_scatter", tensor, groups)) * scale
            at = self.exchange.members(groups).index(self.exchange.rank)
            return whole.to(tensor.dtype).chunk(shard_count, dim=scatter_dim)[at].contiguous().to(tensor.device)

        if not isinstance(input, torch.Tensor):
            return [mine(one) for one in input]
        result = mine(input)
        return result if output is None else output.copy_(result)

    def rendezvous(self, tag: str, payload: bytes = b"", replicas: Any = ()) -> list[bytes]:
        group = tuple(replicas) or tuple(range(self.exchange.world))
        return self.exchange.all(f"rendezvous {tag}", payload or b"-", group)

    def all_to_all(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("expert parallelism is not tried here")


def _import_closed_packages() -> None:
    """torch_neuronx, libneuronxla and neuronxcc: tests/neuron/shim, and mocks for modules that it does not have."""

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
            if name.partition(".")[0] in CLOSED:
                return importlib.machinery.ModuleSpec(name, self, is_package=True)
            return None

        def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
            class Stub(ModuleType):
                def __getattr__(self, name: str) -> Any:
                    if name.startswith("__"):
                        raise AttributeError(name)
                    return MagicMock(name=f"{self.__name__}.{name}")

            return Stub(spec.name)

        def exec_module(self, module: ModuleType) -> None:
            pass

    sys.meta_path.append(Finder())  # last: what the shim has is the shim's
    torch.classes.neuron = MagicMock()  # inference graphs, which neuronx-distributed names in annotations


def _import_nxd(source: Path) -> None:
    """The real neuronx-distributed, in the place of the shim's."""
    package = source / "src"
    if not (package / "neuronx_distributed" / "__init__.py").is_file():
        raise FileNotFoundError(f"NXD_SOURCE={source} is no checkout of neuronx-distributed")
    sys.path.insert(0, str(package))
    found = importlib.import_module("neuronx_distributed")
    if not str(found.__file__).startswith(str(package)):
        raise RuntimeError(f"neuronx_distributed comes from {found.__file__}")
