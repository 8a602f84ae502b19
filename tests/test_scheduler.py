"""serve/scheduler.py: buckets, slots and what each execution is sent, under any order of arrivals and leavings."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings, strategies as st

from serve.scheduler import SMALLEST_CHUNK, Scheduler, Sequence, Shapes, Step, fit, shapes

SMALL = shapes(300, 3)
CHUNKED = Shapes(3, (300,), (300,), chunk=80)
ENGINES = st.sampled_from([SMALL, CHUNKED])
PROMPT = st.one_of(st.sampled_from([1, 2, 127, 128, 129, 256, 257, 290]), st.integers(1, 290))


@given(st.integers(1, 9000), st.integers(1, 64))
def test_buckets_double_up_to_n_positions(n_positions: int, batch: int) -> None:
    sizes = shapes(n_positions, batch)
    assert sizes.token_buckets == sizes.context_buckets
    assert list(sizes.token_buckets) == sorted(set(sizes.token_buckets))
    assert sizes.n_positions == n_positions
    assert sizes.token_buckets[:-1] == tuple(128 << i for i in range(len(sizes.token_buckets) - 1))
    assert sizes.slots == max(2, batch)


@given(st.integers(1, 9000), st.data())
def test_a_prompt_gets_the_smallest_bucket_that_holds_it(n_positions: int, data: st.DataObject) -> None:
    buckets = shapes(n_positions, 1).context_buckets
    size = data.draw(st.integers(1, n_positions))
    bucket = fit(buckets, size)
    assert bucket >= size
    assert all(b < size for b in buckets if b < bucket)
    with pytest.raises(ValueError, match="largest bucket"):
        fit(buckets, n_positions + 1)


class Memory:
    """What stands at each position of each slot: a device whose every wrong write is seen."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.slots: list[list[int]] = [[-1] * shapes.n_positions for _ in range(shapes.slots)]

    def run(self, step: Step) -> None:
        slots = [row.slot for row in step.rows]
        assert slots == sorted(set(slots))
        if self.shapes.chunk:
            assert step.prompt_tokens <= self.shapes.chunk
            for row in step.rows:
                self.slots[row.slot][row.start : row.end] = row.tokens
            return
        if step.kind == "prefill":
            (row,) = step.rows
            assert row.start == 0
            assert 2 <= len(row.tokens) <= step.bucket
            # The library pads to the bucket with token 0.
            self.slots[row.slot][: step.bucket] = row.tokens + [0] * (step.bucket - len(row.tokens))
            return
        named = {row.slot: row for row in step.rows}
        for slot in range(self.shapes.slots):
            token, place = (named[slot].tokens[0], named[slot].start) if slot in named else (0, 0)
            assert place < step.bucket
            self.slots[slot][place] = token  # a slot that is not named loses its position 0


def check(step: Step, memory: Memory, living: list[Sequence]) -> None:
    """Every sampled row has read its own sequence, whole; nobody else's was damaged; nobody who runs was left out."""
    seated = [s for s in living if s.slot is not None]
    assert len({s.slot for s in seated}) == len(seated) <= memory.shapes.slots
    if step.kind != "prefill":
        assert {id(s) for s in seated if s.generated} <= {id(r.sequence) for r in step.rows}
    for row in step.rows:
        s = row.sequence
        if row.sampled:
            assert row.end == s.length
            assert memory.slots[row.slot][: s.length] == [*s.prompt, *s.generated]
    for s in seated:
        if all(s is not row.sequence for row in step.rows) and s.filled:
            assert s.slot is not None
            assert memory.slots[s.slot][: s.filled] == [*s.prompt, *s.generated][: s.filled]


EVENTS = st.lists(st.one_of(st.tuples(PROMPT, st.integers(1, 10)), st.just("step"), st.integers(0, 9)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(ENGINES, EVENTS, st.floats(0.001, 0.1), st.floats(0.0001, 0.01))
def test_no_sequence_is_damaged_lost_or_starved(
    engine: Shapes, events: list[object], decode: float, per_token: float
) -> None:
    scheduler, memory = Scheduler(engine), Memory(engine)
    living: list[Sequence] = []
    token, now = 1000, 0.0

    def advance() -> bool:
        nonlocal token, now
        step = scheduler.step()
        if step is None:
            return False
        memory.run(step)
        check(step, memory, living)
        tokens = list(range(token, token + len(step.sampled)))
        token += len(tokens)
        sampled = step.sampled
        seconds = decode * (step.kind != "prefill") + per_token * step.prompt_tokens
        now += seconds
        scheduler.advance(step, tokens, seconds)
        for s in sampled:
            if len(s.generated) == s.max_new_tokens:
                scheduler.release(s)
                living.remove(s)
        return True

    for event in events:
        if isinstance(event, tuple):
            size, new = event
            s = Sequence(tuple(range(token, token + size)), new)
            token += size
            scheduler.submit(s, now)
            living.append(s)
        elif isinstance(event, int) and living:
            gone = living.pop(event % len(living))
            scheduler.release(gone)
            scheduler.release(gone)
            assert gone.slot is None
        else:
            advance()
    assert scheduler.seated + scheduler.waiting == len(living)
    most = sum(len(s.prompt) // SMALLEST_CHUNK + 1 + s.max_new_tokens for s in living)
    steps = 0
    while advance():
        steps += 1
    assert steps <= most
    assert not living
    assert (scheduler.seated, scheduler.waiting) == (0, 0)


def served(engine: Shapes, arrivals: list[tuple[float, int]], overtake: float) -> list[int]:
    """Numbers of the arrivals in the order in which their prompts are begun; a token costs 1 ms, a step 10 ms.

    Those of one step pass nobody: they are in order of arrival.
    """
    scheduler = Scheduler(engine, overtake=overtake)
    scheduler.costs.decode, scheduler.costs.token = 0.01, 0.001
    left, now, begun = sorted(enumerate(arrivals), key=lambda a: a[1][0]), 0.0, []
    numbers: dict[Sequence, int] = {}
    while left or scheduler.waiting or scheduler.seated:
        while left and left[0][1][0] <= now:
            number, (at, size) = left.pop(0)
            s = Sequence((1,) * size, 3)
            numbers[s] = number
            scheduler.submit(s, at)
        step = scheduler.step()
        if step is None:
            now = left[0][1][0]
            continue
        together = [numbers[row.sequence] for row in step.rows if row.start == 0]
        begun += sorted(together, key=lambda number: arrivals[number][0])
        seconds = 0.01 * (step.kind != "prefill") + 0.001 * step.prompt_tokens
        now += seconds
        sampled = step.sampled
        scheduler.advance(step, [5] * len(sampled), seconds)
        for s in sampled:
            if len(s.generated) == 3:
                scheduler.release(s)
    return begun


ARRIVALS = st.lists(st.tuples(st.floats(0, 3), st.integers(2, 200)), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None)
@example(CHUNKED, [(2.5, 168), (2.5, 200), (2.75, 2), (2.625, 3)])
@given(ENGINES, ARRIVALS)
def test_a_prompt_is_passed_only_by_shorter_ones_that_come_soon_after(
    engine: Shapes, arrivals: list[tuple[float, int]]
) -> None:
    order = served(engine, arrivals, overtake=4.0)
    assert sorted(order) == list(range(len(arrivals)))
    place = {number: i for i, number in enumerate(order)}
    for a, (at, size) in enumerate(arrivals):
        for b, (later, other) in enumerate(arrivals):
            if later > at and place[b] < place[a]:
                assert other < size
                assert later - at <= 4.0 * 0.0012 * (size - other) + 1e-9  # costs are learnt, and rounded


@given(ENGINES, ARRIVALS)
@settings(max_examples=40, deadline=None)
def test_without_overtaking_first_come_is_first_served(engine: Shapes, arrivals: list[tuple[float, int]]) -> None:
    order = served(engine, arrivals, overtake=0.0)
    times = [arrivals[number][0] for number in order]
    assert times == sorted(times)


@pytest.mark.parametrize("engine", [SMALL, Shapes(3, (2200,), (2200,), chunk=512)])
def test_a_long_prompt_stalls_running_sequences_by_the_budget_at_most(engine: Shapes) -> None:
    """The next token within three steps; a whole prompt where the engine cannot read less."""
    scheduler = Scheduler(engine, stall=2.0)
    runs, size = Sequence((1,) * 4, 120), min(2000, engine.n_positions - 10)
    scheduler.submit(runs)
    since, gaps, read = 0.0, [], 0
    for i in range(120):
        if i == 20:
            for _ in range(2):
                scheduler.submit(Sequence((1,) * size, 1))
        step = scheduler.step()
        assert step is not None
        seconds = 0.01 * (step.kind != "prefill") + 0.0001 * step.prompt_tokens
        since += seconds
        read += step.prompt_tokens
        sampled = step.sampled
        scheduler.advance(step, [5] * len(sampled), seconds)
        if runs in sampled:
            gaps.append(since)
            since = 0.0
        for s in sampled:
            if s is not runs:
                scheduler.release(s)
    whole = 0.0001 * size if engine is SMALL else 0.0
    assert max(gaps[1:]) <= max(0.0301, 0.01 + whole + 0.001)
    assert read == 4 + 2 * size
    assert scheduler.seated == 1


def test_small_steps_do_not_make_prompts_look_dear() -> None:
    """A step costs something whatever is in it; parts of a prompt must not shrink to nothing by that."""
    scheduler = Scheduler(Shapes(3, (4000,), (4000,), chunk=512), stall=2.0)
    scheduler.submit(Sequence((1,) * 200, 500))
    sizes = []
    for i in range(60):
        if i == 10:
            scheduler.submit(Sequence((1,) * 3900, 1))
        step = scheduler.step()
        assert step is not None
        sizes.append(step.prompt_tokens)
        both = step.kind == "mixed"
        scheduler.advance(step, [5] * len(step.sampled), 0.01 + 0.0001 * step.prompt_tokens + 0.005 * both)
    parts = [size for size in sizes[10:] if size]
    assert min(parts[:-1]) >= SMALLEST_CHUNK
    assert len(parts) < 40


def test_what_never_fits_is_refused_at_once() -> None:
    scheduler = Scheduler(SMALL)
    for prompt, new in (((), 1), ((1,), 0), ((1,) * 299, 2)):
        with pytest.raises(ValueError, match=r"needs a token|exceed n_positions"):
            scheduler.submit(Sequence(prompt, new))
    assert scheduler.step() is None
    s = Sequence((1,) * 299, 1)
    scheduler.submit(s)
    step = scheduler.step()
    assert step is not None
    assert (step.kind, step.bucket) == ("prefill", 300)
    with pytest.raises(ValueError, match="2 tokens for 1"):
        scheduler.advance(step, [1, 2])
