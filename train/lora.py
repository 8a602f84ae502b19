"""LoRA by PEFT, the same on both devices: wrapped before training, merged for the export, the adapter kept beside it.

optimum-neuron 0.1.0 ignored a LoRA configuration without a word and trained everything, so the number of trained
parameters is computed from the layers beforehand and compared.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from train.arguments import LoraArguments

ALL_LINEAR = "all-linear"  # PEFT's name for every linear layer but the output layer
ADAPTER = "adapter"  # directory of the artifact


class LoraError(ValueError):
    """The adapter is not what was asked for; one line."""


def targets_of(lora: LoraArguments) -> Any:
    """What PEFT calls target_modules: its own word, or names."""
    words = [word.strip() for word in lora.lora_target_modules.split(",") if word.strip()]
    return ALL_LINEAR if words in ([], [ALL_LINEAR]) else words


def wrap(model: Any, lora: LoraArguments, get_peft_model: Callable[..., Any]) -> tuple[Any, int]:
    """(`model` with adapters of its number format, number of trained parameters). Raises LoraError."""
    from peft import LoraConfig

    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    config = LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets_of(lora),
        task_type="CAUSAL_LM",
    )
    whole = sum(p.numel() for p in model.parameters())
    try:
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name in names})
        reason = " ".join(str(error).split())[:200]
        raise LoraError(f"lora_target_modules: {reason}; linear layers of this model: {', '.join(known)}") from None
    layers = {n: m for n, m in wrapped.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    expected = sum(lora.lora_r * (m.in_features + m.out_features) for m in layers.values())
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    if trained != expected or not trained:
        raise LoraError(f"{trained:,} parameters would be trained; {expected:,} are in the adapters")
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    print(
        f"LoRA: rank {lora.lora_r}, alpha {lora.lora_alpha} on {len(layers)} layers ({', '.join(kinds)}): "
        f"{trained:,} of {whole + trained:,} parameters are trained ({trained / (whole + trained):.2%})",
        flush=True,
    )
    return wrapped, trained


def is_wrapped(model: Any) -> bool:
    """Whether this is PEFT's model around transformers'."""
    return hasattr(model, "merge_and_unload")


def save_adapter(model: Any, folder: Path, base_model: str) -> None:
    """adapter_model.safetensors and adapter_config.json in `folder`, which names the model it belongs to."""
    model = copy.copy(model)
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_model
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # a model card without content
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def merged(model: Any) -> Any:
    """The transformers model with the adapters added to its weights, in fp32; the export rounds them once."""
    return model.float().merge_and_unload()


def separated(weights: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the model's weights by transformers' names, the adapters' by the names in PEFT's files) of a state_dict."""
    plain, trained = {}, {}
    for name, tensor in weights.items():
        if "lora_" in name:
            trained[name.replace(".default.", ".")] = tensor
        else:
            plain[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = tensor
    return plain, trained


def restored(model: Any, adapters: Mapping[str, Any], trained: dict[str, Any]) -> Any:
    """PEFT's model around `model` with the adapters' weights `trained`; raises LoraError unless all are there."""
    from peft import get_peft_model, set_peft_model_state_dict

    wrapped = get_peft_model(model, copy.deepcopy(adapters["default"]), autocast_adapter_dtype=False)
    _, wanted = separated({name: tensor for name, tensor in wrapped.state_dict().items() if "lora_" in name})
    if different := sorted(wanted.keys() ^ trained.keys()):
        raise LoraError(f"the trained adapters are not the model's: {', '.join(different[:3])}")
    set_peft_model_state_dict(wrapped, trained)
    return wrapped
