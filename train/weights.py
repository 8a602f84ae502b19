"""The weights of a model directory against the model that transformers makes of its configuration: names, shapes.

What is not in the files transformers fills with random numbers and says so in a warning; what has another shape it
raises for after all has been read. Only headers are read here, and the model is made without memory (torch's meta
device).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from containers import model_dir


def problems(folder: Path) -> list[str]:
    """A line for weights that are missing and for those of another shape; empty for models without safetensors."""
    found = model_dir.tensors(folder)
    if not found:
        return []
    expected, prefix, optional = _expected(folder)
    shapes = {name: tuple(tensor["shape"]) for name, tensor in found.items()}
    # A checkpoint of the model without its output layer has no prefix, and one with it read without has one too many.
    names = {
        name: next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in shapes), "")
        for name in expected
    }
    missing = [name for name, there in names.items() if not there and not any(re.search(p, name) for p in optional)]
    wrong = [name for name, there in names.items() if there and shapes[there] != expected[name]]
    lines = []
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        lines.append(
            f"{folder.name}: {len(missing)} of {len(expected)} weights are in none of its files: {shown}: they would "
            "be random: download the model again, or set allow_missing_weights"
        )
    if wrong:
        name = wrong[0]
        lines.append(
            f"{folder.name}: {len(wrong)} weights have another shape than config.json says: {name} is "
            f"{list(shapes[names[name]])} instead of {list(expected[name])}"
        )
    return lines


def _expected(folder: Path) -> tuple[dict[str, tuple[int, ...]], str, list[str]]:
    """(name -> shape of every weight, prefix of the model without its output layer, patterns of those not needed)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    tied = [re.escape(name) + "$" for name in model._tied_weights_keys or ()] if config.tie_word_embeddings else []
    optional = [*tied, *(model._keys_to_ignore_on_load_missing or ())]
    buffers = {name for name, _ in model.named_buffers()}
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in buffers}
    return shapes, f"{model.base_model_prefix}.", optional
