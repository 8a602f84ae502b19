"""The artifact: what training leaves in the model directory, with a manifest that says where it came from.

Hugging Face safetensors + tokenizer + manifest.json. No code and no serving.properties in it.
Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SCHEMA = 1
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# One file a tensor, as transformers-neuronx's save_pretrained_split writes them.
SPLIT_WEIGHTS = "pytorch_model.bin/key_to_filename.json"
COMPILED = "neuron"  # directory of a prepared artifact that holds the compiled graphs
COMPILE_KEY = "compile_key.json"


@dataclass(frozen=True)
class Manifest:
    """manifest.json. `data_sha256` is over the bytes of the training files in order of channel name."""

    stack: str
    base_model: str
    device: str
    dtype: str
    data_sha256: str
    versions: dict[str, str]
    metrics: dict[str, float]
    arguments: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


class ArtifactError(ValueError):
    """A directory is not an artifact; the message is one line."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json in one step: it is the last file, so its presence means a whole artifact."""
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Raises ArtifactError where there is none or it is of a newer schema; unknown keys are let pass."""
    try:
        raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no {MANIFEST}; training did not finish, or this is not an artifact") from None
    except ValueError as error:
        raise ArtifactError(f"{folder / MANIFEST}: not JSON ({error})") from None
    if not isinstance(raw, dict) or raw.get("schema", 0) > SCHEMA:
        raise ArtifactError(f"{folder / MANIFEST}: written by a newer version of this product")
    known = set(Manifest.__dataclass_fields__)
    try:
        return Manifest(**{k: v for k, v in raw.items() if k in known})
    except TypeError as error:
        raise ArtifactError(f"{folder / MANIFEST}: {error}") from None


def check_model_directory(folder: Path) -> None:
    """Raises ArtifactError unless `folder` holds a config, weights and a tokenizer."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such directory")
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in (*WEIGHTS, SPLIT_WEIGHTS)):
        missing.append("weights (model.safetensors)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        raise ArtifactError(f"{folder}: no model, it lacks {', '.join(missing)}")


def opened(channel: Path) -> Path:
    """The model directory of a channel: itself, or what its one model.tar.gz holds, unpacked into a temporary one.

    A training job's output is an archive, and a job that takes it as input gets it unopened. Raises ArtifactError.
    """
    archive = channel / "model.tar.gz"
    if not archive.is_file():
        check_model_directory(channel)
        return channel
    folder = Path(tempfile.mkdtemp(prefix="model-"))
    try:
        with tarfile.open(archive, "r:gz") as tar:
            unpack(tar, folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArtifactError(f"{archive}: cannot be unpacked ({error})") from None
    check_model_directory(folder)
    return folder


def unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """All of `tar` into `folder` and nowhere else. Raises tarfile.TarError for a member that would get out of it.

    Extraction filters came with Python 3.10.12 and 3.11.4 (https://peps.python.org/pep-0706); Debian 12 has 3.11.2.
    Without them only files and directories are taken, with neither owner nor mode.
    """
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    root = folder.resolve()
    for member in tar:
        if not (member.isreg() or member.isdir()):
            raise tarfile.ExtractError(f"{member.name} is neither a file nor a directory")
        if root not in (inside := (root / member.name).resolve()).parents and inside != root:
            raise tarfile.ExtractError(f"{member.name} would be outside of the directory")
        tar.extract(member, root, set_attrs=False)


@dataclass(frozen=True)
class CompileKey:
    """All that compiled graphs depend on. Weights are no part of it: they are loaded beside the graphs."""

    config_sha256: str
    dtype: str
    tp_degree: int
    slots: int
    token_buckets: list[int]
    context_buckets: list[int]
    versions: dict[str, str]


def write_compile_key(compiled: Path, key: CompileKey) -> None:
    """Write compile_key.json in one step: it is the last file, so its presence means all graphs are there."""
    partial = compiled / f".{COMPILE_KEY}.partial"
    partial.write_text(json.dumps(asdict(key), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, compiled / COMPILE_KEY)


def find_compiled(folder: Path, key: CompileKey) -> Path | None:
    """The directory of graphs compiled for `key`; None if `folder` holds none.

    Raises ArtifactError naming every difference if they were compiled for something else.
    """
    compiled = folder / COMPILED
    try:
        found = json.loads((compiled / COMPILE_KEY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactError(f"{compiled / COMPILE_KEY}: not JSON ({error})") from None
    wanted = asdict(key)
    different = [f"{k} {found.get(k)!r}, wanted {v!r}" for k, v in wanted.items() if found.get(k) != v]
    if different:
        raise ArtifactError(f"{compiled}: compiled for {'; '.join(different)}")
    return compiled


def sha256_of(*files: Path) -> str:
    """One digest over the bytes of `files`, in the order given."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
