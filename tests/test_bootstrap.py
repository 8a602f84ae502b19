"""Setting up: what is there already is left alone, and nothing deletes the environment that it runs in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import bootstrap
from harness.errors import MissingPrerequisite


def test_a_stale_environment_is_not_deleted_by_what_runs_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a `git pull` with another lock, .venv/bin/harness would clear .venv and end in the middle."""
    monkeypatch.setattr(bootstrap, "environment", lambda _: tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "setup-complete").write_text("another lock")
    with pytest.raises(MissingPrerequisite, match="was made from another lock"):
        bootstrap.ensure_environment("harness")
    assert (tmp_path / "setup-complete").read_text() == "another lock"
