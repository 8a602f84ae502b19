"""Packed rows give every family that packing is allowed for the losses and gradients of single rows."""

from __future__ import annotations

import json

import pytest

from containers.model_dir import PACKED_FAMILIES
from tests.chain.conftest import in_train_environment

pytestmark = pytest.mark.server


def test_packed_losses_and_gradients_are_those_of_single_rows() -> None:
    lines = in_train_environment("-W", "ignore", "-m", "tests.chain.packed_losses", timeout=280).splitlines()
    found = [json.loads(line) for line in lines]
    assert {(row["family"], row["attention"]) for row in found} == {
        (family, attention) for family in PACKED_FAMILIES for attention in ("sdpa", "eager")
    }
    for row in found:
        single, packed = row["loss"]
        assert row["labels"][0] == row["labels"][1] > 200
        assert abs(single - packed) < 1e-4 * single, row
        assert row["gradient"] < 1e-4, row


@pytest.mark.parametrize("broken", ["mask", "positions", "first labels"])
def test_the_comparison_sees_what_would_be_wrong(broken: str) -> None:
    program = f"""
import torch
from train import packing
from tests.chain import packed_losses
broken = {broken!r}
attention, row = packing.attention, packing.Rows.__getitem__
if broken == "mask":  # every token sees all that lie before it
    packing.attention = lambda inputs, dtype: {{k: v for k, v in inputs.items() if k != "segment_ids"}}
elif broken == "positions":
    packing.attention = lambda inputs, dtype: {{
        k: v for k, v in attention(inputs, dtype).items() if k != "position_ids"
    }}
else:  # an example's first token is predicted from the last one of the example before it
    def labelled(self, i):
        made = row(self, i)
        if self.apart:
            starts = (made["position_ids"] == 0) & (made["attention_mask"] == 1)
            made["labels"][starts] = made["input_ids"][starts]
        return made
    packing.Rows.__getitem__ = labelled
packed_losses.main(["llama"])
"""
    found = [json.loads(line) for line in in_train_environment("-W", "ignore", "-c", program).splitlines()]
    # With rotary positions only distances count, and those within an example are right: nothing else is seen.
    changed = [row["gradient"] > 1e-4 or row["labels"][0] != row["labels"][1] for row in found]
    assert changed == [broken != "positions"] * 2
