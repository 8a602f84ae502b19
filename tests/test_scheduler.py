"""serve/scheduler.py: buckets, slots and what each execution is sent, under any order of arrivals and leavings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from serve.scheduler import Scheduler, Sequence, Step, cut, fit, settled, shapes

SMALL = shapes(300, 3)
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

    def __init__(self) -> None:
        self.slots: list[list[int]] = [[-1] * SMALL.n_positions for _ in range(SMALL.slots)]

    def run(self, step: Step) -> None:
        if step.kind == "prefill":
            (ids,), (places,), (slot,) = step.ids, step.cache_ids, step.start_ids
            assert places == list(range(len(ids)))
            assert 2 <= len(ids) <= step.bucket
            # The library pads to the bucket with token 0.
            self.slots[slot][: step.bucket] = ids + [0] * (step.bucket - len(ids))
            return
        assert step.start_ids == sorted(set(step.start_ids))
        rows = {slot: (i, p) for slot, (i,), (p,) in zip(step.start_ids, step.ids, step.cache_ids, strict=True)}
        for slot in range(SMALL.slots):
            token, place = rows.get(slot, (0, 0))  # a slot that is not named loses its position 0
            assert place < step.bucket
            self.slots[slot][place] = token


def check(step: Step, memory: Memory, seated: list[Sequence]) -> None:
    """Every row read its own sequence, whole; nobody else's was damaged."""
    assert len({s.slot for s in seated}) == len(seated) <= SMALL.slots
    if step.kind == "decode":
        assert step.sequences == sorted(seated, key=lambda s: s.slot or 0)
    longest = max(s.length for s in step.sequences)
    assert step.bucket == fit(SMALL.token_buckets, longest)
    for s in step.sequences:
        assert s.slot is not None
        assert memory.slots[s.slot][: s.length] == [*s.prompt, *s.generated]
    for s in seated:  # others hold all but their newest token, which is yet to be sent
        if s not in step.sequences and s.generated:
            assert s.slot is not None
            assert memory.slots[s.slot][: s.length - 1] == [*s.prompt, *s.generated][:-1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.tuples(PROMPT, st.integers(1, 10)), st.just("step"), st.integers(0, 9)), max_size=60))
def test_no_sequence_is_damaged_lost_or_starved(events: list[object]) -> None:
    scheduler, memory = Scheduler(SMALL), Memory()
    living: list[Sequence] = []
    order: list[Sequence] = []
    token = 1000

    def advance() -> bool:
        nonlocal token
        step = scheduler.step()
        if step is None:
            return False
        memory.run(step)
        seated = [s for s in living if s.slot is not None]
        check(step, memory, seated)
        order.extend(s for s in seated if not any(s is o for o in order))
        tokens = list(range(token, token + len(step.sequences)))
        token += len(tokens)
        scheduler.advance(step, tokens)
        for s in step.sequences:
            if len(s.generated) == s.max_new_tokens:
                scheduler.release(s)
                living.remove(s)
        return True

    submitted: list[Sequence] = []
    for event in events:
        if isinstance(event, tuple):
            size, new = event
            s = Sequence(tuple(range(token, token + size)), new)
            token += size
            scheduler.submit(s)
            living.append(s)
            submitted.append(s)
        elif isinstance(event, int) and living:
            gone = living.pop(event % len(living))
            scheduler.release(gone)
            scheduler.release(gone)
            assert gone.slot is None
        else:
            advance()
    left = sum(s.max_new_tokens for s in living)
    steps = 0
    while advance():
        steps += 1
    assert steps <= left
    assert not living
    ids = [id(s) for s in order]
    assert ids == [id(s) for s in submitted if id(s) in ids], "first come, first served"


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


STOPS = st.lists(st.text("ab\ufffd", min_size=1, max_size=4), max_size=3)


@given(st.text("ab\ufffd", max_size=20), STOPS, st.integers(0, 20))
def test_what_a_stream_shows_is_never_taken_back(text: str, stops: list[str], at: int) -> None:
    whole = cut(text, stops)
    whole = text if whole is None else whole
    begun = text[:at]
    if cut(begun, stops) is None and not begun.endswith("\ufffd"):
        assert whole.startswith(settled(begun, stops))
    assert settled(begun + "\ufffd", stops) == settled(begun, stops)  # half a character is held back


def test_cut_takes_the_first_stop() -> None:
    assert cut("one two three", ["three", "two"]) == "one "
    assert cut("one", ["two"]) is None
    assert settled("half a st", ["stop"]) == "half a "
