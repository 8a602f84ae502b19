"""Results of slow pure functions, kept on disk between commands: reading botocore's models takes a quarter second.

A key names everything that the result depends on, so that nothing has to be thrown away when something changes; what
cannot be read or written is computed again. In HARNESS_CACHE_DIR, or below XDG_CACHE_HOME or ~/.cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """Where this user's remembered results and refreshed prices are."""
    own = os.environ.get("HARNESS_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(own) if own else Path(base) / "neuron-harness"


@lru_cache(maxsize=8)
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def remembered(make: Callable[[], Any], package: str, source: Path, *key: str) -> Any:
    """What `make` returned for this key, version of `package` and state of the file `source`; else `make()`.

    Only results that are JSON are kept, and never an exception.
    """
    state = source.stat()
    text = "\n".join((package, _version(package), str(source), str(state.st_mtime_ns), str(state.st_size), *key))
    path = cache_dir() / "remembered" / (hashlib.sha256(text.encode()).hexdigest()[:32] + ".json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["result"]
    except (OSError, ValueError, KeyError, TypeError):
        result = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"result": result}), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        pass  # a read-only home costs time, not the command
    return result
