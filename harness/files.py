"""Files that appear whole or not at all, and files that are read while somebody else writes to them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> Path:
    """Write beside `path` and rename: a reader sees the old content or the new one, never half of one.

    `mode` are the permission bits of the new file, from its first byte on; the process's umask decides otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    if mode is not None:
        partial.unlink(missing_ok=True)
        partial.touch(mode=mode)
    partial.write_bytes(content)
    os.replace(partial, path)
    return path


def write_text(path: Path, text: str, mode: int | None = None) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode(), mode)


def write_json(path: Path, value: Any, mode: int | None = None) -> Path:
    """`write_bytes` of a JSON value, indented."""
    return write_bytes(path, json.dumps(value, indent=2).encode() + b"\n", mode)


class LineFollower:
    """The lines that are added to a file, each once."""

    LIMIT = 4 << 20  # bytes read at once; a writer that is ahead is caught up with in the next calls

    def __init__(self, path: Path, from_start: bool = False) -> None:
        self.path = path
        self._position = path.stat().st_size if path.exists() and not from_start else 0
        self._rest = b""

    def lines(self, last: bool = False) -> list[str]:
        """The lines that are complete since the last call; with `last` also one without its end."""
        try:
            with self.path.open("rb") as handle:
                handle.seek(self._position)
                data = handle.read(self.LIMIT)
        except FileNotFoundError:
            return []
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if last and self._rest:
            whole, self._rest = [*whole, self._rest], b""
        return [line.decode(errors="replace").rstrip("\r") for line in whole]
