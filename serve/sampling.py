"""The choice of the next token on the host, for all sequences of a step at once: numpy only.

On the host because transformers-neuronx 0.12 samples a batch with one set of parameters and no seed, and requests
come with their own. The order is that of transformers 4.45 (generation/utils.py, _get_logits_processor and
_get_logits_warper): penalties, then temperature, top_k, top_p, min_p. Each row is computed from itself alone, so that
a seed gives the same answer whatever shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve.request import Parameters

Logits = NDArray[np.float32]
Numbers = NDArray[np.float64]
SEED_SPACE = 2**64  # negative seeds are taken as their two's complement


@dataclass(eq=False)
class Sampler:
    """One sequence's parameters, source of chance and the tokens that its penalties look at."""

    parameters: Parameters
    prompt: tuple[int, ...] = ()
    default_penalty: float = 1.0
    """repetition_penalty of the model's generation_config, where the request gives none."""
    chance: np.random.Generator | None = None
    counts: dict[int, int] = field(default_factory=dict)
    """How often each token was generated."""
    _seen: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        p = self.parameters
        if p.do_sample:
            self.chance = np.random.default_rng(None if p.seed is None else p.seed % SEED_SPACE)
        given = p.repetition_penalty
        self.repetition = self.default_penalty if given is None else given
        self.adjusts = bool(self.repetition != 1.0 or p.presence_penalty or p.frequency_penalty or p.logit_bias)
        if self.repetition != 1.0:
            self._seen = np.unique(np.asarray(self.prompt, dtype=np.intp))

    def accept(self, token: int) -> None:
        """Remember a generated token."""
        if not self.adjusts:
            return
        first = token not in self.counts
        self.counts[token] = self.counts.get(token, 0) + 1
        if first and self._seen is not None and token not in self._seen:
            self._seen = np.append(self._seen, token)

    def adjust(self, row: Logits) -> None:
        """Apply penalties and bias to `row`, (vocabulary,), in place.

        repetition_penalty: arXiv:1909.05858, over prompt and answer. presence_penalty and frequency_penalty: OpenAI's
        API reference, over the answer.
        """
        p = self.parameters
        if self._seen is not None and len(self._seen):
            seen = row[self._seen]
            row[self._seen] = np.where(seen > 0, seen / self.repetition, seen * self.repetition)
        if self.counts and (p.presence_penalty or p.frequency_penalty):
            tokens = np.fromiter(self.counts, dtype=np.intp, count=len(self.counts))
            times = np.fromiter(self.counts.values(), dtype=np.float32, count=len(self.counts))
            row[tokens] -= p.presence_penalty + p.frequency_penalty * times
        for token, bias in p.logit_bias:
            row[token] += bias


def choose(logits: Logits, samplers: Sequence[Sampler]) -> list[int]:
    """A token for each row of `logits`, (rows, vocabulary): the likeliest, or a drawn one. Overwrites adjusted rows.

    A row with a number that is none gets -1: only its own request fails.
    """
    for row, sampler in zip(logits, samplers):  # noqa: B905 (3.10)
        if sampler.adjusts:
            sampler.adjust(row)
    tokens = logits.argmax(axis=1)
    best = logits[np.arange(len(logits)), tokens]
    drawn = [i for i, s in enumerate(samplers) if s.chance is not None and np.isfinite(best[i])]
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [samplers[i] for i in drawn])
    # argmax of a row with a NaN is the NaN's place.
    tokens[~np.isfinite(best)] = -1
    return [int(t) for t in tokens]


def _draw(logits: Logits, samplers: Sequence[Sampler]) -> NDArray[np.intp]:
    """Tokens drawn after temperature, top_k, top_p and min_p; one uniform number a row."""
    asked = [s.parameters for s in samplers]
    scores = logits.astype(np.float64) / np.array([[p.temperature] for p in asked])
    scores -= scores.max(axis=1, keepdims=True)
    weights = np.exp(scores)
    whole = weights.sum(axis=1)
    scores[weights < _floors(weights, whole, asked)[:, None]] = -np.inf
    uniform = np.array([s.chance.random() for s in samplers if s.chance is not None])
    ranked = [i for i, p in enumerate(asked) if p.top_k or p.top_p < 1.0]
    plain = [i for i in range(len(asked)) if i not in set(ranked)]
    tokens = np.empty(len(asked), dtype=np.intp)
    if plain:
        kept = np.where(np.isneginf(scores[plain]), 0.0, weights[plain])
        tokens[plain] = _pick(kept, uniform[plain])
    if ranked:
        tokens[ranked] = _ranked(scores[ranked], whole[ranked], uniform[ranked], [asked[i] for i in ranked])
    return tokens


def _floors(weights: Numbers, whole: Numbers, asked: Sequence[Parameters]) -> Numbers:
    """For each row a weight below which no token can be drawn: a pass over the vocabulary, instead of sorting it.

    top_p: all tokens of weight below (1 - p) of the mean weigh less than 1 - p together. top_k: the k-th largest of
    the maxima of blocks is reached by k tokens at least.
    """
    vocabulary = weights.shape[1]
    floors = np.zeros(len(asked))
    for i, p in enumerate(asked):
        if p.top_k:
            size = max(1, min(64, vocabulary // (4 * p.top_k)))
            maxima = np.maximum.reduceat(weights[i], np.arange(0, vocabulary, size))
            if p.top_k <= len(maxima):
                floors[i] = np.partition(maxima, -p.top_k)[-p.top_k]
        elif p.top_p < 1.0:
            # A hair below: the sum has rounding errors, and the tokens at the border must be looked at.
            floors[i] = (1.0 - p.top_p) * whole[i] / vocabulary * (1 - 1e-9)
        else:
            floors[i] = p.min_p  # of the largest weight, which is 1
    return floors


def _ranked(scores: Numbers, whole: Numbers, uniform: Numbers, asked: Sequence[Parameters]) -> NDArray[np.intp]:
    """top_k, top_p and min_p over the few tokens that are left: sorted by score, ties to the lower token."""
    rows, columns = np.nonzero(~np.isneginf(scores))
    counts = np.bincount(rows, minlength=len(scores))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    few = np.full((len(scores), int(counts.max())), -np.inf)
    names = np.zeros(few.shape, dtype=np.intp)
    few[rows, places], names[rows, places] = scores[rows, columns], columns
    order = np.argsort(-few, axis=1, kind="stable")
    few, names = np.take_along_axis(few, order, 1), np.take_along_axis(names, order, 1)
    top_k, top_p, min_p = (np.array([[getattr(p, name)] for p in asked]) for name in ("top_k", "top_p", "min_p"))
    few[(top_k > 0) & (np.arange(few.shape[1])[None, :] >= top_k)] = -np.inf
    weights = np.exp(few)
    mass = np.cumsum(weights, axis=1)
    # The likeliest until their mass reaches top_p, at least one; of all tokens, where top_k left all.
    whole = np.where(top_k > 0, mass[:, -1:], whole[:, None])
    weights[(mass - weights >= top_p * whole) & (top_p < 1.0)] = 0.0
    weights[weights < min_p] = 0.0
    places = _pick(weights, uniform)
    return names[np.arange(len(names)), places]


def _pick(weights: Numbers, uniform: Numbers) -> NDArray[np.intp]:
    """For each row the first place where the running sum passes its share of the whole."""
    mass = np.cumsum(weights, axis=1)
    return np.asarray((mass > (uniform * mass[:, -1])[:, None]).argmax(axis=1), dtype=np.intp)


def logprobs(row: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The natural logarithm of `token`'s probability, and the `top` likeliest tokens with theirs, best first.

    Of the model's own distribution: before penalties, bias and temperature, as vLLM and OpenAI report it.
    """
    largest = float(row.max())
    total = largest + float(np.log(np.exp(row.astype(np.float64) - largest).sum()))
    best: list[tuple[int, float]] = []
    if top:
        among = np.argpartition(row, -top)[-top:] if top < len(row) else np.arange(len(row))
        order = among[np.lexsort((among, -row[among]))]
        best = [(int(t), float(row[t]) - total) for t in order]
    return float(row[token]) - total, best
