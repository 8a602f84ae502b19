"""harness/assets/datasets.py: no test example is trained on, whatever its spelling; the split is stable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from harness.assets import datasets
from harness.assets.datasets import Example, assert_disjoint, clean, key_of, split, write_channels
from harness.errors import InvalidInput

ROWS = [Example(f"headline number {i}", "yes" if i % 3 else "no") for i in range(300)]
SIZES = {"train": 60, "validation": 10, "test": 40}


def test_channels_are_balanced_disjoint_and_repeatable() -> None:
    channels = split(clean(ROWS), SIZES, seed=1)
    for name, size in SIZES.items():
        labels = [row.label for row in channels[name]]
        assert len(labels) == size
        assert labels.count("yes") == labels.count("no") == size // 2
    assert channels == split(clean(list(reversed(ROWS))), SIZES, seed=1)
    assert channels != split(clean(ROWS), SIZES, seed=2)


def test_the_test_channel_does_not_move_when_others_are_resized() -> None:
    assert split(clean(ROWS), SIZES, 1)["test"] == split(clean(ROWS), {**SIZES, "train": 20}, 1)["test"]


@pytest.mark.parametrize("spelling", ["HEADLINE number 1!", "headline\u00a0number\u200b 1", " headline  number-1 "])
def test_another_spelling_of_a_test_example_in_train_is_noticed(spelling: str) -> None:
    channels = {
        "test": [Example("headline number 1", "yes")],
        "train": [Example(spelling, "no")],
        "validation": [],
    }
    with pytest.raises(AssertionError, match="1 test examples are in train too"):
        assert_disjoint(channels)


def test_duplicates_are_kept_once_and_contradictions_dropped() -> None:
    rows = [
        Example("A b.", "yes"),
        Example("a  b", "yes"),
        Example("c", "yes"),
        Example("C!", "no"),
        Example("…", "no"),
    ]
    assert clean(rows) == [Example("A b.", "yes")]


def test_too_few_examples_are_told() -> None:
    with pytest.raises(InvalidInput, match=r"data\.examples: 210 of each class are needed, there are 100"):
        split(clean(ROWS), {**SIZES, "train": 370}, 0)


@given(st.text())
def test_the_key_is_idempotent_and_has_no_case(text: str) -> None:
    assert key_of(key_of(text)) == key_of(text)
    assert datasets.normalise(datasets.normalise(text)) == datasets.normalise(text)


def test_rows_carry_template_and_word(tmp_path: Path) -> None:
    channels = {name: [Example("what {text} is", "yes")] for name in ("train", "validation", "test")}
    files = write_channels(channels, "Q: {text}\nA:", {"yes": " Yes", "no": " No"}, tmp_path)
    row = json.loads(files["train"].read_text())
    assert row == {"prompt": "Q: what {text} is\nA:", "completion": " Yes"}
    assert not list(tmp_path.rglob("*.partial"))
