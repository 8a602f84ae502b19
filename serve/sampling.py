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
    """Tokens drawn after temperature, top_k, top_p and min_p; one uniform number a row.

    Whole rows are passed over a few times in fp32 and never sorted: that would cost milliseconds a token.
    """
    asked = [s.parameters for s in samplers]
    scores = logits / np.array([[p.temperature] for p in asked], dtype=np.float32)
    scores -= scores.max(axis=1, keepdims=True)
    weights = np.exp(scores)
    whole = weights.sum(axis=1, dtype=np.float64)
    kept = weights >= _floors(weights, whole, asked)[:, None]
    tokens = np.empty(len(asked), dtype=np.intp)
    for i, (p, sampler) in enumerate(zip(asked, samplers)):  # noqa: B905 (3.10)
        assert sampler.chance is not None
        uniform = sampler.chance.random()
        if p.top_k or p.top_p < 1.0 or p.min_p:
            among = np.flatnonzero(kept[i])
            among = among[_ranked(scores[i, among], whole[i], p)]
            tokens[i] = among[_pick(weights[i, among], uniform)]
        else:
            tokens[i] = _pick(weights[i], uniform)
    return tokens


def _floors(weights: Logits, whole: Numbers, asked: Sequence[Parameters]) -> Logits:
    """For each row a weight below which no token can be drawn.

    top_p: all tokens of weight below (1 - p) of the mean weigh less than 1 - p together. top_k: the k-th largest of
    the maxima of blocks is reached by k tokens at least. A hair less: these are sums with rounding errors, and what
    lies at the border must be looked at.
    """
    vocabulary = weights.shape[1]
    floors = np.zeros(len(asked))
    for i, p in enumerate(asked):
        if p.top_k:
            size = max(1, min(64, vocabulary // (4 * p.top_k)))
            blocks = weights[i, : vocabulary - vocabulary % size].reshape(-1, size).max(axis=1)
            if p.top_k <= len(blocks):
                floors[i] = np.partition(blocks, -p.top_k)[-p.top_k]
        elif p.top_p < 1.0:
            floors[i] = (1.0 - p.top_p) * whole[i] / vocabulary
        else:
            floors[i] = p.min_p  # of the largest weight, which is 1
    return (floors * (1 - 1e-6)).astype(np.float32)


def _ranked(scores: Logits, whole: float, p: Parameters) -> NDArray[np.bool_]:
    """Which of the few tokens that are left top_k, top_p and min_p keep; among equals the lower tokens."""
    ordered = np.sort(scores)[::-1]
    weights = np.exp(ordered.astype(np.float64))
    count = min(p.top_k or len(ordered), len(ordered))
    if p.top_p < 1.0:
        mass = np.cumsum(weights[:count])
        # The likeliest until their mass reaches top_p, at least one; of all tokens, where top_k left all.
        wanted = p.top_p * (mass[-1] if p.top_k else whole)
        count = int(np.searchsorted(mass[:-1], wanted * (1 - 1e-6))) + 1  # reached is reached, whatever fp32 rounds
    if p.min_p:
        count = max(1, int(np.searchsorted(-weights[:count], -p.min_p, side="right")))
    last = ordered[count - 1]
    kept = scores > last
    kept[np.flatnonzero(scores == last)[: count - int(kept.sum())]] = True
    return kept


def _pick(weights: Logits, uniform: float) -> int:
    """The first place where the running sum passes its share of the whole."""
    # Sums of blocks first: a running sum over a vocabulary takes ten times as long.
    size = 64
    starts = np.arange(0, len(weights), size)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    before = blocks[block - 1] if block else 0.0
    inside = weights[starts[block] : starts[block] + size].astype(np.float64)
    mass = before + np.cumsum(inside)
    place = int(np.searchsorted(mass, target, side="right"))
    # Rounding may leave the target at the very end of the block: the last token there that can be drawn.
    place = min(place, int(np.flatnonzero(inside)[-1]))
    return int(starts[block]) + place


def logprobs(row: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The natural logarithm of `token`'s probability, and the `top` likeliest tokens with theirs, best first.

    Of the model's own distribution: before penalties, bias and temperature, as vLLM and OpenAI report it.
    """
    largest = float(row.max())
    total = largest + float(np.log(np.exp(row - row.dtype.type(largest)).sum(dtype=np.float64)))
    best: list[tuple[int, float]] = []
    if top:
        among = np.argpartition(row, -top)[-top:] if top < len(row) else np.arange(len(row))
        order = among[np.lexsort((among, -row[among]))]
        best = [(int(t), float(row[t]) - total) for t in order]
    return float(row[token]) - total, best
