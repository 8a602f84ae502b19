"""The page of what a run can leave behind has no gap, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from tests import left_behind
from tests.conftest import ROOT


def test_each_resource_and_way_to_end_has_a_test_or_a_reason() -> None:
    pairs = {(mark.resource, mark.ending) for mark in left_behind.marks()}
    wanted = {(kind, ending) for kind in left_behind.RESOURCES for ending in left_behind.ENDINGS}
    assert sorted(wanted - pairs - set(left_behind.NOTHING)) == []
    assert sorted(pairs - wanted) == [], "marks with another resource or ending"
    assert sorted(pairs & set(left_behind.NOTHING)) == [], "a reason why there is nothing, and a test that there is"


def test_every_kind_in_a_ledger_is_on_the_page() -> None:
    """Whoever has the ledger note a new kind, by a literal or by a constant, extends the page."""
    noted: set[str] = set()
    for path in (ROOT / "harness").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for value in re.findall(r'note\(\s*"create", kind=([\w"-]+)', text):
            constant = re.search(rf'^{value}(?:: \w+)? = "([\w-]+)"', text, re.MULTILINE)
            noted.add(constant[1] if constant else value.strip('"'))
    assert {"COPY", "KIND"} & noted == {"COPY"}, noted
    from harness.sagemaker.resources import KINDS
    from harness.sagemaker.takedown import COPY

    noted = (noted - {"COPY", "kind"}) | {COPY} | set(KINDS)
    assert noted == set(left_behind.LEDGER)
    assert set(left_behind.LEDGER.values()) <= set(left_behind.RESOURCES)


def test_a_mark_is_found_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "tests" / "test_x.py"
    file.parent.mkdir()
    file.write_text('@pytest.mark.left_behind(("a", "b"), "KILL", "nobody")\ndef test_it(): ...\n')
    found = list(left_behind.marks(tmp_path / "tests"))
    assert [(mark.resource, mark.test) for mark in found] == [
        ("a", "tests/test_x.py::test_it"),
        ("b", "tests/test_x.py::test_it"),
    ]
