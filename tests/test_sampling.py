"""serve/sampling.py: which tokens may be drawn, how often, and that a seed fixes the draw whoever shares the step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from serve.request import Parameters
from serve.sampling import Sampler, choose, logprobs

# In steps of a thousandth: where exp() cannot tell two logits apart, which of them goes first is not defined.
LOGITS = st.integers(-8000, 8000).map(lambda n: n / 1000)
SCORES = st.lists(LOGITS, min_size=2, max_size=30).map(lambda x: np.array(x, dtype=np.float32))
PARAMETERS = st.builds(
    Parameters,
    do_sample=st.booleans(),
    temperature=st.floats(0.2, 5),
    top_k=st.integers(0, 40),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    repetition_penalty=st.sampled_from([None, 1.0, 0.8, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    seed=st.integers(-(2**63), 2**64 - 1),
)


def drawing(**given: object) -> Parameters:
    return Parameters(do_sample=True, **given)  # type: ignore[arg-type]


def one(logits: np.ndarray, sampler: Sampler) -> int:
    return choose(logits[None].copy(), [sampler])[0]


def allowed(logits: np.ndarray, p: Parameters) -> set[int]:
    """Tokens that temperature, top_k, top_p and min_p leave, worked out one by one."""
    tokens = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[: p.top_k or None]
    weights = [np.exp((float(logits[t]) - float(logits.max())) / p.temperature) for t in tokens]
    kept, mass = set(), 0.0
    for token, weight in zip(tokens, weights, strict=True):
        if kept and mass >= p.top_p * sum(weights) - 1e-12 and p.top_p < 1:
            break
        if weight >= p.min_p - 1e-12:
            kept.add(token)
        mass += weight
    return kept


@given(SCORES)
def test_greedy_takes_the_likeliest_and_ties_the_first(logits: np.ndarray) -> None:
    assert one(logits, Sampler(Parameters())) == min(t for t in range(len(logits)) if logits[t] == logits.max())


@settings(max_examples=80, deadline=None)
@given(SCORES, PARAMETERS)
def test_only_what_the_limits_leave_is_drawn(logits: np.ndarray, p: Parameters) -> None:
    p = Parameters(
        do_sample=True, temperature=p.temperature, top_k=p.top_k, top_p=p.top_p, min_p=p.min_p, seed=p.seed
    )
    sampler = Sampler(p)
    assert set(choose(np.repeat(logits[None], 1, 0), [sampler])) <= allowed(logits, p)
    assert {one(logits, sampler) for _ in range(40)} <= allowed(logits, p)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), PARAMETERS), min_size=1, max_size=6), st.integers(8, 300), st.randoms())
def test_a_request_draws_the_same_alone_and_in_any_company(
    asked: list[tuple[int, Parameters]], vocabulary: int, order: object
) -> None:
    """Some have been at it for a while when others come; rows change their places from step to step."""
    chance = np.random.default_rng(0)
    steps = [(chance.normal(size=(len(asked), vocabulary)) * 3).astype(np.float32) for _ in range(12)]

    def new() -> list[Sampler]:
        return [Sampler(p, tuple(range(n, n + 3))) for n, (_, p) in enumerate(asked)]

    def take(samplers: list[Sampler], rows: np.ndarray) -> list[int]:
        tokens = choose(rows.copy(), samplers)
        for sampler, token in zip(samplers, tokens, strict=True):
            sampler.accept(token)
        return tokens

    alone = [[take([s], step[n : n + 1])[0] for step in steps[joins:]] for n, ((joins, _), s) in enumerate(
        zip(asked, new(), strict=True))]  # fmt: skip
    company, samplers = [[] for _ in asked], new()  # type: ignore[var-annotated]
    for i, step in enumerate(steps):
        here = [n for n, (joins, _) in enumerate(asked) if joins <= i]
        order.shuffle(here)  # type: ignore[attr-defined]
        if here:
            for n, token in zip(here, take([samplers[n] for n in here], step[here]), strict=True):
                company[n].append(token)
    assert company == alone


def test_of_two_scores_with_one_weight_the_higher_is_drawn() -> None:
    sampler = Sampler(drawing(top_p=0.5, seed=0))
    assert {one(np.array([-2e-25, 0], dtype=np.float32), sampler) for _ in range(40)} == {1}


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
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0]),  # of the likeliest's 0.6
        ({"top_p": 0.95, "min_p": 0.6}, [1, 0, 0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(given: dict, expected: list[float]) -> None:
    # Not in order of likelihood, so that a forgotten mapping back to token ids is seen.
    logits = np.log(np.array([0.1, 0.6, 0.3]) + 1e-9).astype(np.float32)
    sampler = Sampler(drawing(seed=1, **given))
    drawn = np.bincount([one(logits, sampler) for _ in range(4000)], minlength=3) / 4000
    assert drawn[[1, 2, 0]] == pytest.approx(expected, abs=0.03)


def test_a_seed_fixes_the_draw_and_none_does_not() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(drawing(seed=seed))
        return [one(logits, sampler) for _ in range(5)]

    assert draw(3) == draw(3)
    assert draw(-1) == draw(-1)
    assert len({tuple(draw(seed)) for seed in range(-5, 5)}) == 10  # any whole number is a seed of its own
    assert draw(None) != draw(None)


@pytest.mark.parametrize("more", [{}, {"top_k": 900}])
def test_top_p_of_a_flat_vocabulary_leaves_its_share(more: dict) -> None:
    sampler = Sampler(drawing(seed=0, top_p=0.9, **more))
    drawn = {one(np.zeros(1000, dtype=np.float32), sampler) for _ in range(6000)}
    assert drawn <= set(range(810 if more else 900)), "ties go to the lower token"
    assert len(drawn) > 700


def test_penalties_by_hand() -> None:
    """Repetition over prompt and answer; presence once, frequency by count, over the answer alone; bias as it is."""
    p = Parameters(
        repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((4, -100.0), (3, 1.5))
    )
    sampler = Sampler(p, prompt=(0, 1, 1))
    for token in (1, 2, 2, 2):
        sampler.accept(token)
    row = np.array([1.0, -1.0, 4.0, 0.5, 9.0], dtype=np.float32)
    sampler.adjust(row)
    assert row.tolist() == [0.5, -2.0 - 0.75, 2.0 - 0.5 - 0.75, 2.0, -91.0]


def test_the_models_own_penalty_holds_where_a_request_has_none() -> None:
    row = np.array([2.0, 1.5], dtype=np.float32)
    assert one(row, Sampler(Parameters(), (0,), default_penalty=2.0)) == 1
    assert one(row, Sampler(Parameters(repetition_penalty=1.0), (0,), default_penalty=2.0)) == 0


def test_a_row_without_numbers_fails_alone() -> None:
    rows = np.array([[1, 3, 2], [1, np.nan, 2], [np.inf, 1, 1], [5, 1, 2]], dtype=np.float32)
    samplers = [
        Sampler(drawing(seed=1, top_k=1)),
        Sampler(drawing(seed=1)),
        Sampler(Parameters()),
        Sampler(Parameters()),
    ]
    assert choose(rows, samplers) == [1, -1, -1, 0]


@given(SCORES, st.integers(0, 40), st.data())
def test_logprobs_are_logarithms_of_the_softmax(logits: np.ndarray, top: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = np.log(np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum())
    chosen, best = logprobs(logits, token, top)
    assert chosen == pytest.approx(expected[token], abs=1e-5)
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[:top]
    values = [value for _, value in best]
    assert values == pytest.approx([expected[t] for t in order], abs=1e-5)
    assert values == sorted(values, reverse=True)
