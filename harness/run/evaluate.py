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
from harness.errors import InvalidInput, MissingPrerequisite
from harness.run import scorer
from harness.spec import heldout
from harness.spec.heldout import HeldOut
from harness.spec.runfile import RunFile

# Enough tokens for the longest label and a little chatter before it; more would only cost time.
LABEL_TOKENS, TEXT_TOKENS = 4, 64


@dataclass(frozen=True)
class Given:
    """What measures need besides rows and answers."""

    labels: tuple[str, ...] = ()
    pattern: str = ""
    scorer: Path = Path()


@dataclass(frozen=True)
class Score:
    """One model's answers to the test rows, in their order, and what each is worth.

    0 to 1; a scorer's own scale; of perplexity the completion's log-likelihood in nats, in such a unit that the mean
    over rows is the mean over tokens.
    """

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
            found = row.what if isinstance(row, Bad) else heldout.of(row)
            if isinstance(found, str):
                raise InvalidInput(f"{path} {row.where}: {found}")
            held_out.append(found)
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
    completion, but for blanks around it. `rouge_l`: F1 of the longest common subsequence of words (Lin, 2004,
    https://aclanthology.org/W04-1013). `chrf`: F2 of character n-grams (Popovic, 2015,
    https://aclanthology.org/W15-3049), divided by 100. Raises InvalidInput for what is wrong with a scorer,
    MissingPrerequisite where a measure's library is not installed.
    """
    if measure in ("label", "label_likelihood"):
        parsed = [parse_answer(text, given.labels) for text in answers]
        values = [float(p == row.answer.strip()) for p, row in zip(parsed, rows, strict=True)]
        return Score(tuple(answers), tuple(values), sum(p is None for p in parsed))
    if measure == "scorer":
        return Score(tuple(answers), tuple(scorer.ask(given.scorer, rows, answers)))
    kinds: dict[str, Callable[[HeldOut, str], float]] = {
        "exact_match": _matches,
        "regex": partial(_has, re.compile(given.pattern)),
        "json": _is_json,
        **(_of_libraries() if measure in TEXTUAL else {}),
    }
    one = kinds[measure]
    return Score(tuple(answers), tuple(float(one(row, text)) for row, text in zip(rows, answers, strict=True)))


def likelihoods(found: Sequence[tuple[float, int]]) -> Score:
    """Of measure perplexity: (log-likelihood of the completion in nats, its tokens) of each row, in their order."""
    each = sum(tokens for _, tokens in found) / len(found)
    texts = [f"{math.exp(-total / tokens):.1f} over {tokens} tokens" for total, tokens in found]
    return Score(tuple(texts), tuple(total / each for total, _ in found))


TEXTUAL = ("rouge_l", "chrf")


def _of_libraries() -> dict[str, Callable[[HeldOut, str], float]]:
    """The measures of free text, by the implementations that others report: Google's rouge-score, and sacrebleu."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import sentence_chrf
    except ImportError as error:
        what = f"measures {' and '.join(TEXTUAL)} need {error.name}"
        raise MissingPrerequisite(what, hint="pip install 'neuron-harness[text]'") from None
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    return {
        "rouge_l": lambda row, text: float(rouge.score(row.answer, text)["rougeL"].fmeasure),
        "chrf": lambda row, text: float(sentence_chrf(text, [row.answer]).score) / 100,
    }


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
    if measure in ("regex", "json", "scorer", "perplexity"):
        return None
    answer, times = Counter(row.answer.strip() for row in rows).most_common(1)[0]
    if measure in TEXTUAL and times == 1:
        return None  # every text is another
    return score(measure if measure in TEXTUAL else "exact_match", rows, [answer] * len(rows), given)


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
    unit = unit_of(measure)
    said = []
    if constant is not None:
        said.append(_against(f"always answering {constant.answers[0]!r}", constant, tuned, unit))
    if base is not None:
        said.append(_against("the base model", base, tuned, unit))
        if base.unparsable_share >= SAYS_LITTLE:
            share = f"{100 * base.unparsable_share:.1f} %"
            said.append(f"{share} of the base model's answers have no label, so the gain over it says little")
    return f"the tuned model is {'; '.join(said)}" if said else "there is nothing to compare the tuned model with"


def _against(what: str, other: Score, tuned: Score, unit: tuple[float, str, int]) -> str:
    """One comparison, with its interval."""
    low, high = gain_ci95(other, tuned)
    scale, name, digits = unit
    gain, least, most = (f"{scale * value:+.{digits}f}" for value in (tuned.mean - other.mean, low, high))
    interval = f"{gain}{name}, 95 % interval {least} to {most}"
    word = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
    return f"{word} {what} ({interval})"


def unit_of(measure: str) -> tuple[float, str, int]:
    """(what a value is multiplied by, the unit of a difference, its decimals)."""
    units = {"scorer": (1.0, "", 3), "perplexity": (1.0, " nats a token", 3)}
    return units.get(measure, (100.0, " points", 1))


def shown_of(measure: str) -> Callable[[float], str]:
    """How a mean is written: most are shares; a scorer has a scale of its own, perplexity is exp(-mean)."""
    if measure == "perplexity":
        return lambda mean: f"{math.exp(-mean):.2f}"
    return "{:.3f}".format if measure == "scorer" else lambda share: f"{100 * share:.1f} %"


def given(run: RunFile) -> Given:
    """What the run file says for its measure. Labels without the blanks that a tokenizer may need before them."""
    labels = tuple(word.strip() for word in (run.data.labels or {}).values())
    return Given(labels, run.evaluate.pattern or "", Path(run.evaluate.scorer or ""))


def max_new_tokens(run: RunFile) -> int:
    """Tokens of an answer at most."""
    return run.evaluate.max_new_tokens or (LABEL_TOKENS if run.measure.startswith("label") else TEXT_TOKENS)
