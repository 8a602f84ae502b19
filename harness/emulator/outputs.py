"""The archives that training leaves: model.tar.gz and output.tar.gz."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path


def pack(folders: Path | Sequence[Path], target: Path) -> None:
    """The content of `folders`, one over the other, as a .tar.gz at `target`: whole or not at all.

    Level 1: bf16 weights shrink by a fifth at any level, and the higher ones take five times as long.
    """
    folders = [folders] if isinstance(folders, Path) else folders
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with (
            gzip.open(partial, "wb", compresslevel=1) as stream,
            tarfile.open(fileobj=stream, mode="w") as tar,
        ):
            if len(folders) == 1:
                for path in sorted(folders[0].iterdir()):
                    tar.add(path, arcname=path.name)
            else:
                for name, path in sorted(_merged(folders).items()):
                    tar.add(path, arcname=name, recursive=False)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _merged(folders: Sequence[Path]) -> dict[str, Path]:
    """Relative name -> file of the last folder that has it."""
    return {p.relative_to(f).as_posix(): p for f in folders for p in sorted(f.rglob("*")) if p.is_file()}
