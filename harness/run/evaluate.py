"""What answers are worth, and what that shows: the same prompts and measure for the model before and after.

Pure functions over answers; who asked is not their business.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from containers.rows import Bad, Reading, RowsError, read
from harness.errors import InvalidInput
from harness.run import scorer
from harness.spec.runfile import RunFile

# Enough tokens for the longest label and a little chatter before it; more would only cost time.
LABEL_TOKENS, TEXT_TOKENS = 4, 64


@dataclass(frozen=True)
class HeldOut:
    """One held-out example: the prompt, and the word that is right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Given:
    """What measures need besides rows and answers."""

    labels: tuple[str, ...] = ()
    pattern: str = ""
    scorer: Path = Path()


@dataclass(frozen=True)
class Score:
    """One model's answers to the test rows, in their order, and what each is worth (0 to 1; a scorer's own scale)."""

    answers: tuple[str, ...]
    values: tuple[float, ...]
    unparsable: int = 0
    """Answers without a label, of measure label."""

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def unparsable_share(self) -> float:
        return self.unparsable / len(self.values)


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


def score(measure: str, rows: Sequence[HeldOut], answers: Sequence[str], given: Given) -> Score:
    """What the answers, in the rows' order, are worth.

    `label` and `label_likelihood`: the right label is 1; an answer without a label is 0 and counted apart. `regex`:
    1 where the pattern is found. `json`: 1 where the whole answer is JSON. `exact_match`: 1 where the answer is the
    completion, but for blanks around it. Raises InvalidInput for what is wrong with a scorer.
    """
    if measure in ("label", "label_likelihood"):
        parsed = [parse_answer(text, given.labels) for text in answers]
        values = [float(p == row.answer.strip()) for p, row in zip(parsed, rows, strict=True)]
        return Score(tuple(answers), tuple(values), sum(p is None for p in parsed))
    if measure == "scorer":
        return Score(tuple(answers), tuple(scorer.ask(given.scorer, rows, answers)))
    kinds: dict[str, Callable[[HeldOut, str], bool]] = {
        "exact_match": _matches,
        "regex": partial(_has, re.compile(given.pattern)),
        "json": _is_json,
    }
    one = kinds[measure]
    return Score(tuple(answers), tuple(float(one(row, text)) for row, text in zip(rows, answers, strict=True)))


def _matches(row: HeldOut, text: str) -> bool:
    return text.strip() == row.answer.strip()


def _has(pattern: re.Pattern[str], _: HeldOut, text: str) -> bool:
    return pattern.search(text) is not None


def _is_json(_: HeldOut, text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def trivial(measure: str, rows: Sequence[HeldOut], given: Given) -> Score | None:
    """The best answer that looks at no prompt: always the most frequent one; None where that means nothing."""
    if measure in ("regex", "json", "scorer"):
        return None
    answer = Counter(row.answer.strip() for row in rows).most_common(1)[0][0]
    return score("exact_match", rows, [answer] * len(rows), given)


def gain_ci95(before: Score, after: Score) -> tuple[float, float]:
    """95 % interval of the gain on the same rows: paired, so that only rows with different values carry variance.

    The mean of the differences with 1.96 standard errors; for values of 0 and 1 it is Wald's interval for a
    difference of paired proportions (Agresti, Categorical Data Analysis, 3rd ed., 11.1.1).
    """
    differences = [a - b for a, b in zip(after.values, before.values, strict=True)]
    n = len(differences)
    gain = sum(differences) / n
    half = 1.96 * math.sqrt(max(sum(d * d for d in differences) / n - gain * gain, 0.0) / n)
    return gain - half, gain + half


# Share of a base model's answers without a label from which on the gain over it is called into doubt.
SAYS_LITTLE = 0.2


def verdict(measure: str, base: Score | None, tuned: Score, constant: Score | None) -> str:
    """What came of it, in words: the gain over the best trivial answer counts, that over the base model is second."""
    unit = (100, " points") if measure != "scorer" else (1, "")
    said = []
    if constant is not None:
        said.append(_against(f"always answering {constant.answers[0]!r}", constant, tuned, unit))
    if base is not None:
        said.append(_against("the base model", base, tuned, unit))
        if base.unparsable_share >= SAYS_LITTLE:
            share = f"{100 * base.unparsable_share:.1f} %"
            said.append(f"{share} of the base model's answers have no label, so the gain over it says little")
    return f"the tuned model is {'; '.join(said)}" if said else "there is nothing to compare the tuned model with"


def _against(what: str, other: Score, tuned: Score, unit: tuple[float, str]) -> str:
    """One comparison, with its interval."""
    low, high = gain_ci95(other, tuned)
    scale, name = unit
    interval = (
        f"{scale * (tuned.mean - other.mean):+.1f}{name}, 95 % interval {scale * low:+.1f} to {scale * high:+.1f}"
    )
    word = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
    return f"{word} {what} ({interval})"


def given(run: RunFile) -> Given:
    """What the run file says for its measure. Labels without the blanks that a tokenizer may need before them."""
    labels = tuple(word.strip() for word in (run.data.labels or {}).values())
    return Given(labels, run.evaluate.pattern or "", Path(run.evaluate.scorer or ""))


def max_new_tokens(run: RunFile) -> int:
    """Tokens of an answer at most."""
    return run.evaluate.max_new_tokens or (LABEL_TOKENS if run.measure.startswith("label") else TEXT_TOKENS)
