"""A tiny Llama whose answers differ for every change of its context: `write(folder)`.

tests/chain's model keeps transformers' small initial weights and so repeats its last token whatever came before;
here the weights are large, and one token changed, moved or lost anywhere changes what follows.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests.chain import make_tiny_model


def write(folder: Path, seed: int = 0) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    make_tiny_model.main(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.config.max_position_embeddings = 512  # rotary: no weight depends on it; the scenarios go beyond 128
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.6)
        # Bytes that are no character of their own are seldom chosen, so that most answers can be read.
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for token in range(len(tokenizer)):
            if "\ufffd" in tokenizer.decode([token]):
                model.model.embed_tokens.weight[token] *= 0.5
    model.save_pretrained(folder)
