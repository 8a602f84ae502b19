"""Packed rows against single ones: the same summed loss and the same gradients, family by family.

.venv-train/bin/python -m tests.chain.packed_losses [FAMILY ...]: a line of JSON for each family; without names for
those that packing is allowed for. Two random layers, examples of 3 to 20 tokens, rows of 32, fp32; sdpa and eager.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from containers.model_dir import PACKED_FAMILIES
from train import packing
from train.packing import IGNORED, Sequences

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def model(family: str, attention: str) -> torch.nn.Module:
    torch.manual_seed(0)
    names = AutoConfig.for_model(family).to_dict()
    config = AutoConfig.for_model(family, **{k: v for k, v in SIZES.items() if k in names or k.endswith("token_id")})
    made = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in made.parameters():  # norms of 1 and biases of 0 would hide a mistake
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def sequences() -> Sequences:
    chance = np.random.RandomState(1)
    lengths = chance.randint(3, 21, size=40)
    trained = (chance.rand(lengths.sum()) < 0.6).astype(np.uint8)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(chance.randint(2, 97, size=lengths.sum()).astype(np.uint16), trained, starts)


def loss_and_gradient(made: torch.nn.Module, rows: packing.Rows) -> tuple[float, torch.Tensor, int]:
    """(sum of the losses, the gradient of all parameters, number of labels)."""
    made.zero_grad()
    total, labels = torch.zeros(()), 0
    for start in range(0, len(rows), 4):
        picked = [rows[i] for i in range(start, min(start + 4, len(rows)))]
        batch = {k: torch.from_numpy(np.stack([row[k] for row in picked])) for k in picked[0]}
        wanted = batch.pop("labels")
        logits = made(**packing.attention(batch, torch.float32)).logits
        kept = wanted[:, 1:] != IGNORED
        total = total + torch.nn.functional.cross_entropy(logits[:, :-1][kept], wanted[:, 1:][kept], reduction="sum")
        labels += int((wanted != IGNORED).sum())
    total.backward()
    gradients = [p.grad.flatten() for p in made.parameters() if p.grad is not None]
    return float(total.detach()), torch.cat(gradients), labels


def compare(family: str, attention: str) -> dict[str, object]:
    made, whole = model(family, attention), sequences()
    chosen = np.arange(len(whole))
    single = loss_and_gradient(made, packing.one_each(whole, chosen, 32, 0))
    packed = loss_and_gradient(made, packing.packed(whole, chosen, 32, 0, seed=0))
    gradient = float((single[1] - packed[1]).norm() / single[1].norm())
    return {"loss": [single[0], packed[0]], "gradient": gradient, "labels": [single[2], packed[2]]}


def main(families: list[str]) -> None:
    for family in families or PACKED_FAMILIES:
        for attention in ("sdpa", "eager"):
            print(json.dumps({"family": family, "attention": attention, **compare(family, attention)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
