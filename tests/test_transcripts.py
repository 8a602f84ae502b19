"""docs/reference/transcripts.md is what the command line says, and every wrong input gets a clear answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import transcripts
from tests.transcripts import Case


def test_the_page_is_what_the_command_line_says(root: Path) -> None:
    assert (root / "docs" / "reference" / "transcripts.md").read_text() == transcripts.page(), "run: make generated"


@pytest.mark.parametrize("case", transcripts.WRONG, ids=lambda c: c.title)
def test_a_wrong_input_gets_its_reason_and_its_exit_code(case: Case) -> None:
    out, code = transcripts.run(case)
    assert code in (2, 3, 8), out
    assert "Traceback" not in out
    assert out.startswith(("error: ", "Usage: "))
    assert all(len(line) < 330 for line in out.splitlines())


def test_there_are_forty_of_them() -> None:
    assert len(transcripts.WRONG) >= 40
