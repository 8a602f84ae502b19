"""A Llama-family forward pass on the CPU for sequences that join and leave: plain torch, preallocated memory.

Llama, TinyLlama, SmolLM2, Mistral and Qwen2/2.5 are one architecture (arXiv:2302.13971; grouped queries 2305.13245;
rotary positions 2104.09864) with differences that `Architecture.read` knows: biases of q, k and v, tied embeddings,
scaled rotary positions. What it does not know it refuses by name; the caller then takes transformers' own model.

A step reads any number of tokens of each of its rows. Projections run over all tokens of the step at once, so that a
weight is read from memory once a step; attention runs over running rows together and over each prompt by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from serve.scheduler import Row, Step

MODEL_TYPES = ("llama", "mistral", "qwen2")
ROUND = 32  # tokens of a step beyond this many are filled up to a multiple of it: oneDNN keeps code for each number
PAD = 32  # keys of a decode step are taken in multiples of it, so that the mask is seldom made in a new shape

NEAR = 2.0**-6  # of the largest logit: what the rounding of two bf16 numbers can hide


class Unsupported(ValueError):
    """This forward pass does not know something of the model; the message names it."""


@dataclass(frozen=True)
class Architecture:
    """What config.json says of a model, as far as the forward pass needs it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    tied: bool
    inverse_frequencies: tuple[float, ...]
    """Of the rotary positions, (head_dim / 2,)."""

    @classmethod
    def read(cls, config: dict[str, Any], n_positions: int) -> Architecture:
        """From config.json's values. Raises Unsupported naming everything that is not known."""
        problems = []
        if config.get("model_type") not in MODEL_TYPES:
            problems.append(f"model_type {config.get('model_type')}")
        if config.get("hidden_act", "silu") != "silu":
            problems.append(f"hidden_act {config['hidden_act']}")
        window = config.get("sliding_window")
        if (
            window
            and config.get("use_sliding_window", config.get("model_type") == "mistral")
            and n_positions > window
        ):
            problems.append(f"sliding_window {window} below n_positions {n_positions}")
        if config.get("quantization_config"):
            problems.append("quantization_config")
        if config.get("pretraining_tp", 1) != 1:
            problems.append(f"pretraining_tp {config['pretraining_tp']}")
        if problems:
            raise Unsupported(", ".join(problems))
        heads = config["num_attention_heads"]
        dim = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=dim,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied=bool(config.get("tie_word_embeddings", False)),
            inverse_frequencies=tuple(_frequencies(config, dim).tolist()),
        )


def _frequencies(config: dict[str, Any], dim: int) -> Tensor:
    """Inverse frequencies, (dim / 2,), scaled as config.json asks: transformers 4.45, modeling_rope_utils.py.

    transformers 5 writes `rope_parameters` for rope_theta and rope_scaling together; 4.45 would take theta as 10,000.
    """
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise Unsupported("partial_rotary_factor")
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    if kind == "default":
        return inverse
    if kind == "linear":
        return inverse / scaling["factor"]
    if kind != "llama3":
        raise Unsupported(f"rope_scaling {kind}")
    # Long waves are stretched by the factor, short ones stay, those between are blended.
    factor, old = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = old / scaling["low_freq_factor"], old / scaling["high_freq_factor"]
    waves = 2 * math.pi / inverse
    blend = (old / waves - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
    blended = (1 - blend) * inverse / factor + blend * inverse
    return torch.where(waves > low, inverse / factor, torch.where(waves < high, inverse, blended))


class Linear:
    """y = x W^T + b, with W in oneDNN's own order where that is faster; optionally joined with what comes after.

    A row-major bf16 weight is read at 11.7 GB/s by torch's linear, a packed one at 17 to 19 (measured on Sapphire
    Rapids). The operators are those that torch.compile's freezing uses; where they are missing, `packed` is False.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: bool) -> None:
        self.bias, self.packed = bias, pack
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 16) if pack else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], "")
        return F.silu(F.linear(x, self.weight, self.bias))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
        return F.linear(x, self.weight, self.bias) * other


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators are there, take this type and compute the same as torch's linear."""
    if dtype != torch.bfloat16:
        return False
    try:
        weight, x = torch.randn(32, 64).to(dtype), torch.randn(2, 64).to(dtype)
        plain, packed = (Linear(weight, None, p) for p in (False, True))
        pairs = ((f(x), g(x)) for f, g in ((plain, packed), (plain.silu, packed.silu)))
        near = all(torch.allclose(a.float(), b.float(), atol=0.1, rtol=0.05) for a, b in pairs)
        other = torch.randn(2, 32).to(dtype)
        packed.times(x, other)
        return near
    except (AttributeError, RuntimeError, TypeError):
        return False


@dataclass
class Layer:
    norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


class Llama:
    """Weights and the memory of `slots` sequences of up to `n_positions` tokens.

    Memory: 2 * layers * slots * n_positions * kv_heads * head_dim numbers; the operating system gives it page by page
    as it is written.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Callable[[str], Tensor | None],
        dtype: torch.dtype,
        slots: int,
        n_positions: int,
    ) -> None:
        self.a, self.dtype = architecture, dtype
        self.slots, self.n_positions = slots, n_positions
        a, pack = architecture, can_pack(dtype)
        self.packed = pack
        self.group = a.heads // a.kv_heads

        def need(name: str) -> Tensor:
            found = weights(name)
            if found is None:
                raise Unsupported(f"no weight {name}")
            return found.to(dtype)

        def linear(*names: str, turn: int = 0) -> Linear:
            """One projection out of several; the first `turn` of them are reordered for rotary positions."""
            parts, biases = [], []
            for i, name in enumerate(names):
                order = _interleaved if i < turn else _as_is
                parts.append(order(need(f"{name}.weight"), a.head_dim))
                bias = weights(f"{name}.bias")
                zeros = torch.zeros(len(parts[-1]), dtype=dtype)
                biases.append(zeros if bias is None else order(bias.to(dtype), a.head_dim))
            has_bias = any(weights(f"{name}.bias") is not None for name in names)
            return Linear(torch.cat(parts), torch.cat(biases) if has_bias else None, pack)

        self.layers = []
        for i in range(a.layers):
            attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
            self.layers.append(
                Layer(
                    need(f"model.layers.{i}.input_layernorm.weight").float(),
                    linear(*(f"{attention}.{p}_proj" for p in "qkv"), turn=2),
                    linear(f"{attention}.o_proj"),
                    need(f"model.layers.{i}.post_attention_layernorm.weight").float(),
                    linear(f"{mlp}.gate_proj"),
                    linear(f"{mlp}.up_proj"),
                    linear(f"{mlp}.down_proj"),
                )
            )
        self.embedding = need("model.embed_tokens.weight")
        head = None if a.tied else weights("lm_head.weight")
        self.out = self.embedding if head is None else head.to(dtype)
        self.head = Linear(self.out, None, pack)
        self.norm = need("model.norm.weight").float()
        angles = torch.outer(torch.arange(n_positions).float(), torch.tensor(a.inverse_frequencies))
        self.turns = torch.polar(torch.ones_like(angles), angles)  # (n_positions, head_dim / 2), complex
        # Keys and values side by side, one row a position, so that a step writes both with one copy.
        shape = (slots * n_positions, 2 * a.kv_heads * a.head_dim)
        self.memory = [torch.zeros(shape, dtype=dtype) for _ in range(a.layers)]
        # Which place of the memory a slot's sequence lies in: running rows are kept in the first places, without
        # gaps, so that attention reads them as one tensor.
        self.place = list(range(slots))

    def forward(self, step: Step) -> NDArray[np.float32]:
        """Logits (sampled rows, vocabulary) of a step, in the order of its rows."""
        with torch.inference_mode():
            self._gather([row.slot for row in step.rows if len(row.tokens) == 1], step)
            rows = sorted(step.rows, key=lambda row: (len(row.tokens) != 1, self.place[row.slot]))
            hidden = self._run(rows)
            last = np.cumsum([len(row.tokens) for row in rows]) - 1
            ends = {id(row): int(i) for row, i in zip(rows, last)}  # noqa: B905 (3.10)
            wanted = [ends[id(row)] for row in step.rows if row.sampled]
            if not wanted:
                return np.empty((0, len(self.embedding)), dtype=np.float32)
            return self._logits(hidden[wanted])

    def forward_all(self, prompts: list[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        """Logits (tokens, vocabulary) of every position of each prompt, without the slots' memory."""
        with torch.inference_mode():
            sequence: Any = None
            logits = self._logits(self._run([Row(sequence, -1, 0, list(tokens), True) for tokens in prompts]))
            return np.split(logits, np.cumsum([len(tokens) for tokens in prompts])[:-1])

    def _logits(self, hidden: Tensor) -> NDArray[np.float32]:
        normed, count = _rms(hidden, self.norm, self.a.norm_eps, torch.float32), len(hidden)
        more = -count % ROUND if count > ROUND else 0
        # What was filled in is cut off before the next lines: all its logits are the largest.
        logits = self.head(F.pad(normed, (0, 0, 0, more)).to(self.dtype))[:count].float()
        if self.dtype != torch.float32:
            # A bf16 logit of 16 has neighbours at 15.9 and 16.1: which is the largest is decided in fp32.
            best = logits.amax(1, keepdim=True)
            rows, tokens = torch.nonzero(logits >= best - NEAR * best.abs(), as_tuple=True)
            logits[rows, tokens] = (normed[rows] * self.out[tokens]).sum(1)
        return logits.numpy()

    def _run(self, rows: list[Row]) -> Tensor:
        """Hidden states (tokens of all rows, hidden) before the last norm; running rows come first."""
        a = self.a
        ids = torch.tensor([t for row in rows for t in row.tokens])
        positions = torch.tensor([p for row in rows for p in range(row.start, row.end)])
        at = torch.tensor(
            [self.place[row.slot] * self.n_positions + p for row in rows for p in range(row.start, row.end)]
        )
        count = len(ids)
        more = -count % ROUND if count > ROUND else 0
        if more:
            ids, positions = F.pad(ids, (0, more)), F.pad(positions, (0, more))
        attention = self._attention(rows, more)
        turns = self.turns[positions][:, None]
        turned = (a.heads + a.kv_heads) * a.head_dim
        # In fp32 between the layers: what a layer adds is small beside the sum, and bf16 would round it away.
        x = F.embedding(ids, self.embedding).float()
        keep = rows[0].slot >= 0
        for layer, memory in zip(self.layers, self.memory):  # noqa: B905 (3.10)
            qkv = layer.qkv(_rms(x, layer.norm, a.norm_eps, self.dtype))
            _turn(qkv[:, :turned].unflatten(1, (-1, a.head_dim)), turns)
            if keep:
                memory.index_copy_(0, at, qkv[:count, a.heads * a.head_dim :])
            x += layer.out(attention(qkv, memory))
            h = _rms(x, layer.mlp_norm, a.norm_eps, self.dtype)
            x += layer.down(layer.up.times(h, layer.gate.silu(h)))
        return x[:count]

    def _attention(self, rows: list[Row], more: int) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of (qkv, memory) that attends for all rows, and `more` rows of zeros; masks are made once."""
        ones = [row for row in rows if len(row.tokens) == 1 and row.slot >= 0]
        parts: list[Callable[[Tensor, Tensor], Tensor]] = []
        if ones:
            parts.append(self._attend_running(ones))
        at = len(ones)
        for row in rows[len(ones) :]:
            parts.append(self._attend_prompt(row, at))
            at += len(row.tokens)
        if len(parts) == 1 and not more:
            return parts[0]
        rest = torch.zeros(more, self.a.heads * self.a.head_dim, dtype=self.dtype)
        return lambda qkv, memory: torch.cat([*(part(qkv, memory) for part in parts), rest])

    def _attend_running(self, rows: list[Row]) -> Callable[[Tensor, Tensor], Tensor]:
        """Rows of one token each, which lie in the first places: one call with the longest's keys, masked."""
        a, n = self.a, len(rows)
        ends = torch.tensor([row.end for row in rows])
        longest = min(-(-int(ends.max()) // PAD) * PAD, self.n_positions)
        hidden = torch.arange(longest)[None] >= ends[:, None]
        mask = torch.zeros(n, 1, 1, longest, dtype=self.dtype).masked_fill_(hidden[:, None, None], -math.inf)

        def attend(qkv: Tensor, memory: Tensor) -> Tensor:
            q = qkv[:n, : a.heads * a.head_dim].reshape(n, a.kv_heads, self.group, a.head_dim)
            kv = memory.view(self.slots, self.n_positions, 2, a.kv_heads, a.head_dim)[:n, :longest]
            out = F.scaled_dot_product_attention(
                q, kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2), attn_mask=mask
            )
            return out.reshape(n, -1)

        return attend

    def _attend_prompt(self, row: Row, at: int) -> Callable[[Tensor, Tensor], Tensor]:
        """A prompt, or a part of it, over what stands in its place already and itself."""
        a, n = self.a, len(row.tokens)
        mask = None
        if row.start:
            hidden = torch.arange(row.end)[None] > torch.arange(row.start, row.end)[:, None]
            mask = torch.zeros(n, row.end, dtype=self.dtype).masked_fill_(hidden, -math.inf)
        first = self.place[row.slot] * self.n_positions
        size = a.heads * a.head_dim

        def attend(qkv: Tensor, memory: Tensor) -> Tensor:
            own = qkv[at : at + n]
            # Key heads as the batch and the queries of each as its heads: nothing is copied for grouped queries.
            q = own[:, :size].reshape(n, a.kv_heads, self.group, a.head_dim).permute(1, 2, 0, 3)
            kv = (own[:, size:] if not row.start else memory[first : first + row.end]).unflatten(
                1, (2, a.kv_heads, a.head_dim)
            )
            k, v = (kv[:, i].transpose(0, 1)[:, None].expand(-1, self.group, -1, -1) for i in (0, 1))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            return out.permute(2, 0, 1, 3).reshape(n, -1)

        return attend

    def _gather(self, running: list[int], step: Step) -> None:
        """Let the sequences of slots `running` lie in the first places, by exchanging few with others."""
        n = len(running)
        outside = [slot for slot in running if self.place[slot] >= n]
        if not outside:
            return
        inside = {self.place[slot] for slot in running}
        holder = {place: slot for slot, place in enumerate(self.place)}
        for slot, hole in zip(outside, (p for p in range(n) if p not in inside)):  # noqa: B905 (shorter of both)
            other, place = holder[hole], self.place[slot]
            for memory in self.memory:
                view = memory.view(self.slots, self.n_positions, -1)
                kept = view[hole].clone()
                view[hole] = view[place]
                view[place] = kept
            self.place[slot], self.place[other] = hole, place


def _rms(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Root mean square norm (arXiv:1910.07467) of fp32 rows, in `dtype`."""
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return ((x * scale) * weight).to(dtype)


def _turn(heads: Tensor, turns: Tensor) -> None:
    """Rotary positions, in place: pairs of neighbours as complex numbers, (tokens, heads, head_dim)."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    heads.copy_(torch.view_as_real(pairs * turns).flatten(-2))


def _interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Output rows of q or k so that the two numbers of a rotary pair are neighbours.

    Checkpoints have them half a head apart. Queries and keys are reordered alike, so their products stay the same.
    """
    rest = weight.shape[1:]
    return weight.reshape(-1, 2, head_dim // 2, *rest).transpose(1, 2).reshape(-1, *rest)


def _as_is(weight: Tensor, _head_dim: int) -> Tensor:
    return weight


def read_weights(folder: Path) -> Callable[[str], Tensor | None]:
    """A function from a weight's name to its tensor, or None. Safetensors, whole or sharded.

    Raises Unsupported where the model has another form.
    """
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    files = (
        sorted({folder / n for n in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        if index.is_file()
        else [folder / "model.safetensors"]
    )
    if not all(file.is_file() for file in files):
        raise Unsupported("no model.safetensors")
    opened = [safe_open(str(file), "pt") for file in files]
    where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (no mapping)
    return lambda name: where[name].get_tensor(name) if name in where else None
