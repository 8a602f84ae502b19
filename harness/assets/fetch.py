"""A package's wheel in the cache: checked against its hash, whole or not there at all, downloaded once.

pip does the download, so a user's mirror and certificate settings for pip hold here too; it resumes a broken
connection and keeps what it has in its own cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from containers.artifact import sha256_of
from harness.assets.catalog import Package
from harness.errors import MissingPrerequisite
from harness.paths import python_of
from harness.shell import run

Progress = Callable[[str], None]


def wheel(package: Package, cache: Path, progress: Progress) -> Path:
    """The path of `package`'s wheel. Raises MissingPrerequisite where it cannot be had or is another file."""
    folder = cache / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{package.name}-{package.version}.whl"
    if target.exists():
        return target
    with FileLock(folder / f"{package.name}.lock"):
        if target.exists():  # another process had it meanwhile
            return target
        progress(f"downloading {package.name} {package.version} ({package.megabytes} MB)")
        partial = folder / f"{package.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            found = _download(package, partial)
            if sha256_of(found) != package.sha256:
                raise MissingPrerequisite(
                    f"{package.name} {package.version} is another file than the one that was checked",
                    f"sha256 {sha256_of(found)}, expected {package.sha256}",
                    "check the mirror that pip uses (pip config list)",
                )
            os.replace(found, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _download(package: Package, into: Path) -> Path:
    run(
        [
            *(
                python_of("harness"),
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
            ),
            *("--resume-retries", "5", "--dest", into, f"{package.name}=={package.version}"),
        ],
        hint="check the network; set PIP_INDEX_URL and PIP_CERT for a mirror; call again to go on",
    )
    return next(into.glob("*.whl"))
