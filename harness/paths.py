"""Where things are in a checkout. The harness runs from one: train/ and serve/ are copied, never installed."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"  # packages, assets, jars: made by set-up, deleted by `make distclean`


def runs_dir() -> Path:
    """The records: `.runs` below the current directory, so that a run belongs to where it was started.

    HARNESS_RUNS_DIR overrides it (the tests keep theirs apart).
    """
    return Path(os.environ.get("HARNESS_RUNS_DIR") or ".runs").absolute()


def python_of(role: str) -> Path:
    """The interpreter of an environment: `harness` (.venv), `train` or `serve` (.venv-<role>)."""
    name = ".venv" if role == "harness" else f".venv-{role}"
    return ROOT / name / "bin" / "python"
