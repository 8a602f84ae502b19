"""Cut a known Llama into the shards that a job with tensor and pipeline parallelism would leave.

Written from the public sources of neuronx-distributed 0.9.0 (commit 083d3ea26f58d6b91d6e0f0deb2c0670fdb7bbb0:
trainer/checkpoint.py, parallel_layers/layers.py, modules/qkv_linear.py) and of the optimum-neuron 0.0.28 wheel
(distributed/base.py save_model_sharded_checkpoint, distributed/parallel_layers.py, utils/peft_utils.py), and in the
direction of what each rank computes, so that it shares no formula with train/consolidate.py. What is cut how:

    ParallelEmbedding          embed_tokens, and a tied lm_head     rows (0)
    ColumnParallelLinear       q k v gate up lm_head, lora_B of them  rows (0)
    RowParallelLinear          o down, lora_A of them               columns (1)
    everything else            norms, the other half of a LoRA      a copy on each rank
    kv heads < TP              q k v become qkv_proj.weight_{q,k,v}: k and v repeated kv_size_multiplier times, q and
                               o's columns follow the copy of the kv head that a rank holds
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

ROWS, COLUMNS = 0, 1
CUT = {
    **dict.fromkeys(("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ROWS),
    **dict.fromkeys(("o_proj", "down_proj"), COLUMNS),
}


@dataclass(frozen=True)
class Layout:
    """How a job was run. `multiplier` is --kv_size_multiplier; None lets optimum-neuron choose TP / kv heads."""

    tp: int
    heads: int
    kv_heads: int
    layers: int
    pp: int = 1
    xser: bool = True
    multiplier: int | None = None
    tied: bool = False

    @property
    def replicated(self) -> bool:
        return self.kv_heads < self.tp

    @property
    def copies(self) -> int:
        return self.multiplier or self.tp // self.kv_heads

    def kv_heads_of(self, rank: int) -> list[tuple[int, int]]:
        """(kv head, which of its copies) that `rank` holds: the repeated list of heads, dealt in equal runs."""
        everything = [(head, copy) for copy in range(self.copies) for head in range(self.kv_heads)]
        each = len(everything) // self.tp
        return everything[rank * each : (rank + 1) * each]

    def query_heads_of(self, rank: int) -> list[int]:
        """A copy of a kv head serves its share of the queries that belong to that head."""
        wanted = []
        for head, copy in self.kv_heads_of(rank):
            group = [q for q in range(self.heads) if q * self.kv_heads // self.heads == head]
            share = len(group) // self.copies
            wanted += group[copy * share : (copy + 1) * share]
        return wanted

    def stage_of(self, name: str) -> int:
        """Embedding first, output layer last, equal runs of layers between."""
        if ".layers." in name:
            return int(name.split(".layers.")[1].partition(".")[0]) * self.pp // self.layers
        return 0 if "embed_tokens" in name else self.pp - 1


def _part(weight: torch.Tensor, dim: int, rank: int, tp: int) -> torch.Tensor:
    size = weight.shape[dim] // tp
    return weight.narrow(dim, rank * size, size).clone()


def _heads(weight: torch.Tensor, dim: int, heads: list[int], count: int) -> torch.Tensor:
    size = weight.shape[dim] // count
    return torch.cat([weight.narrow(dim, head * size, size) for head in heads], dim=dim)


def _module(name: str) -> str:
    """The linear layer that a parameter belongs to, also through peft's wrapping."""
    parts = [part for part in name.split(".") if part not in ("base_layer", "lora_A", "lora_B")]
    return parts[-2]


def _dimension(name: str) -> int | None:
    """Along which dimension a parameter is cut; None for a copy on each rank."""
    dim = CUT.get(_module(name))
    if ("lora_A" in name and dim == ROWS) or ((".lora_B" in name or name.endswith(".bias")) and dim == COLUMNS):
        return None  # the half of a LoRA, or the bias, on the side that is not cut
    return dim


def local_name(name: str, layout: Layout) -> str:
    """The name that a rank knows a parameter by."""
    module = _module(name)
    if not (layout.replicated and module in ("q_proj", "k_proj", "v_proj")):
        return name
    assert "lora_" not in name, "optimum-neuron 0.0.28 stops here: no LoRA on q, k, v when kv heads are repeated"
    kind = name.rpartition(".")[2]
    return name.replace(f"{module}.{kind}", f"qkv_proj.{kind}_{module[0]}")


def local_part(name: str, weight: torch.Tensor, layout: Layout, rank: int) -> torch.Tensor:
    """What a rank holds of a parameter."""
    dim, module = _dimension(name), _module(name)
    if dim is None:
        return weight.clone()
    if layout.replicated and module in ("q_proj", "o_proj"):
        return _heads(weight, dim, layout.query_heads_of(rank), layout.heads)
    if layout.replicated and module in ("k_proj", "v_proj"):
        return _heads(weight, dim, [head for head, _ in layout.kv_heads_of(rank)], layout.kv_heads)
    return _part(weight, dim, rank, layout.tp)


def metadata(names: list[str], layout: Layout) -> dict[str, object]:
    """What optimum-neuron saves beside the shards: named_parameters() lists a tied parameter once."""
    sharded, mapping, outputs = {}, {}, set()
    for name in names:
        if layout.tied and name == "lm_head.weight":
            continue
        dim = _dimension(name) if layout.tp > 1 else None
        here = local_name(name, layout)
        if here != name:
            mapping[name] = here
            outputs.add(name[: name.index("self_attn.")] + "self_attn.o_proj.weight")
        sharded[here] = {"kind": "tied" if dim is None else "sharded", "partition_dim": dim}
    known = bool(mapping)
    gqa = {
        "original_names_to_gqa_qkv_names": mapping,
        "output_projections_names": outputs,
        "num_attention_heads": layout.heads if known else None,
        "num_key_value_heads": layout.kv_heads if known else None,
        "kv_size_multiplier": layout.copies if known else None,
    }
    return {"sharded_metadata": sharded, "gqa_qkv_metadata": gqa}


@contextmanager
def reference_class() -> Iterator[type]:
    """torch_xla.utils.serialization.TensorReference; where torch_xla is not installed, a class of that name."""
    name = "torch_xla.utils.serialization"
    try:
        from torch_xla.utils.serialization import TensorReference
    except ImportError:
        made = {part: ModuleType(part) for part in ("torch_xla", "torch_xla.utils", name)}
        TensorReference = type("TensorReference", (), {"__module__": name, "__init__": _init})
        made[name].TensorReference = TensorReference
        sys.modules.update(made)
        try:
            yield TensorReference
        finally:
            for part in made:
                del sys.modules[part]
    else:
        yield TensorReference


def _init(self: object, tid: int) -> None:
    self.tid = tid  # type: ignore[attr-defined]


def _save_rank(values: dict[str, torch.Tensor], path: Path, xser: bool) -> None:
    if not xser:
        torch.save(values, path)
        return
    folder = path.with_name(path.name + ".tensors")
    folder.mkdir()
    info = {}
    with reference_class() as reference:
        for i, value in enumerate(values.values()):
            torch.save(value, folder / f"tensor_{i}.pt")
            info[i] = {"dtype": value.dtype, "shape": value.shape, "expert_model_parallel": False}
        torch.save({name: reference(i) for i, name in enumerate(values)}, path)
    torch.save(info, path.with_name(path.name + ".info.pt"))


def cut(state: dict[str, torch.Tensor], folder: Path, layout: Layout, base: list[str] | None = None) -> Path:
    """Write shards of `state` to `folder`. For an adapter `base` names the base model's parameters, whose metadata
    is saved too, and the format is never xser. Returns the directory of the shards."""
    root = folder / ("shards" if base is None else "adapter_shards")
    (root / "model").mkdir(parents=True)
    (root / "checkpoint").write_text("1")
    for stage in range(layout.pp):
        names = [name for name in state if layout.stage_of(name) == stage]
        for rank in range(layout.tp):
            values = {local_name(n, layout): local_part(n, state[n], layout, rank) for n in names}
            file = root / "model" / f"dp_rank_00_tp_rank_{rank:02d}_pp_rank_{stage:02d}.pt"
            _save_rank(values, file, layout.xser and base is None)
        torch.save(metadata([*(base or []), *state], layout), root / f"mp_metadata_pp_rank_{stage}.pt")
    (root / "done").write_text("1")
    return root
