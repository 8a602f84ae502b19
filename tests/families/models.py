"""A tiny model of every family that is tried: `write(family, folder)`; needs transformers.

Every dimension is divisible by 2, so that two cores can share it, and the vocabulary is the tiny tokenizer's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, POSITIONS = 64, 128, 2, 4, 2, 256
_BLOCK = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_GATED = {**_BLOCK, "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "num_key_value_heads": KV_HEADS}
_GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
_NO_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
_GPT2_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# Dropout is off: its random numbers are the device's own, and the losses are compared.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_GATED},
    "mistral": {**_GATED, "sliding_window": None},
    "mixtral": {**_GATED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2": {**_GATED},
    "qwen2_moe": {
        **_GATED,
        **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        **{"num_experts": 2, "num_experts_per_tok": 1},
    },
    "phi": {**_GATED, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "phi3": {**_GATED, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "sliding_window": None},
    "gemma": {**_GATED, "head_dim": 16},
    "gemma2": {**_GATED, "head_dim": 16},
    "granite": {**_GATED},
    "cohere": {**_GATED},
    "olmo": {**_GATED},
    "olmo2": {**_GATED},
    "stablelm": {**_GATED, **_NO_DROPOUT},
    "starcoder2": {**_GATED, "attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    "gpt2": {**_GPT2, **_GPT2_NO_DROPOUT},
    "gpt_bigcode": {**_GPT2, **_GPT2_NO_DROPOUT},
    "gptj": {**_GPT2, "rotary_dim": 8, **_GPT2_NO_DROPOUT},
    "gpt_neo": {
        **{"hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "max_position_embeddings": POSITIONS},
        **{"attention_types": [[["global", "local"], 1]], "window_size": 32},
        **{"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0},
    },
    "gpt_neox": {**_BLOCK, "intermediate_size": INNER, "max_position_embeddings": POSITIONS, **_NO_DROPOUT},
    "opt": {
        **_BLOCK,
        **{"ffn_dim": INNER, "max_position_embeddings": POSITIONS, "word_embed_proj_dim": HIDDEN},
        **{"dropout": 0.0, "attention_dropout": 0.0},
    },
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, **_NO_DROPOUT},
    "falcon": {**_BLOCK, "multi_query": True, "alibi": False, **_NO_DROPOUT},
    "mpt": {"d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": POSITIONS},
}


def config_of(family: str, vocabulary: int, end: int) -> Any:
    """transformers' config of the tiny model of `family`."""
    from transformers import CONFIG_MAPPING

    tokens = {"vocab_size": vocabulary, "eos_token_id": end, "bos_token_id": None, "pad_token_id": end}
    return CONFIG_MAPPING[family](**FAMILIES[family], **tokens)


def write(family: str, folder: Path, scale: float | None = None, seed: int = 0, multiple: int = 1) -> None:
    """A tokenizer and a random model of `family` in `folder`; its vocabulary is a multiple of `multiple`.

    With `scale` the weights of matrices are that large, so that any token changed, moved or lost changes the answer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.chain import make_tiny_model

    make_tiny_model.main(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    vocabulary = -(-len(tokenizer) // multiple) * multiple
    model = AutoModelForCausalLM.from_config(config_of(family, vocabulary, tokenizer.eos_token_id))
    if scale is not None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1:
                    weight.normal_(std=scale)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)
