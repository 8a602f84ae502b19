"""From a trained model to the artifact in the model directory."""

from __future__ import annotations

import platform
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from containers import artifact
from containers.artifact import Manifest
from train import lora

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "peft")
NEURON_PACKAGES = ("optimum-neuron", "torch-xla", "torch-neuronx", "neuronx-cc", "neuronx-distributed")


def versions() -> dict[str, str]:
    """The packages that shaped the artifact; Neuron's where they are installed."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    for name in NEURON_PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def export(model: Any, tokenizer: Any, folder: Path, manifest: Manifest, output: Path | None = None) -> None:
    """Write the artifact into `folder`: complete in a directory beside it first, then moved file by file.

    Weights are stored as bf16, which is what Inferentia2 serves and half the size of fp32; manifest.json is
    moved last. LoRA's are added to the model's, and the adapter is kept in `adapter/`. `folder` may exist (SageMaker
    makes it), so the whole directory cannot be renamed. A copy of the manifest goes into `output`: on AWS it can be
    read there without fetching the model.
    """
    import torch

    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if lora.is_wrapped(model):
        lora.save_adapter(model, partial / lora.ADAPTER, manifest.base_model)
        model = lora.merged(model)
    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(partial, safe_serialization=True)
    tokenizer.save_pretrained(partial)
    artifact.write_manifest(partial, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(partial.iterdir(), key=lambda p: p.name == artifact.MANIFEST):
        shutil.move(path, folder / path.name)
    partial.rmdir()
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        artifact.write_manifest(output, manifest)


def rescue(model: Any, *folders: Path) -> str:
    """Write the weights alone into the first of `folders` that takes them; one line that says where they are.

    For when the artifact cannot be written: nothing here is asked of transformers, tokenizer or configuration. On AWS
    the first folder is synchronised with S3.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    weights = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # two names of one tensor: the first
            seen.add(tensor.data_ptr())
            weights[name] = tensor.contiguous()
    reasons = []
    for folder in folders:
        path = folder / "rescued" / "weights.safetensors"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights, path, metadata={"format": "pt"})
        except Exception as error:  # noqa: BLE001 (the next folder may be on another disk)
            reasons.append(f"{folder}: {' '.join(str(error).split())[:100]}")
        else:
            return f"the trained weights are in {path}"
    return f"the trained weights could not be written either ({'; '.join(reasons)})"
