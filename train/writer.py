"""Weights into safetensors files, one tensor at a time: no more of them is in memory than one file holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

MODEL_FILE, ADAPTER_FILE = "model.safetensors", "adapter_model.safetensors"
MAX_BYTES = 5_000_000_000
"""Of one file: transformers' own default."""
SMALL = 250_000_000
"""Weights of which one file is made, however little memory there is."""
ONE_FILE = 1 << 62


def file_bytes(total: int) -> int:
    """How large one file of `total` bytes of weights may be. safetensors before 0.6 copies what it writes, so a file
    takes twice its size: with a tenth, a fifth of the weights."""
    return min(MAX_BYTES, max(SMALL, total // 10))


def write(tensors: Iterable[tuple[str, Any]], folder: Path, name: str, max_bytes: int) -> list[str]:
    """Write as many files as `max_bytes` asks for; with several, an index. The names, in the order to publish."""
    written: list[list[str]] = []
    batch: dict[str, Any] = {}
    total = held = 0

    def flush() -> None:
        save_file(batch, folder / f"{len(written)}", metadata={"format": "pt"})
        written.append(list(batch))
        batch.clear()

    for key, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if batch and held + size > max_bytes:
            flush()
            held = 0
        batch[key] = tensor
        held, total = held + size, total + size
    if batch:
        flush()
    stem, suffix = name.split(".")
    count = len(written)
    files = [f"{stem}-{i + 1:05}-of-{count:05}.{suffix}" if count > 1 else name for i in range(count)]
    for i, file in enumerate(files):
        os.replace(folder / f"{i}", folder / file)
        (folder / file).chmod(0o644)  # save_file makes it readable by its owner only
    if count > 1:
        weight_map = {key: files[i] for i, keys in enumerate(written) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.append(f"{name}.index.json")
        (folder / files[-1]).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return files
