"""Where things are: the product's own files, what set-up makes, and the records of runs.

Installed from a wheel, the in-image code and what images are built from travel inside the package; in a checkout they
lie beside it. Environments, jars and assets are in one directory for all working directories of a user; records and
the local SageMaker's state belong to the directory in which a run was started.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IN_CHECKOUT = not (PACKAGE / "product").is_dir()
PRODUCT = PACKAGE.parent if IN_CHECKOUT else PACKAGE / "product"
"""Holds containers/, train/, serve/, locks/ and docker-bake.hcl."""


def _home() -> Path:
    if given := os.environ.get("NEURON_HARNESS_HOME"):
        return Path(given).absolute()
    if IN_CHECKOUT:
        return PRODUCT / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuron-harness"


CACHE = _home()
"""Packages, assets, jars, and of an installed harness the environments: NEURON_HARNESS_HOME, else the XDG cache
directory, else (in a checkout) .cache in it."""


def runs_dir() -> Path:
    """The records: `.runs` below the current directory, so that a run belongs to where it was started.

    HARNESS_RUNS_DIR overrides it (the tests keep theirs apart).
    """
    return Path(os.environ.get("HARNESS_RUNS_DIR") or ".runs").absolute()


def local_state() -> Path:
    """The local SageMaker's state where no other directory is named: `.local` beside the records."""
    return runs_dir().with_name(".local")


def environment(role: str) -> Path:
    """The virtual environment of `harness`, `train`, `serve` or one that only tests use."""
    if IN_CHECKOUT:
        return PRODUCT / (".venv" if role == "harness" else f".venv-{role}")
    return Path(sys.prefix) if role == "harness" else CACHE / "environments" / role


def python_of(role: str) -> Path:
    """The interpreter of an environment."""
    if role == "harness" and not IN_CHECKOUT:
        return Path(sys.executable)
    return environment(role) / "bin" / "python"
