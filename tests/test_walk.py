"""docs/internals/first-runs.md: every step has a source and something that holds it, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import walk

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / ".venv-neuron" / "lib" / "python3.11" / "site-packages"
STEPS = walk.steps()


def test_every_step_is_held_by_a_test_a_record_a_verify_step_or_says_unverified() -> None:
    assert len(STEPS) >= 50
    for step, _, held in STEPS:
        files = re.findall(r"`(tests/[^`]+)`", held)
        assert all((ROOT / file).is_file() for file in files), (step, files)
        assert files or "unverified" in held or "harness verify" in held, step


def test_every_source_is_named_with_its_commit() -> None:
    text = walk.PAGE.read_text(encoding="utf-8")
    for name in {one.name for _, references, _ in STEPS for one in references}:
        assert re.search(rf"^\| {name} \| .+ \| .+ \|$", text, re.M), name


@pytest.mark.neuron
def test_the_references_into_the_wheels_exist() -> None:
    assert walk.main([f"torch={SITE}", f"torch-xla={SITE}"]) == 0


def test_a_reference_that_moved_is_named(tmp_path: Path) -> None:
    one = walk.Reference("x", "a.py", 2, "return 1")
    assert one.problem(tmp_path) == "x: no a.py"
    (tmp_path / "a.py").write_text("return 1\nreturn 2\n")
    assert "a.py:2 does not have 'return 1'" in one.problem(tmp_path)
    (tmp_path / "a.py").write_text("\n  return 1\n")
    assert one.problem(tmp_path) == ""
    assert walk.main(["nothing=/tmp"]) == 1
