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

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
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
    moved last. `folder` may exist (SageMaker makes it), so the whole directory cannot be renamed. A copy of the
    manifest goes into `output`: on AWS it can be read there without fetching the model.
    """
    import torch

    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
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
