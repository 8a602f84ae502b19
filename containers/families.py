"""Which model families run where: the table of a stack, the dimensions in a config.json, and the checks on both.

The trainer asks at its start, the handler before it compiles, the harness before anything costs. The table,
families.json, is made from runs of the real packages (tests/families); each of its cells says what showed it, or why
not. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("families.json")
DEFAULT_STACK = "sdk2.20"
# Columns of the table.
TRAIN, TENSOR, PIPELINE, LORA, SERVE, BATCHING = USES = (
    "train",
    "train_tensor",
    "train_pipeline",
    "train_lora",
    "serve",
    "continuous_batching",
)
# What config.json calls a dimension, by family; the first that is there counts. transformers' attribute_map has most
# of these, for a config object; this is for the file as well.
NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads"),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    "experts": ("num_local_experts", "num_experts"),
    "sliding_window": ("sliding_window",),
}
# Positions that are no limit: BLOOM and MPT bias the attention by distance.
UNLIMITED = ("bloom", "mpt")


@dataclass(frozen=True)
class Cell:
    """One use of one family: whether it runs, and what showed that, or why not."""

    ok: bool
    why: str


@dataclass(frozen=True)
class Dimensions:
    """Shapes of a decoder in numbers of elements; None where the config does not say."""

    model_type: str
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    intermediate: int | None = None
    layers: int | None = None
    vocab: int | None = None
    positions: int | None = None
    """Tokens that the model has positions for; None where it has no such limit."""
    experts: int | None = None
    sliding_window: int | None = None

    @classmethod
    def of(cls, config: Any) -> Dimensions:
        """From config.json's object, or from a config of transformers."""
        raw = as_mapping(config)
        found: dict[str, int | None] = {}
        for ours, theirs in NAMES.items():
            value = next((raw[name] for name in theirs if raw.get(name) is not None), None)
            found[ours] = value if isinstance(value, int) and not isinstance(value, bool) else None
        model_type = str(raw.get("model_type", ""))
        if raw.get("multi_query") is True and not raw.get("new_decoder_architecture"):
            found["kv_heads"] = 1  # Falcon and GPT-BigCode: one head of keys and values for all queries
        elif found["kv_heads"] is None:
            found["kv_heads"] = found["heads"]
        if found["intermediate"] is None and found["hidden"] is not None:
            found["intermediate"] = 4 * found["hidden"]  # GPT-2, GPT-J, GPT-Neo, BLOOM, Falcon, where it is not given
        if model_type in UNLIMITED:
            found["positions"] = None
        return cls(model_type, **found)


def as_mapping(config: Any) -> Mapping[str, Any]:
    """config.json's object as it is; a config of transformers under the names of that file."""
    if isinstance(config, Mapping):
        return config
    if hasattr(config, "to_dict"):
        made: Mapping[str, Any] = config.to_dict()
        return made
    found: Mapping[str, Any] = vars(config)
    return found


# -- the table


def families(stack: str = DEFAULT_STACK) -> dict[str, dict[str, Cell]]:
    """model_type -> use -> cell. Raises KeyError for a stack without a table."""
    raw = json.loads(TABLE.read_text(encoding="utf-8"))[stack]["families"]
    return {name: {use: Cell(**row[use]) for use in USES} for name, row in raw.items()}


def training_problems(
    model_type: str, *, tensor: int = 1, pipeline: int = 1, lora: bool = False, stack: str = DEFAULT_STACK
) -> list[str]:
    """Why a model of this family cannot be trained so; empty where it can, or where nobody has tried the family.

    A family that is not in the table may well train on one core a copy; `unknown_family` has a line about it.
    """
    table = families(stack)
    row = table.get(model_type)
    asked = [(TRAIN, True, "be trained"), (TENSOR, tensor > 1, f"be trained with tensor_parallel_size {tensor}")]
    asked += [(PIPELINE, pipeline > 1, f"be trained with pipeline_parallel_size {pipeline}")]
    asked += [(LORA, lora, "be trained with LoRA")]
    problems = []
    for use, wanted, what in asked:
        if not wanted or (row is None and use in (TRAIN, LORA)):
            continue
        cell = row[use] if row is not None else Cell(False, "this family is not in the table")
        if not cell.ok:
            others = ", ".join(name for name, cells in table.items() if cells[use].ok)
            problems.append(f"a {model_type} model cannot {what} on stack {stack}: {cell.why}; these can: {others}")
    return problems


def unknown_family(model_type: str, stack: str = DEFAULT_STACK) -> str:
    """A line for a family that was not tried on this stack; empty for one in the table."""
    if model_type in families(stack):
        return ""
    return f"model family {model_type} has not been tried on stack {stack}: compare the first losses with device cpu"


def serving_problems(config: Any, *, tp_degree: int, n_positions: int, stack: str = DEFAULT_STACK) -> list[str]:
    """Why a model of this config cannot be served by engine neuron; empty where it can."""
    size, raw, table = Dimensions.of(config), as_mapping(config), families(stack)
    row = table.get(size.model_type)
    cells = [row[use] for use in (SERVE, BATCHING)] if row is not None else [Cell(False, "it is not in the table")]
    for cell in cells:
        if not cell.ok:
            others = ", ".join(name for name, one in table.items() if one[SERVE].ok and one[BATCHING].ok)
            kind = size.model_type or "(no model_type)"
            return [f"a {kind} model cannot be served on stack {stack}: {cell.why}; these can: {others}"]
    return _graph_problems(size, raw) + _shape_problems(size, tp_degree, n_positions)


def _graph_problems(size: Dimensions, raw: Mapping[str, Any]) -> list[str]:
    """What transformers-neuronx 0.12 leaves out of its graphs of Llama, Mistral and Mixtral without a word.

    Read in llama/model.py, mistral/model.py and mixtral/model.py (load_weights), config.py and hlo.py of each, commit
    6c0b875. Only the first of these ends with an error there; with the others the answers would be wrong.
    """
    problems = []
    scaling = raw.get("rope_scaling")
    kind = (scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, Mapping) else None
    known = ("default", "llama3") if size.model_type == "llama" else ("default",)
    if kind is not None and kind not in known:
        problems.append(f"rope_scaling {kind} is not in its graphs; known: {', '.join(known)}")
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name) is True:
            problems.append(f"{name} is true, and its graphs leave these biases out")
    if size.head_dim is not None and size.hidden and size.heads and size.head_dim * size.heads != size.hidden:
        problems.append(
            f"head_dim is {size.head_dim}, and its graphs take hidden_size / num_attention_heads, "
            f"{size.hidden / size.heads:g}"
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        problems.append(f"hidden_act is {raw['hidden_act']}, and its graphs always take silu")
    return [f"engine neuron cannot serve this {size.model_type} model: {problem}" for problem in problems]


def _shape_problems(size: Dimensions, tp_degree: int, n_positions: int) -> list[str]:
    problems = []
    if size.positions is not None and n_positions > size.positions:
        problems.append(
            f"n_positions {n_positions} exceeds the model's {size.positions} positions: lower n_positions"
        )
    if size.sliding_window is not None and _slides(size) and n_positions > size.sliding_window:
        problems.append(
            f"n_positions {n_positions} exceeds the model's attention window of {size.sliding_window}, whose graphs "
            f"have not been tried: set n_positions {size.sliding_window} or less"
        )
    if size.heads is not None and tp_degree > size.heads:
        problems.append(f"tp_degree {tp_degree} exceeds the model's {size.heads} attention heads: lower tp_degree")
    if size.experts and size.model_type == "mixtral" and size.experts % tp_degree and tp_degree % size.experts:
        problems.append(
            f"tp_degree {tp_degree} and the model's {size.experts} experts: neither divides the other "
            f"(mixtral/config.py)"
        )
    return problems


def _slides(size: Dimensions) -> bool:
    return size.model_type in ("mistral", "mixtral")


# -- what a layout of cores needs of the dimensions; sources: optimum-neuron 0.0.28, distributed/


def tensor_problems(size: Dimensions, tensor: int, sequence_parallel: bool, block_size: int) -> list[str]:
    """Dimensions that tensor parallelism in training does not divide, and the sizes that fit."""
    if tensor == 1:
        return []
    problems = []
    fits = ", ".join(str(n) for n in sizes_that_fit(size)) or "1"
    for what, count in (
        ("attention heads", size.heads),
        ("intermediate size", size.intermediate),
        # Upstream goes on with an embedding on every core and says so in a warning; memory is then not what was
        # planned, and the loss takes another path.
        ("vocabulary", size.vocab),
    ):
        if count is not None and count % tensor:
            problems.append(
                f"tensor_parallel_size {tensor} does not divide the model's {what} ({count}): use one of {fits}"
            )
    if size.kv_heads is not None and size.kv_heads % tensor and tensor % size.kv_heads:
        problems.append(
            f"tensor_parallel_size {tensor} and the model's key-value heads ({size.kv_heads}): neither divides the "
            f"other; use one of {fits}"
        )
    if sequence_parallel and block_size % tensor:
        up = -(-block_size // tensor) * tensor
        problems.append(
            f"block_size {block_size} is no multiple of tensor_parallel_size {tensor}, which sequence parallelism "
            f"needs: set block_size {up}, or disable_sequence_parallel true"
        )
    return problems


def sizes_that_fit(size: Dimensions) -> list[int]:
    """Tensor-parallel sizes that this model can be cut into; Trainium 1 has up to 32 cores."""
    divided = [d for d in (size.heads, size.vocab, size.intermediate) if d is not None]
    shared = size.kv_heads
    return [
        n
        for n in range(1, 33)
        if not any(d % n for d in divided) and (shared is None or not shared % n or not n % shared)
    ]


def pipeline_problems(size: Dimensions, pipeline: int) -> list[str]:
    """Whether the layers can be shared out to the stages of a pipeline."""
    if pipeline == 1 or size.layers is None or size.layers % pipeline == 0:
        return []
    fits = ", ".join(str(n) for n in range(1, min(size.layers, 32) + 1) if size.layers % n == 0)
    return [f"pipeline_parallel_size {pipeline} does not divide the model's {size.layers} layers: use one of {fits}"]


def position_problems(size: Dimensions, block_size: int) -> list[str]:
    """Rows longer than what the model has positions for."""
    if size.positions is None or block_size <= size.positions:
        return []
    return [
        f"block_size {block_size} exceeds the model's {size.positions} positions: set block_size {size.positions}"
    ]
