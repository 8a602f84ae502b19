"""The choice of the next token, on the host: numpy only.

On the host because transformers-neuronx 0.12 samples a batch with one set of parameters and no seed, and requests
come with their own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve.protocols.lmi import Parameters


def generator(parameters: Parameters) -> np.random.Generator | None:
    """A sequence's source of chance; None for greedy. The same seed gives the same answer alone and in company."""
    if not parameters.do_sample:
        return None
    seed = parameters.seed
    return np.random.default_rng(None if seed is None else seed % 2**64)


def choose(logits: NDArray[np.float32], parameters: Parameters, chance: np.random.Generator | None) -> int:
    """A token: the likeliest, or drawn after temperature, top_k and top_p, in transformers' order."""
    if chance is None:
        return int(logits.argmax())
    scores = logits.astype(np.float64) / parameters.temperature
    tokens = _likeliest(scores, parameters.top_k) if parameters.top_k else np.arange(len(scores))
    weights = np.exp(scores[tokens] - scores.max())
    if parameters.top_p < 1.0:
        kept = _nucleus(scores[tokens], weights, parameters.top_p)
        tokens, weights = tokens[kept], weights[kept]
    mass = np.cumsum(weights)
    return int(tokens[np.searchsorted(mass, chance.random() * mass[-1], side="right")])


def _likeliest(scores: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """The k highest, highest first; ties go to the lower token."""
    among = np.arange(len(scores))
    if k < len(scores):
        # Only what reaches the k-th is sorted: sorting a whole vocabulary costs milliseconds a token.
        among = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return among[np.argsort(-scores[among], kind="stable")][:k]


def _nucleus(scores: NDArray[np.float64], weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """The likeliest until their mass reaches top_p of all, at least one. Looks at a few hundred first.

    Ordered by score: two scores that differ by little have one weight.
    """
    wanted = top_p * weights.sum()
    order = _likeliest(scores, 512)
    mass = np.cumsum(weights[order])
    if mass[-1] < wanted:
        order = _likeliest(scores, len(scores))
        mass = np.cumsum(weights[order])
    return order[: int(np.searchsorted(mass[:-1], wanted)) + 1]
