"""The known models and adapters that are cut, and what each case is there for. Needs torch and transformers."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.shards.cut import Layout

PLAIN = Layout(tp=2, heads=4, kv_heads=2, layers=2)
REPEATED = Layout(tp=4, heads=4, kv_heads=2, layers=2)
CASES: dict[str, Layout] = {
    "tp2": PLAIN,
    "tp2 without xser": replace(PLAIN, xser=False),
    "tp2 tied": replace(PLAIN, tied=True),
    "tp2 kv heads repeated (1 head)": replace(PLAIN, kv_heads=1),
    "tp4 kv heads repeated": REPEATED,
    "tp4 kv heads repeated, tied": replace(REPEATED, tied=True),
    "tp4 kv heads repeated twice as often as needed": replace(REPEATED, heads=8, multiplier=4),
    "tp2 pp2": replace(PLAIN, pp=2),
    "tp2 pp2 tied": replace(PLAIN, pp=2, tied=True),
    "tp1 pp2": replace(PLAIN, tp=1, pp=2),
    "tp4 pp2 kv heads repeated": replace(REPEATED, pp=2),
    "tp2 with biases": PLAIN,
    "tp2 bf16": PLAIN,
}
# optimum-neuron cannot train LoRA on q, k, v where kv heads are repeated (it stops before the first step).
ADAPTERS: dict[str, tuple[Layout, tuple[str, ...]]] = {
    "lora tp2": (PLAIN, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    "lora tp4 kv heads repeated": (REPEATED, ("o_proj", "gate_proj", "up_proj", "down_proj")),
}
VOCABULARY, HIDDEN, INNER, RANK = 40, 32, 24, 4


def config(case: str, layout: Layout) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layout.layers,
        num_attention_heads=layout.heads,
        num_key_value_heads=layout.kv_heads,
        max_position_embeddings=32,
        tie_word_embeddings=layout.tied,
        attention_bias="biases" in case,
        torch_dtype="bfloat16" if "bf16" in case else "float32",
    )


def model(case: str, layout: Layout) -> LlamaForCausalLM:
    """Every number random, so that no two parameters, heads or rows are alike."""
    torch.manual_seed(7)
    made = LlamaForCausalLM(config(case, layout))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.to(made.config.torch_dtype)


def adapter(layout: Layout, targets: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(LoRA state under the names of peft's get_peft_model_state_dict, names of the base model's parameters)."""
    torch.manual_seed(8)
    state, base = {}, []
    for name, weight in model("", layout).named_parameters():
        stem, module = name.removesuffix(".weight"), name.split(".")[-2]
        prefixed = f"base_model.model.{stem}"
        if module in targets:
            state[f"{prefixed}.lora_A.weight"] = torch.randn(RANK, weight.shape[1])
            state[f"{prefixed}.lora_B.weight"] = torch.randn(weight.shape[0], RANK)
            base.append(f"{prefixed}.base_layer.weight")
        else:
            base.append(f"{prefixed}.weight")
    return state, base
