"""From a data file to rows of exactly `block_size` tokens: one batch signature, as a static-shape device wants.

The rows' two formats are those of containers/rows.py. prompt/completion: loss on the completion and its
end-of-sequence token only. text: plain language modelling, concatenated and cut, as run_clm does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from containers import rows

IGNORED = -100  # torch's cross entropy skips this label


class DataError(ValueError):
    """The data cannot be trained on; one line with file, line number and reason."""


@dataclass(frozen=True)
class Rows:
    """int64 arrays of shape (rows, block_size), right padded; `labels` are IGNORED where no loss is taken."""

    input_ids: np.ndarray[Any, Any]
    attention_mask: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    dropped: int  # examples longer than block_size
    tokens: int  # without padding

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def __getitem__(self, index: int) -> dict[str, np.ndarray[Any, Any]]:
        return {
            "input_ids": self.input_ids[index],
            "attention_mask": self.attention_mask[index],
            "labels": self.labels[index],
        }


def read_examples(path: Path, limit: int | None) -> list[dict[str, str]]:
    """The rows of a .jsonl file. Raises DataError for the first line that does not fit, or for none at all."""
    examples: list[dict[str, str]] = []
    for number, row in rows.read(path):
        if isinstance(row, str):
            raise DataError(f"{path.name} line {number}: {row}")
        examples.append(row)
        if limit is not None and len(examples) >= limit:
            break
    if not examples:
        raise DataError(f"{path.name}: no rows")
    return examples


def build_rows(examples: Sequence[dict[str, str]], tokenizer: Any, block_size: int) -> Rows:
    """Tokenise `examples` into Rows. Raises DataError where nothing fits into `block_size`."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token; answers would never end")
    if "prompt" in examples[0]:
        sequences, dropped = _answers(examples, tokenizer, block_size)
    else:
        sequences, dropped = _blocks(examples, tokenizer, block_size), 0
    if not sequences:
        raise DataError(f"block_size {block_size}: no example fits ({dropped} are longer)")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    shape = (len(sequences), block_size)
    ids, mask, labels = np.full(shape, pad), np.zeros(shape, int), np.full(shape, IGNORED)
    for i, (tokens, first_label) in enumerate(sequences):
        ids[i, : len(tokens)] = tokens
        mask[i, : len(tokens)] = 1
        labels[i, first_label : len(tokens)] = tokens[first_label:]
    return Rows(ids, mask, labels, dropped, int(mask.sum()))


def _answers(
    examples: Sequence[dict[str, str]], tokenizer: Any, block_size: int
) -> tuple[list[tuple[list[int], int]], int]:
    """(tokens, index of the first answer token) of each example that fits, and how many do not."""
    # Prompt and completion are tokenised apart, so that the prompt's tokens are the same when only it is sent.
    prompts = tokenizer([e["prompt"] for e in examples])["input_ids"]  # with BOS where the tokenizer has one
    answers = tokenizer([e["completion"] for e in examples], add_special_tokens=False)["input_ids"]
    out = []
    for prompt, answer in zip(prompts, answers):  # noqa: B905 (strict= is 3.10, and both come from one list)
        tokens = [*prompt, *answer, tokenizer.eos_token_id]
        if len(tokens) <= block_size:
            out.append((tokens, len(prompt)))
    return out, len(examples) - len(out)


def _blocks(examples: Sequence[dict[str, str]], tokenizer: Any, block_size: int) -> list[tuple[list[int], int]]:
    """Texts joined by end-of-sequence tokens and cut into full blocks; the remainder is dropped."""
    stream: list[int] = []
    for ids in tokenizer([e["text"] for e in examples])["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    full = len(stream) // block_size
    return [(stream[i * block_size : (i + 1) * block_size], 0) for i in range(full)]
