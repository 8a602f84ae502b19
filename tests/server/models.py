"""Tiny models of many kinds, saved as artifacts: `python -m tests.server.models DIR NAME...` in .venv-serve.

Weights are large, so that one token changed, moved or lost anywhere changes what follows (tests/tnx/tiny.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
# name -> (class, changes of SIZES)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, grouped queries, tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama, one key head": ("Llama", {"num_key_value_heads": 1}),
    "llama, linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, llama3": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "num_key_value_heads": 2}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 16}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 4096}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "rope_theta": 1000000.0}),
}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, sliding window": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 24}),
    "llama, dynamic": ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "gpt_neox": ("GPTNeoX", {}),
    "gpt2": ("GPT2", {}),
    "gemma2": ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8}),
    "falcon": ("Falcon", {}),
    "bloom": ("Bloom", {}),
}


def write(folder: Path, name: str) -> Path:
    """Model directory `name` below `folder`; its tokenizer is that of tests/chain's model."""
    import torch
    import transformers

    from tests.chain import make_tiny_model

    target = folder / name.replace(", ", "-").replace(" ", "_")
    make_tiny_model.main(target)
    kind, changes = {**OURS, **THEIRS}[name]
    vocabulary = json.loads((target / "config.json").read_text())["vocab_size"]
    config = getattr(transformers, f"{kind}Config")(
        **{**SIZES, "vocab_size": vocabulary, "eos_token_id": 1, "bos_token_id": 0, **changes}
    )
    torch.manual_seed(0)
    made = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    model = made(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if (weight.dim() > 1 and "norm" not in key) or "bias" in key:
                weight.normal_(std=0.3)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(target)
    return target


if __name__ == "__main__":
    for one in sys.argv[2:]:
        write(Path(sys.argv[1]), one)
