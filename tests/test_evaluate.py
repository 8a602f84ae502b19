"""harness/run/evaluate.py and report.py: the parser, the interval, and a page that escapes what models say."""

from __future__ import annotations

import random
from html.parser import HTMLParser

import pytest

from harness.run import evaluate, report
from harness.run.evaluate import HeldOut, Score, parse_answer

LABELS = ["Yes", "No"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", "Yes"),
        (" yes.", "Yes"),
        ("\n**No**, because", "No"),
        ("NO!", "No"),
        ("Notable", None),
        ("The answer is Yes", None),
        ("", None),
        ("Yes_No", "Yes"),
    ],
)
def test_answers_are_parsed_by_whole_words_at_the_start(text: str, label: str | None) -> None:
    assert parse_answer(text, LABELS) == label


def test_score_counts_what_cannot_be_parsed_as_wrong() -> None:
    rows = [HeldOut("a", "Yes"), HeldOut("b", " No"), HeldOut("c", "Yes")]
    score = evaluate.score(rows, LABELS, ["yes", "no", "maybe"])
    assert score.right == (True, True, False)
    assert score.unparsable == 1
    assert score.accuracy == pytest.approx(2 / 3)


def scores(before: list[bool], after: list[bool]) -> tuple[Score, Score]:
    return Score((), tuple(before), 0), Score((), tuple(after), 0)


def test_the_interval_covers_the_true_gain_as_often_as_it_says() -> None:
    rng, hits, rounds = random.Random(1), 0, 2000
    for _ in range(rounds):
        before = [rng.random() < 0.5 for _ in range(400)]
        after = [rng.random() < (0.85 if b else 0.65) for b in before]
        low, high = evaluate.gain_ci95(*scores(before, after))
        hits += low <= 0.25 <= high
    assert 0.93 < hits / rounds < 0.97


def test_the_interval_is_paired() -> None:
    before = [True] * 200 + [False] * 200
    after = [True] * 200 + [True] * 60 + [False] * 140
    low, high = evaluate.gain_ci95(*scores(before, after))
    assert low == pytest.approx(0.15 - 1.96 * (60 - 9) ** 0.5 / 400)
    assert high - low < 0.08  # unpaired it would be 0.14
    assert evaluate.gain_ci95(*scores(before, before)) == (0, 0)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]


def test_the_report_is_self_contained_and_escapes_what_models_say() -> None:
    evil = "<script>alert(1)</script>"
    result = {
        "run": "r-1",
        "accuracy": {
            "base": 0.5,
            "tuned": 0.8,
            "gain": 0.3,
            "gain_ci95": [0.2, 0.4],
            "majority": 0.5,
            "rows": 400,
        },
        "unparsable": {"base": 0.0, "tuned": 0.0},
        "prompts": [{"prompt": evil, "right": "Yes", "base": evil, "tuned": evil}],
        "seconds": {"train": 1.0, "total": 2.0},
        "peak_rss_mb": 1000,
        "versions": {"torch": "2"},
        "dtype": "fp32",
    }
    page = Tags()
    text = report.html(result, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.1}])
    page.feed(text)
    assert "script" not in page.tags
    assert page.links == []
    assert "80.0 %" in text
    assert "+30.0" in text
    assert text.count("<polyline") == 1


def test_a_curve_needs_two_points() -> None:
    assert report.curve([(1, 1.0)])["line"] == ""
    assert report.curve([(1, 2.0), (2, 1.0)])["line"].count(",") == 2
