"""The stand-in images, built once per session as a user builds them. What is missing fails; nothing is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bootstrap import find_torch_wheel
from harness.executors.spec import MARKER
from harness.images import build as images
from harness.images.build import Build
from tests.chain.conftest import tiny_model

__all__ = ["tiny_model"]
ROOT = Path(__file__).resolve().parent.parent.parent
HARNESS = [sys.executable, "-m", "harness"]


def docker(*words: str, check: bool = True, timeout: float = 180) -> str:
    """Standard output of a docker call; a failure shows what it wrote."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="session")
def built() -> dict[str, str]:
    """Role -> the image's name."""
    subprocess.run([*HARNESS, "build", "--stand-in"], cwd=ROOT, check=True, timeout=1500, stdout=subprocess.DEVNULL)
    build = Build(stand_in=True)
    return {role: build.name(role) for role in images.ROLES}


def copy_of_sources(folder: Path) -> Path:
    """A checkout with one line more in train/, so that its images have names of their own."""
    if wheel := find_torch_wheel():  # looked for beside the sources, which the copy is not
        os.environ["WHEELS"] = str(wheel.parent)
    ignore = shutil.ignore_patterns(".git", ".venv*", ".runs", ".cache", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignore)
    (folder / ".cache").symlink_to(ROOT / ".cache")
    trainer = folder / "train" / "run_clm.py"
    trainer.write_text(trainer.read_text() + f"# {folder}\n")
    return folder


def left_over() -> list[str]:
    """Containers and networks of ours, running or not."""
    words = ["--filter", f"label={MARKER}"]
    found = docker("ps", "--all", "--format", "{{.Names}}", *words).split()
    return found + docker("network", "ls", "--format", "{{.Name}}", *words).split()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    assert left_over() == [], "something was running before this test"
    yield
    assert left_over() == []
