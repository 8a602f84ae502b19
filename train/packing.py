"""Rows of one shape out of token sequences: which sequence goes where, and what keeps those of a row apart.

Policy in numpy alone; nothing is known here of tokenizers, models or devices. Two ways:

  whole    an example is never cut: one a row, or several by best fit (packing); each has positions from 0 on, and
           attention only within itself, so that its loss is what it would be in a row of its own
  stream   documents one after the other, cut into full rows; only the last row is padded
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # np.ndarray[Any, Any]; numpy's own alias needs a dtype everywhere

IGNORED = -100  # torch's cross entropy skips this label


@dataclass(frozen=True)
class Sequences:
    """Token sequences end to end: number `i` is tokens[starts[i]:starts[i + 1]]. Loss where `trained` is 1."""

    tokens: Array  # unsigned integers
    trained: Array  # uint8, as long
    starts: Array  # int64, one more than there are sequences

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Array:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Rows:
    """Rows of exactly `block_size` tokens, right padded, made when asked for; default_data_collator takes them.

    Row `i` is made of the slices first[k], first[k] + length[k] of the tokens, for k from at[i] to at[i + 1]. Each
    has int64 input_ids, attention_mask and labels; with `apart` position_ids, which begin at 0 in each slice, and
    segment_ids as well, which number a row's slices from 1 (0: padding).
    The first label of a row, with `apart` of a slice, is always IGNORED: nothing predicts it. So the number of labels
    that are not IGNORED is the number of predictions that a loss is taken over, and losses can be normalised by it.
    """

    sequences: Sequences
    first: Array
    length: Array
    at: Array
    block_size: int
    pad: int
    apart: bool

    def __len__(self) -> int:
        return len(self.at) - 1

    @property
    def lengths(self) -> Array:
        """Tokens of each row without padding."""
        return np.add.reduceat(self.length, self.at[:-1]) if len(self) else np.zeros(0, np.int64)

    @property
    def filled(self) -> float:
        """Share of the rows' places that are no padding."""
        return float(self.length.sum() / max(1, len(self) * self.block_size))

    def __getitem__(self, index: int) -> dict[str, Array]:
        ids = np.full(self.block_size, self.pad, np.int64)
        labels = np.full(self.block_size, IGNORED, np.int64)
        position, segment = np.zeros(self.block_size, np.int64), np.zeros(self.block_size, np.int64)
        end = 0
        for number, k in enumerate(range(self.at[index], self.at[index + 1]), start=1):
            begin, first, length = end, int(self.first[k]), int(self.length[k])
            end = begin + length
            tokens = self.sequences.tokens[first : first + length]
            ids[begin:end] = tokens
            labels[begin:end] = np.where(self.sequences.trained[first : first + length], ids[begin:end], IGNORED)
            if self.apart:
                labels[begin] = IGNORED
                position[begin:end] = np.arange(length)
            segment[begin:end] = number
        labels[0] = IGNORED
        row = {"input_ids": ids, "attention_mask": (segment > 0).astype(np.int64), "labels": labels}
        return {**row, "position_ids": position, "segment_ids": segment} if self.apart else row

    def digest(self) -> str:
        """Of everything that a row can have: two sets of rows with one digest are the same rows."""
        made = hashlib.sha256(f"{self.block_size} {self.pad} {self.apart}".encode())
        for array in (self.first, self.length, self.at, self.sequences.tokens, self.sequences.trained):
            made.update(str(array.dtype).encode())
            made.update(np.ascontiguousarray(array).view(np.uint8).data if len(array) else b"")
        return made.hexdigest()


def one_each(sequences: Sequences, chosen: Array, block_size: int, pad: int) -> Rows:
    """A row for each of the `chosen` sequences, none of which is longer than `block_size`."""
    lengths = sequences.lengths[chosen]
    return Rows(
        sequences, sequences.starts[chosen], lengths, np.arange(len(chosen) + 1), block_size, pad, apart=False
    )


def packed(sequences: Sequences, chosen: Array, block_size: int, pad: int, seed: int) -> Rows:
    """Rows of several whole sequences each, by best fit; `seed` decides among sequences of one length."""
    order = np.random.RandomState(seed).permutation(len(chosen))
    bins = best_fit(sequences.lengths[chosen][order].tolist(), block_size)
    members = chosen[order][np.fromiter((i for members in bins for i in members), np.int64, len(chosen))]
    at = np.concatenate([[0], np.cumsum([len(members) for members in bins], dtype=np.int64)]).astype(np.int64)
    lengths = sequences.lengths[members]
    return Rows(sequences, sequences.starts[members], lengths, at, block_size, pad, apart=True)


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Bins of `size` for items of `lengths`, each bin a list of item numbers: best-fit decreasing.

    The longest item first, each into the bin that it leaves the least room in, else into a new one; at most 11/9 of
    the fewest possible bins and 4 more (Johnson, Demers, Ullman, Garey, Graham 1974). Ties go to the bin that was
    opened last, so the result depends on the lengths alone. Raises ValueError for an item that fits nowhere.
    """
    bins: list[list[int]] = []
    open_: list[list[int]] = [[] for _ in range(size + 1)]  # by room left
    rooms = 0  # bit r is set where there is a bin with room r: the smallest one is found without a search
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        if not 0 < length <= size:
            raise ValueError(f"an item of length {length} does not fit into {size}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = open_[room].pop()
            if not open_[room]:
                rooms ^= 1 << room
            bins[number].append(item)
        else:
            room, number = size, len(bins)
            bins.append([item])
        left = room - length
        if left:
            open_[left].append(number)
            rooms |= 1 << left
    return bins


def stream(sequences: Sequences, chosen: Array, block_size: int, pad: int) -> Rows:
    """The `chosen` sequences one after the other, cut into rows; the last row holds what is left over."""
    lengths, starts = sequences.lengths[chosen], sequences.starts[chosen]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    # Every place where a sequence or a row ends is a cut; a slice lies between two of them.
    cuts = np.union1d(ends, np.arange(block_size, total + block_size, block_size).clip(max=total))
    cuts = cuts[cuts > 0]
    begins = np.concatenate([[0], cuts[:-1]]).astype(np.int64) if len(cuts) else cuts.astype(np.int64)
    owner = np.searchsorted(ends, begins, side="right")
    first = starts[owner] + begins - (ends[owner] - lengths[owner])
    rows = -(-total // block_size)
    at = np.searchsorted(begins, np.arange(rows + 1) * block_size)
    return Rows(sequences, first, cuts - begins, at, block_size, pad, apart=False)


def block_diagonal(segment_ids: Any) -> Any:
    """Whom a token may attend to in rows of several examples: bool (batch, 1, n, n) from int segment_ids (batch, n).

    True at (b, 0, i, j) where j is not after i and both are in one segment. A padding token attends to the padding
    before it, so no line is empty: a softmax over nothing would be NaN. Works on numpy arrays and on torch tensors.
    """
    if isinstance(segment_ids, np.ndarray):
        places: Any = np.arange(segment_ids.shape[1])
    else:
        import torch

        places = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    causal = places[None, :] <= places[:, None]
    same = segment_ids[:, None, :] == segment_ids[:, :, None]
    return (same & causal[None])[:, None]


def additive(allowed: Any, dtype: Any) -> Any:
    """A bool mask as what transformers' attention adds to its scores: 0 where it is True, else the lowest number.

    torch only. Lowest, not -inf: https://github.com/huggingface/transformers `_prepare_4d_causal_attention_mask`.
    """
    import torch

    lowest = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest)


def keep_segments(trainer: Any) -> None:
    """transformers' Trainer removes from batches what the model's forward does not name; not segment_ids, please."""
    trainer._set_signature_columns_if_needed()
    if "segment_ids" not in trainer._signature_columns:
        trainer._signature_columns.append("segment_ids")


def attention(inputs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """A batch as models take it: without segment_ids, which become the attention mask (batch, 1, n, n) of `dtype`.

    Raises RuntimeError for packed rows without them: examples would see each other, and no loss would tell.
    """
    if "segment_ids" not in inputs:
        if "position_ids" in inputs:
            raise RuntimeError("packed rows have lost their segment_ids: see keep_segments")
        return inputs
    rest = {k: v for k, v in inputs.items() if k != "segment_ids"}
    return {**rest, "attention_mask": additive(block_diagonal(inputs["segment_ids"]), dtype)}
