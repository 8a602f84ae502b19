"""serve/sampling.py: which tokens may be drawn, how often, and that a seed fixes the draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from serve.protocols.lmi import Parameters
from serve.sampling import choose, generator

# In steps of a thousandth: where exp() cannot tell two logits apart, which of them goes first is not defined.
LOGITS = st.integers(-8000, 8000).map(lambda n: n / 1000)
SCORES = st.lists(LOGITS, min_size=2, max_size=30).map(lambda x: np.array(x, dtype=np.float32))


def drawing(**given: object) -> Parameters:
    return Parameters(do_sample=True, **given)  # type: ignore[arg-type]


def allowed(logits: np.ndarray, p: Parameters) -> set[int]:
    """Tokens that temperature, top_k and top_p leave, worked out one by one."""
    tokens = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[: p.top_k or None]
    weights = [np.exp(float(logits[t]) / p.temperature - float(logits.max()) / p.temperature) for t in tokens]
    kept, mass = set(), 0.0
    for token, weight in zip(tokens, weights, strict=True):
        if kept and mass >= p.top_p * sum(weights) - 1e-12:
            break
        kept.add(token)
        mass += weight
    return kept


@given(SCORES)
def test_greedy_takes_the_likeliest_and_ties_the_first(logits: np.ndarray) -> None:
    assert generator(Parameters()) is None
    assert choose(logits, Parameters(), None) == min(t for t in range(len(logits)) if logits[t] == logits.max())


@settings(max_examples=60, deadline=None)
@given(SCORES, st.floats(0.2, 5), st.integers(0, 40), st.floats(0.05, 1), st.integers(0, 2**32))
def test_only_what_top_k_and_top_p_leave_is_drawn(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    p = drawing(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    chance = generator(p)
    assert {choose(logits, p, chance) for _ in range(40)} <= allowed(logits, p)


def test_of_two_scores_with_one_weight_the_higher_is_drawn() -> None:
    p = drawing(top_p=0.5, seed=0)
    chance = generator(p)
    assert {choose(np.array([-2e-25, 0], dtype=np.float32), p, chance) for _ in range(40)} == {1}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.6, 0.3, 0.1]),
        ({"temperature": 2.0}, [0.473, 0.334, 0.193]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0]),
        ({"top_k": 1}, [1, 0, 0]),
        ({"top_p": 0.6}, [1, 0, 0]),  # reached exactly: the next one is out
        ({"top_p": 0.61}, [2 / 3, 1 / 3, 0]),
        ({"top_k": 2, "top_p": 0.65}, [1, 0, 0]),  # of what top_k left, the first alone has 2/3
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(given: dict, expected: list[float]) -> None:
    # Not in order of likelihood, so that a forgotten mapping back to token ids is seen.
    logits = np.log(np.array([0.1, 0.6, 0.3]) + 1e-9).astype(np.float32)
    p = drawing(seed=1, **given)
    chance = generator(p)
    drawn = np.bincount([choose(logits, p, chance) for _ in range(4000)], minlength=3) / 4000
    assert drawn[[1, 2, 0]] == pytest.approx(expected, abs=0.03)


def test_a_seed_fixes_the_draw_and_none_does_not() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def draw(seed: int | None) -> list[int]:
        p = drawing(seed=seed)
        chance = generator(p)
        return [choose(logits, p, chance) for _ in range(5)]

    assert draw(3) == draw(3)
    assert draw(-1) == draw(-1)
    assert len({tuple(draw(seed)) for seed in range(-5, 5)}) == 10  # any whole number is a seed of its own
    assert draw(None) != draw(None)


def test_top_p_of_a_flat_vocabulary_reaches_beyond_the_first_look() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    p = drawing(seed=0, top_p=0.9)
    chance = generator(p)
    drawn = {choose(flat, p, chance) for _ in range(6000)}
    assert drawn <= set(range(900)), "ties go to the lower token"
    assert len(drawn) > 850
