"""What was recorded on two cores a model (tests/nxd/table.json), and that it is about the modules that are here.

A changed digest is no mistake: it says that the runs have to be made again, which takes a checkout of
neuronx-distributed: NXD_SOURCE=CHECKOUT python -m tests.nxd.record (docs/internals/neuron-training.md).
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.nxd import record

TABLE = json.loads(record.TABLE.read_text(encoding="utf-8"))
CASES: dict[str, Any] = TABLE["cases"]
OURS = [name for name in record.CASES if not name.startswith("without")]
WITHOUT = [name for name in record.CASES if name.startswith("without")]
# What two cores do not get right yet; containers/families.json refuses it for that reason.
NOT_EQUAL = ("mistral, TP 2", "gpt_neox, TP 2", "llama, PP 2")


def test_the_table_names_its_source() -> None:
    assert re.fullmatch("[0-9a-f]{40}", TABLE["source"]["commit"])
    assert "0.9.0" in TABLE["source"]["relation to the image"]
    assert set(CASES) == set(record.CASES)


@pytest.mark.parametrize("path", sorted(TABLE["ours"]))
def test_the_modules_that_took_part_are_as_they_were_then(path: str) -> None:
    assert record.digest(path) == TABLE["ours"][path], f"{path} has changed: record the table again"


def test_the_modules_are_the_ones_that_decide() -> None:
    wanted = {"train/devices/neuron.py", "train/parallel.py", "train/consolidate.py", "train/shards.py"}
    assert wanted <= set(TABLE["ours"])


@pytest.mark.parametrize("name", [n for n in OURS if n not in NOT_EQUAL])
def test_two_cores_train_what_one_process_of_transformers_does(name: str) -> None:
    """Losses of every step in all four decimals, the evaluation's, no copy that drifted, the weights by rounding."""
    assert CASES[name]["equal"], CASES[name]


@pytest.mark.parametrize("name", NOT_EQUAL)
def test_what_is_not_equal_is_refused(name: str) -> None:
    assert not CASES[name]["equal"]


@pytest.mark.parametrize("name", WITHOUT)
def test_upstream_alone_does_not(name: str) -> None:
    """The day one of these is equal, what stands in front of it can go."""
    assert not CASES[name]["equal"], CASES[name]
