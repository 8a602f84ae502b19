"""Shapes of a decoder: what config.json says, and how many parameters follow from it.

Counts are exact for the families in FAMILIES and tested against the published numbers (data/models.json). Another
model_type is counted as a gated decoder without biases, and says so (`known` is False).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import InvalidInput

Q, K, V, O = "q_proj", "k_proj", "v_proj", "o_proj"  # noqa: E741 (transformers' own names)
GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"


@dataclass(frozen=True)
class Family:
    """What a model_type adds to the common decoder. `norms`: RMS norms of the hidden size per layer."""

    qkv_bias: bool = False
    other_bias: bool = False
    """Biases of the output projection and of the MLP, and LayerNorms with a shift instead of RMS norms."""
    gated: bool = True
    norms: int = 2
    qk_norm: str = ""
    """"head": one weight per dimension of a head; "full": one per output of the projection."""
    learned_positions: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "phi3": Family(),
    "granite": Family(),
    "smollm3": Family(),
    "gemma": Family(),
    "gemma2": Family(norms=4),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "qwen3_moe": Family(qk_norm="head"),
    "olmo2": Family(qk_norm="full"),
    "gpt_neox": Family(qkv_bias=True, other_bias=True, gated=False),
    "gpt2": Family(qkv_bias=True, other_bias=True, gated=False, learned_positions=True),
}


@dataclass(frozen=True)
class Architecture:
    """A decoder's shapes. Numbers are counts of elements; bytes depend on the number format and come later."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    tied: bool
    experts: int = 0
    """Experts per layer; 0 for a dense MLP. `intermediate` is then one expert's."""
    experts_per_token: int = 0
    known: bool = True

    @property
    def family(self) -> Family:
        return FAMILIES.get(self.model_type, Family())

    def projections(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one block: name -> (inputs, outputs). Of an MLP with experts: one expert's."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        out = {Q: (self.hidden, q), K: (self.hidden, kv), V: (self.hidden, kv), O: (q, self.hidden)}
        if self.family.gated:
            out[GATE] = (self.hidden, self.intermediate)
        return {**out, UP: (self.hidden, self.intermediate), DOWN: (self.intermediate, self.hidden)}

    @property
    def attention_parameters(self) -> int:
        """One block's four projections with their biases and norms of queries and keys."""
        shapes = self.projections()
        count = sum(a * b for name, (a, b) in shapes.items() if name in (Q, K, V, O))
        if self.family.qkv_bias:
            count += sum(shapes[name][1] for name in (Q, K, V))
        if self.family.other_bias:
            count += self.hidden
        if self.family.qk_norm == "head":
            count += 2 * self.head_dim
        elif self.family.qk_norm == "full":
            count += shapes[Q][1] + shapes[K][1]
        return count

    @property
    def mlp_parameters(self) -> int:
        """One block's MLP: all experts and their router where there are any."""
        one = (3 if self.family.gated else 2) * self.hidden * self.intermediate
        if self.family.other_bias:
            one += self.intermediate + self.hidden
        return one * self.experts + self.hidden * self.experts if self.experts else one

    @property
    def layer_parameters(self) -> int:
        norms = self.family.norms * self.hidden * (2 if self.family.other_bias else 1)
        return self.attention_parameters + self.mlp_parameters + norms

    @property
    def embedding_parameters(self) -> int:
        """The input embedding, with learned positions where the family has them."""
        return (self.vocab + (self.positions if self.family.learned_positions else 0)) * self.hidden

    @property
    def head_parameters(self) -> int:
        """The output head, as stored: none where it is tied to the embedding."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Every stored parameter, tied weights once."""
        final = self.hidden * (2 if self.family.other_bias else 1)
        return self.layers * self.layer_parameters + self.embedding_parameters + self.head_parameters + final

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes: with experts only those that are chosen for it."""
        if not self.experts:
            return self.parameters
        one = (3 if self.family.gated else 2) * self.hidden * self.intermediate
        return self.parameters - self.layers * one * (self.experts - self.experts_per_token)

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Trainable parameters of adapters of `rank` on the projections `targets` (https://arxiv.org/abs/2106.09685)."""
        shapes = self.projections()
        per_layer = sum(rank * (a + b) for name, (a, b) in shapes.items() if name in targets)
        return self.layers * per_layer


# What other families call the same number (GPT-2, OPT, Bloom, Falcon in transformers).
SYNONYMS = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "max_sequence_length"),
}
TIED_BY_DEFAULT = ("gemma", "gemma2", "gpt2", "opt", "bloom")


def from_config(config: Mapping[str, Any], where: str = "config.json") -> Architecture:
    """The shapes in a config.json. Raises InvalidInput where a needed number is missing or none."""
    text = config.get("text_config")
    raw = text if isinstance(text, Mapping) else config

    def number(key: str, default: int | None = None) -> int:
        value = next((raw[k] for k in (key, *SYNONYMS.get(key, ())) if raw.get(k) is not None), default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{where}: {key} must be a whole number above 0, not {value!r}")
        return value

    kind = str(raw.get("model_type") or config.get("model_type") or "")
    hidden, heads = number("hidden_size"), number("num_attention_heads")
    experts = raw.get("num_local_experts") or raw.get("num_experts") or 0
    expert_width = bool(experts) and raw.get("moe_intermediate_size") is not None
    intermediate = number("moe_intermediate_size" if expert_width else "intermediate_size", 4 * hidden)
    tied = raw.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return Architecture(
        model_type=kind,
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", max(hidden // heads, 1)),
        intermediate=intermediate,
        vocab=number("vocab_size"),
        positions=number("max_position_embeddings", 2048),
        tied=bool(tied) if tied is not None else kind in TIED_BY_DEFAULT,
        experts=int(experts),
        experts_per_token=int(raw.get("num_experts_per_tok") or 0),
        known=kind in FAMILIES,
    )
