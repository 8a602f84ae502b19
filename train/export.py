"""From a trained model to the artifact in the model directory."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from containers import artifact
from containers.artifact import Manifest
from train import lora, trained as weights_of, writer
from train.health import require_finite_weights
from train.trained import Trained

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "peft")
NEURON_PACKAGES = ("optimum-neuron", "torch-xla", "torch-neuronx", "neuronx-cc", "neuronx-distributed")


def versions() -> dict[str, str]:
    """The packages that shaped the artifact; Neuron's where they are installed."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    for name in NEURON_PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def save(model: Any, weights: Iterable[tuple[str, Any]], folder: Path) -> None:
    """A directory that transformers loads, of `weights` one at a time; `model` gives the configurations."""
    model.save_pretrained(folder, state_dict=_first_rows(model), safe_serialization=True)
    for path in folder.glob(f"{writer.MODEL_FILE.partition('.')[0]}*"):
        path.unlink()
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    writer.write(weights, folder, writer.MODEL_FILE, writer.file_bytes(total))


def _first_rows(model: Any) -> Mapping[str, Any]:
    """Of every weight; two names of one tensor still share its memory, as save_pretrained wants to see."""
    rows = {}
    for name, tensor in model.state_dict().items():
        first = tensor[:1] if tensor.dim() else tensor
        rows[name] = torch.zeros(first.shape, dtype=first.dtype) if first.is_meta else first
    return rows


def export(trained: Trained, tokenizer: Any, folder: Path, manifest: Manifest, output: Path | None = None) -> None:
    """Write the artifact into `folder`: complete in a directory beside it first, then moved file by file.

    Weights are stored as bf16, which is what Inferentia2 serves and half the size of fp32; manifest.json is
    moved last. LoRA's are added to the model's, and the adapter is kept in `adapter/`. `folder` may exist (SageMaker
    makes it), so the whole directory cannot be renamed. A copy of the manifest goes into `output`: on AWS it can be
    read there without fetching the model. Raises NonFinite, and writes nothing, for weights that are not finite.
    """
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model = weights_of.shell(trained, torch.bfloat16)
        model.config.use_cache = True
        save(model, _in_bf16(trained, int(manifest.metrics["steps"])), partial)
        if trained.adapters is not None:
            adapters = lora.adapted(trained.state())
            lora.save_adapter(adapters, trained.adapters, partial / lora.ADAPTER, manifest.base_model)
        tokenizer.save_pretrained(partial)
        artifact.write_manifest(partial, manifest)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(partial.iterdir(), key=lambda p: p.name == artifact.MANIFEST):
            shutil.rmtree(folder / path.name, ignore_errors=True)  # a directory would be moved into one of its name
            shutil.move(path, folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        artifact.write_manifest(output, manifest)
    if trained.scratch is not None:
        shutil.rmtree(trained.scratch, ignore_errors=True)


def _in_bf16(trained: Trained, step: int) -> Iterator[tuple[str, Any]]:
    """The weights as they are stored, each looked at for nan and inf."""
    for name, tensor in weights_of.weights(trained):
        require_finite_weights(step, {name: tensor})
        yield name, (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).contiguous()


def rescue(trained: Trained, *folders: Path) -> str:
    """Write the weights alone into the first of `folders` that takes them; one line that says where they are.

    For when the artifact cannot be written: nothing here is asked of transformers, tokenizer or configuration, and
    shards that cannot be put together are moved as they are. On AWS the first folder is synchronised with S3.
    """
    reasons = []
    for folder in folders:
        target = folder / "rescued"
        try:
            target.mkdir(parents=True, exist_ok=True)
            files = writer.write(_each_once(trained), target, "weights.safetensors", writer.MAX_BYTES)
        except Exception as error:  # noqa: BLE001 (the next folder may be on another disk)
            reasons.append(f"{folder}: {' '.join(str(error).split())[:100]}")
            if trained.scratch is not None:
                with suppress(OSError):
                    shutil.move(trained.scratch, target / "shards")
                    return f"the trained weights are in {target / 'shards'}, in the workers' parts"
        else:
            return f"the trained weights are in {target / files[-1]}"
    return f"the trained weights could not be written either ({'; '.join(reasons)})"


def _each_once(trained: Trained) -> Iterator[tuple[str, Any]]:
    """The weights as they are; of two names of one tensor the first."""
    seen: set[tuple[str, int]] = set()
    for name, tensor in trained.state():
        key = (str(tensor.device), tensor.data_ptr()) if tensor.device.type == "cpu" else (name, 0)
        if key not in seen:
            seen.add(key)
            yield name, tensor.detach().to("cpu").contiguous()
