"""LoRA by PEFT, the same on both devices: wrapped before training, merged for the export, the adapter kept beside it.

optimum-neuron 0.1.0 ignored a LoRA configuration without a word and trained everything, so the number of trained
parameters is computed from the layers beforehand and compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from train import writer
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
    embedding = model.get_input_embeddings().weight
    if shared := sorted(n.rpartition(".")[2] for n, m in layers.items() if m.get_base_layer().weight is embedding):
        raise LoraError(f"lora_target_modules: {', '.join(shared)} shares its weights with the embedding")
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


def save_adapter(adapters: Mapping[str, Any], config: Any, folder: Path, base_model: str) -> None:
    """adapter_model.safetensors and adapter_config.json in `folder`, which names the model it belongs to."""
    config = copy.copy(config)
    config.base_model_name_or_path, config.inference_mode = base_model, True  # as PEFT's save_pretrained has it
    config.save_pretrained(folder)
    stored = ((name, tensor.detach().to("cpu").contiguous()) for name, tensor in adapters.items())
    writer.write(stored, folder, writer.ADAPTER_FILE, writer.ONE_FILE)  # PEFT reads one file only


def load(model: Any, folder: Path) -> None:
    """The adapters of a checkpoint, in the number format that they have here: PEFT's load_adapter makes them fp32."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    found = set_peft_model_state_dict(model, load_file(folder / writer.ADAPTER_FILE))
    if found.unexpected_keys:
        raise LoraError(f"{folder.name}: adapters of another model: {', '.join(found.unexpected_keys[:3])}")


def plain(state: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Of a state_dict the model's own weights, by transformers' names."""
    for name, tensor in state:
        if "lora_" not in name:
            yield name.removeprefix("base_model.model.").replace(".base_layer.", "."), tensor


def adapted(state: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Of a state_dict the adapters' weights, by the names in PEFT's files."""
    return {name.replace(".default.", "."): tensor for name, tensor in state if "lora_" in name}


def merged(
    model: Any, weights: Iterable[tuple[str, Any]], adapters: Mapping[str, Any], config: Any
) -> Iterator[tuple[str, Any]]:
    """`weights` with the adapters added in fp32, as PEFT's merge_and_unload adds them; the export rounds them once.

    W + alpha / r * B A (Hu et al., 2021, arXiv:2106.09685, section 4.1), one weight at a time. `model` says which
    layers keep W transposed. Raises LoraError for adapters that belong to no weight.
    """
    if config.use_rslora or config.use_dora or config.rank_pattern or config.alpha_pattern:
        raise LoraError("the adapters are of a kind that `wrap` does not make")
    left = set(adapters)
    for name, tensor in weights:
        path = name.removesuffix(".weight")
        down, up = (f"base_model.model.{path}.lora_{part}.weight" for part in "AB")
        if not left.isdisjoint((down, up)):
            parts = [adapters[part].detach().to("cpu", torch.float32) for part in (up, down)]
            if type(model.get_submodule(path)).__name__ == "Conv1D":
                parts = [part.T for part in reversed(parts)]
            weight = tensor.detach().to("cpu", torch.float32, copy=True)
            tensor = weight.addmm_(*parts, alpha=config.lora_alpha / config.r)  # noqa: PLW2901
            left -= {down, up}
        yield name, tensor
    if left:
        raise LoraError(f"the trained adapters are not the model's: {', '.join(sorted(left)[:3])}")
