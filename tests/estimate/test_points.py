"""The estimator is held against what people published; docs/reference/fit.md has the table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harness.estimate import memory, models
from tests.estimate import calibration

EVERY = calibration.points()
HELD_OUT = calibration.held_out(EVERY)
PACKAGE = Path(memory.__file__).parent


@pytest.mark.parametrize("point", [p for p in EVERY if not p.worked], ids=lambda p: p.id)
def test_no_published_failure_is_called_fits(point: calibration.Point) -> None:
    assert calibration.verdict(point) != memory.FITS


def test_at_most_one_published_success_is_called_does_not_fit() -> None:
    refused = [p.id for p in EVERY if p.worked and calibration.verdict(p) == memory.DOES_NOT_FIT]
    assert len(refused) <= 1, refused


def test_the_estimator_is_not_merely_cautious() -> None:
    """ "Tight" for everything would pass the two tests above and help nobody."""
    worked = [p for p in EVERY if p.worked]
    assert sum(calibration.verdict(p) == memory.FITS for p in worked) > 0.6 * len(worked)
    failed = [p for p in EVERY if not p.worked]
    assert any(calibration.verdict(p) == memory.DOES_NOT_FIT for p in failed)


def test_a_fifth_is_held_out_and_the_committed_coefficients_come_from_the_rest() -> None:
    assert len(HELD_OUT) >= len(EVERY) / 5
    fitted = calibration.calibrate([p for p in EVERY if p.id not in HELD_OUT])
    assert memory.DEFAULT.ring_per_weight == pytest.approx(fitted.ring_per_weight, rel=0.02)
    assert memory.DEFAULT.ring_per_token == pytest.approx(fitted.ring_per_token, rel=0.02)
    for name in ("scratchpad", "collectives"):
        ours, theirs = getattr(memory.DEFAULT, name), getattr(fitted, name)
        assert (ours.low, ours.expected, ours.high) == pytest.approx(
            (theirs.low, theirs.expected, theirs.high), rel=0.01
        )


@pytest.mark.parametrize("point", [p for p in EVERY if not p.worked], ids=lambda p: p.id)
def test_left_out_of_the_calibration_a_failure_is_still_not_called_fits(point: calibration.Point) -> None:
    rest = [p for p in EVERY if p.id != point.id and p.id not in HELD_OUT]
    assert calibration.verdict(point, calibration.calibrate(rest)) != memory.FITS


def test_tensors_are_within_two_per_cent_of_every_out_of_memory_report() -> None:
    found = [(p.id, value, estimate) for p, what, value, estimate in calibration.reports() if what == "tensors"]
    assert len(found) >= 2
    for name, value, estimate in found:
        assert estimate == pytest.approx(value, rel=0.02), name


def test_weights_and_cache_alone_would_have_passed_published_failures() -> None:
    """Why the other terms are there: without them, these failures fit."""
    naive = []
    for point in EVERY:
        if not point.worked and point.raw["kind"] == "serve":
            core = calibration.footprints(point)[0]
            kept = [t for t in core.terms if t.name in ("weights", "KV cache")]
            naive.append(sum(t.span.expected for t in kept) <= core.capacity)
    assert sum(naive) >= 3


def test_at_least_ten_points_are_new_and_every_point_has_a_link() -> None:
    assert sum(p.raw["found_here"] for p in EVERY) >= 10
    assert all(p.raw["url"].startswith("https://") for p in EVERY)
    assert len({p.id for p in EVERY}) == len(EVERY)


def test_no_model_name_and_no_case_is_in_the_estimators_code() -> None:
    names = {m.id.lower() for m in models.known().values()} | {
        m.id.split("/")[-1].lower() for m in models.known().values()
    }
    names |= {p.id for p in EVERY}
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {
            ast.get_docstring(n, clean=False)
            for n in ast.walk(tree)
            if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docs:
                assert node.value.lower() not in names, (path.name, node.value)
