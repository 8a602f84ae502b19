"""Accuracy through the endpoint: the same prompts, labels and parser for the model before and after.

Pure functions over answers; who asked is not their business.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from containers.rows import Bad, Reading, RowsError, read
from harness.errors import InvalidInput

# Enough tokens for the longest label and a little chatter before it; more would only cost time.
MAX_NEW_TOKENS = 4


@dataclass(frozen=True)
class HeldOut:
    """One held-out example: the prompt, and the word that is right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Score:
    """One model's answers to the test rows, in their order."""

    answers: tuple[str, ...]
    right: tuple[bool, ...]
    unparsable: int

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def unparsable_share(self) -> float:
        return self.unparsable / len(self.right)


def read_rows(path: Path, reading: Reading | None = None) -> list[HeldOut]:
    """The test channel. Raises InvalidInput naming file, line and reason."""
    held_out = []
    try:
        for row in read(path, reading):
            if isinstance(row, Bad) or "completion" not in row.values:
                why = row.what if isinstance(row, Bad) else f"it has {', '.join(row.values)}"
                raise InvalidInput(f"{path} {row.where}: needs prompt and completion", why)
            held_out.append(HeldOut(row.values["prompt"], row.values["completion"]))
    except RowsError as error:
        raise InvalidInput(str(error), hint=error.hint) from None
    return held_out


def parse_answer(text: str, labels: Sequence[str]) -> str | None:
    """The label that the answer starts with, whatever its case and the punctuation around it, else None.

    Only whole words count: "Notable" is not "No".
    """
    words = re.findall(r"[^\W_]+", text.casefold())
    for label in labels:
        wanted = re.findall(r"[^\W_]+", label.casefold())
        if wanted and words[: len(wanted)] == wanted:
            return label
    return None


def score(rows: Sequence[HeldOut], labels: Sequence[str], answers: Sequence[str]) -> Score:
    """Compare answers, in the rows' order, with what is right; one without a label is wrong and counted apart."""
    parsed = [parse_answer(text, labels) for text in answers]
    right = tuple(p == row.answer.strip() for p, row in zip(parsed, rows, strict=True))
    return Score(tuple(answers), right, sum(p is None for p in parsed))


def majority(rows: Sequence[HeldOut]) -> float:
    """The accuracy of always giving the most frequent answer."""
    return max(Counter(row.answer for row in rows).values()) / len(rows)


def gain_ci95(before: Score, after: Score) -> tuple[float, float]:
    """95 % interval of the gain in accuracy on the same rows.

    Wald's interval for a difference of paired proportions (Agresti, Categorical Data Analysis, 3rd ed., 11.1.1):
    only the rows on which the two models differ carry variance.
    """
    n = len(before.right)
    won = sum(a and not b for a, b in zip(after.right, before.right, strict=True))
    lost = sum(b and not a for a, b in zip(after.right, before.right, strict=True))
    gain = (won - lost) / n
    half = 1.96 * math.sqrt(max(won + lost - (won - lost) ** 2 / n, 0.0)) / n
    return gain - half, gain + half


def labels_of(labels: Mapping[str, str]) -> list[str]:
    """The label words as they are compared: without the blanks that a tokenizer may need before them."""
    return [word.strip() for word in labels.values()]
