"""In which order rows are trained on, and how many labels an optimizer step has: both known before the first step.

The order depends on seed and epoch alone, so that a resumed run goes on with the same rows, and every worker knows
what the others see. So the loss of a step can be divided by its number of labels over accumulation, workers and
hosts, without asking anybody: 1 x 8 and 8 x 1 rows, packed and unpacked, have equal gradients. On Trainium the
number is part of the batch, as a tensor, since a Python number would be a constant of the graph and every other one
a new graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from train.losses import STEP_TOKENS
from train.packing import IGNORED


def label_counts(rows: Any) -> np.ndarray[Any, Any]:
    """Labels of each row that a loss is taken at; one in the first column has nothing before it."""
    return np.array([(rows[i]["labels"][1:] != IGNORED).sum() for i in range(len(rows))])


class EpochSampler(torch.utils.data.Sampler[int]):
    """A permutation by seed and epoch; with `lengths`, rows of like length come together (group_by_length)."""

    def __init__(self, rows: int, lengths: list[int] | None, batch: int, seed: int) -> None:
        self.rows, self.lengths, self.batch, self.seed, self.epoch = rows, lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.lengths is None:
            return iter(torch.randperm(self.rows, generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class Counted(torch.utils.data.Sampler[tuple[int, int]]):
    """(row, labels of the optimizer step that it is part of) in the order of `order`.

    A step has `step_rows` rows over all workers and accumulation; the last one of an epoch may have fewer. `share` is
    (rank, workers) of the one that gets every n-th row; each gets as many.
    """

    def __init__(self, order: EpochSampler, rows: Any, step_rows: int, share: tuple[int, int] = (0, 1)) -> None:
        self.order, self.step_rows, self.share = order, step_rows, share
        self.counts = label_counts(rows)

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order) // self.share[1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, workers = self.share
        rows = list(self.order)[: len(self) * workers]
        for start in range(0, len(rows), self.step_rows):
            step = rows[start : start + self.step_rows]
            tokens = int(self.counts[step].sum())
            yield from ((row, tokens) for row in step[rank::workers])


class CountedRows(torch.utils.data.Dataset[Any]):
    """Rows by what `Counted` yields: the number of labels of the step becomes a part of the row."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        row, tokens = key
        return {**self.rows[row], STEP_TOKENS: np.int64(max(tokens, 1))}
