"""Each break of the table turns its test red, in a copy of the repository where nothing else is changed.

The table says what the failure has to say, since a copy that lacked something would be red for another reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.breaks.table import BREAKS, POINTS, ROOT, Break, named

COPIED = ("containers", "docs", "harness", "locks", "serve", "tests", "train", "pyproject.toml", "docker-bake.hcl")
LINKED = (".venv", ".venv-train", ".venv-serve", ".venv-neuron", ".cache")
AT_ONCE = 2


def copied(folder: Path) -> Path:
    """The repository's sources; environments and cache are links."""
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(folder: Path, test: str) -> tuple[int, str]:
    """pytest's exit code and output."""
    words = ["-q", "-m", "", "-p", "no:cacheprovider", "--tb=short", "-vv", test]
    # NEURON_TESTS_ASKED: only the runs that the test looks at.
    env = {**os.environ, "NEURON_TESTS_ASKED": "1", "PYTHONPATH": str(folder)}
    env.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    return done.returncode, done.stdout


def broken(folder: Path, one: Break) -> tuple[int, str]:
    copied(folder)
    text = (folder / one.file).read_text(encoding="utf-8")
    (folder / one.file).write_text(text.replace(one.before, one.after), encoding="utf-8")
    try:
        return run(folder, one.test)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Break, Future[tuple[int, str]]]]:
    """All of them, two at a time; the longest first."""
    base = tmp_path_factory.mktemp("breaks")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {one: pool.submit(broken, base / str(number), one) for number, one in enumerate(BREAKS)}


@pytest.mark.breaks
@pytest.mark.timeout(600)
@pytest.mark.parametrize("one", BREAKS, ids=lambda one: f"{one.point} {one.what}")
def test_the_break_turns_its_test_red(outcomes: dict[Break, Future[tuple[int, str]]], one: Break) -> None:
    code, output = outcomes[one].result()
    assert code == 1, output[-3000:]
    assert "1 failed" in output, output[-3000:]
    assert one.says in output, output[-3000:]


def test_each_break_changes_one_place() -> None:
    for one in BREAKS:
        assert (ROOT / one.file).read_text(encoding="utf-8").count(one.before) == 1, one.what
    assert {one.point for one in BREAKS} == set(POINTS)
    assert len(named("tests/neuron/drive.py", "break_on_purpose")) == 14
