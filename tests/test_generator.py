"""serve/generator.py and serve/rolling.py on an engine that computes from what stands in its memory.

Its logits depend on every token of a sequence, and on nothing else: a slot that is overwritten, left over or mixed up
gives another answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from containers.drain import Stop
from serve import generator as generator_module
from serve.generator import Generator, Job
from serve.metrics import Metrics
from serve.protocols import Context, RequestError, parse
from serve.request import Parameters, Request
from serve.rolling import Deadlines, Frame, Part, RollingBatch
from serve.scheduler import Shapes, Step, shapes
from tests.test_scheduler import Memory

LETTERS = "abcdefgh ."
END = len(LETTERS)


class Tokenizer:
    """A letter a token, and one that ends answers."""

    eos_token_id = END

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(c) for c in text]}

    def __len__(self) -> int:
        return END + 1

    def get_vocab(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(LETTERS)} | {"</s>": END}

    def decode(self, tokens: list[int], skip_special_tokens: bool = True, **_: object) -> str:
        return "".join(LETTERS[t] for t in tokens if t != END)


class Hashing:
    """An engine; `breaks` is called before each step, to fail it."""

    ends = frozenset([END])
    repetition_penalty = 1.0
    description = "a test"
    prompt_logprobs = True

    def __init__(self, shapes: Shapes) -> None:
        self.shapes, self.tokenizer, self.memory = shapes, Tokenizer(), Memory(shapes)
        self.breaks: Callable[[Step], None] = lambda _: None
        self.steps: list[Step] = []
        self.measured: list[int] = []

    def forward(self, step: Step) -> np.ndarray:
        self.breaks(step)
        self.steps.append(step)
        self.memory.run(step)
        rows = [logits(self.memory.slots[row.slot][: row.end]) for row in step.rows if row.sampled]
        return np.stack(rows) if rows else np.empty((0, END + 1), dtype=np.float32)

    def forward_all(self, prompts: list[tuple[int, ...]]) -> list[np.ndarray]:
        self.measured.append(len(prompts))
        return [np.stack([logits(list(tokens[: i + 1])) for i in range(len(tokens))]) for tokens in prompts]


def logits(tokens: list[int]) -> np.ndarray:
    digest = hashlib.sha256(bytes(t % 256 for t in tokens)).digest()
    row = np.frombuffer(digest[: END + 1], dtype=np.uint8).astype(np.float32) / 32
    row[END] -= 2.0  # an end now and then
    return row


ENGINES = {"compiled": shapes(160, 3), "chunked": Shapes(3, (160,), (160,), chunk=24)}
ASKED = st.builds(
    Request,
    text=st.text(LETTERS, min_size=1, max_size=150),
    parameters=st.builds(
        Parameters,
        max_new_tokens=st.one_of(st.none(), st.integers(1, 10)),
        do_sample=st.booleans(),
        seed=st.integers(0, 5),
        stop=st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2).map(tuple),
        presence_penalty=st.sampled_from([0.0, 1.5]),
        logprobs=st.sampled_from([None, 0, 2]),
    ),
)


def alone(request: Request, kind: Shapes) -> object:
    generator = Generator(Hashing(kind))
    (job,) = generator.submit((request,), float("inf"))
    while not generator.idle:
        generator.step()
    return job.answer


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(ENGINES)),
    st.lists(st.tuples(ASKED, st.integers(0, 6), st.booleans()), min_size=1, max_size=8),
)
def test_any_order_of_arrivals_gives_what_each_request_gives_alone(
    kind: str, arrivals: list[tuple[Request, int, bool]]
) -> None:
    """Some leave half-way. Afterwards no slot is taken and nothing waits."""
    generator = Generator(Hashing(ENGINES[kind]))
    kept: list[tuple[Request, Job]] = []
    for request, steps, leaves in arrivals:
        (job,) = generator.submit((request,), float("inf"))
        for _ in range(steps):
            generator.step()
        if leaves:
            generator.cancel(job)
        else:
            kept.append((request, job))
    steps = 0
    while not generator.idle:
        generator.step()
        steps += 1
        assert steps < 3000
    assert (generator.scheduler.seated, generator.scheduler.waiting) == (0, 0)
    for request, job in kept:
        assert job.answer == alone(request, ENGINES["compiled"])
        assert "".join(piece.text for piece in job.pieces) == job.answer.text
        tokens = [t for piece in job.pieces for t in piece.token_ids]
        assert tokens == job.sequence.generated
        assert [x.token_id for x in job.answer.logprobs] == (
            tokens if request.parameters.logprobs is not None else []
        )


@pytest.fixture(params=sorted(ENGINES))
def generator(request: pytest.FixtureRequest) -> Generator:
    return Generator(Hashing(ENGINES[request.param]), clock=Clock())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(generator: Generator) -> None:
    for _ in range(3000):
        if generator.idle:
            return
        generator.step()
    raise AssertionError("does not end")


LONG = Parameters(max_new_tokens=60, ignore_eos=True)


def test_a_late_answer_ends_with_what_there_is(generator: Generator) -> None:
    (late,) = generator.submit((Request("abc", LONG),), deadline=5.0)
    (other,) = generator.submit((Request("abd", LONG),), deadline=50.0)
    for second in range(12):
        generator.clock.now = second  # type: ignore[attr-defined]
        generator.step()
    assert late.answer is not None
    assert (late.answer.finish_reason, 0 < late.answer.generated_tokens < 12) == ("timeout", True)
    assert late.answer.text
    run(generator)
    assert other.answer == alone(Request("abd", LONG), ENGINES["compiled"])


def test_who_waits_too_long_for_a_slot_is_told_so(generator: Generator) -> None:
    generator.submit(tuple(Request("abc", LONG) for _ in range(3)), deadline=1e9)
    (waits,) = generator.submit((Request("a", LONG),), deadline=2.0)
    generator.step()
    generator.clock.now = 3.0  # type: ignore[attr-defined]
    generator.step()
    assert waits.answer is not None
    assert (waits.answer.finish_reason, waits.answer.generated_tokens) == ("timeout", 0)
    assert generator.scheduler.waiting == 0


def test_a_step_that_fails_ends_its_own_sequences_only(generator: Generator) -> None:
    first = [generator.submit((Request(text, LONG),), 1e9)[0] for text in ("abc", "abd", "abe", "abf")]
    generator.step()
    broken = []

    def breaks(step: Step) -> None:
        broken.extend(row.sequence for row in step.rows)
        generator.engine.breaks = lambda _: None  # type: ignore[attr-defined]
        raise RuntimeError("nrt\nerror")

    generator.engine.breaks = breaks  # type: ignore[attr-defined]
    run(generator)
    assert broken
    for job in first:
        if job.sequence in broken:
            assert (job.error, job.answer) == ("RuntimeError: nrt error", None)
        else:
            assert job.answer == alone(job.request, ENGINES["compiled"])
    assert (generator.scheduler.seated, generator.scheduler.waiting) == (0, 0)


def test_text_that_cannot_be_decoded_ends_one_sequence(generator: Generator) -> None:
    good, bad = (generator.submit((Request(text, LONG),), 1e9)[0] for text in ("abc", "abd"))

    def push(_: int) -> None:
        raise UnicodeError("half")

    bad.text.push = push  # type: ignore[method-assign]
    run(generator)
    assert bad.error == "UnicodeError: half"
    assert good.answer == alone(good.request, ENGINES["compiled"])


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (Request("", Parameters()), 422, "has no tokens"),
        (Request("a" * 150, Parameters(max_new_tokens=11)), 422, "150 tokens; with max_new_tokens 11 that exceeds"),
        (Request("a" * 160, Parameters()), 422, "no place for an answer in n_positions 160"),
        (Request("a" * 70000, Parameters()), 422, "70000 bytes"),
        (Request("", Parameters(), token_ids=(1, 99)), 422, "not below 11"),
        (Request("a", Parameters(logit_bias=((99, 1.0),))), 422, "not below 11"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_costs_anything(
    generator: Generator, request_: Request, status: int, said: str
) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        generator.submit((Request("ab", Parameters()), request_), 1e9)
    assert refused.value.status == status
    assert generator.idle, "all of a client's sequences or none"
    assert generator.scheduler.waiting == 0


def test_a_text_of_megabytes_is_not_tokenised(generator: Generator) -> None:
    class Never(Tokenizer):
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            raise AssertionError("tokenised")

    generator.engine.tokenizer = Never()
    with pytest.raises(RequestError, match="bytes"):
        generator.submit((Request("a" * 24_000_000, Parameters()),), 1e9)


def test_a_full_queue_says_so(generator: Generator) -> None:
    generator.queue = 2
    for _ in range(5):
        generator.submit((Request("abc", LONG),), 1e9)
    with pytest.raises(RequestError, match="wait for a place already") as refused:
        generator.submit((Request("abc", LONG),), 1e9)
    assert refused.value.status == 429


def test_an_absent_length_is_what_fits(generator: Generator) -> None:
    (job,) = generator.submit((Request("a" * 100, Parameters(ignore_eos=True)),), 1e9)
    run(generator)
    assert job.answer is not None
    assert (job.answer.finish_reason, job.answer.generated_tokens) == ("length", 60)


def test_log_probabilities_of_the_prompt_are_those_of_its_own_tokens(generator: Generator) -> None:
    (job,) = generator.submit((Request("abca", Parameters(max_new_tokens=1, logprobs=1, prompt_logprobs=True)),), 1e9)
    run(generator)
    assert job.answer is not None
    found = job.answer.prompt_logprobs
    assert [x.text for x in found] == list("abca")
    assert found[0].logprob is None
    row = logits([0, 1]).astype(float)
    assert found[2].logprob == pytest.approx(row[2] - np.log(np.exp(row).sum()), abs=1e-5)


def test_prompts_are_measured_together_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_module, "MEASURED", 10)
    engine = Hashing(ENGINES["chunked"])
    made = Generator(engine, Clock())
    ask = Parameters(max_new_tokens=1, prompt_logprobs=True)
    texts = ("abca", "abc", "abcabcabcabc")
    jobs = made.submit(tuple(Request(text, ask) for text in texts), 1e9)
    run(made)
    assert engine.measured == [2, 1]
    for text, job in zip(texts, jobs, strict=True):
        assert job.answer is not None
        assert [x.text for x in job.answer.prompt_logprobs] == list(text)


# --- the rolling batch ----------------------------------------------------------------------------


class Djl:
    """DJL's side of the protocol: who is active, in which order, and what each client has received."""

    def __init__(self, kind: str = "chunked", **given: float) -> None:
        self.clock = Clock()
        self.lines: list[str] = []
        self.engine = Hashing(ENGINES[kind])
        context = Context(n_positions=160, max_sequences=3, vocabulary=END + 1)
        self.batch = RollingBatch(
            Generator(self.engine, self.clock),
            lambda body, content_type, accept: parse(body, content_type, context, accept),
            Deadlines(given.get("answer", 55), given.get("stream", 450)),
            Metrics(self.clock, self.lines.append, self.lines.append),
        )
        self.active: list[int] = []
        self.new: list[tuple[int, Part]] = []
        self.frames: dict[int, list[Frame]] = {}

    def send(self, raw: bytes = b"", **body: object) -> int:
        number = len(self.frames)
        self.frames[number] = []
        headers = {"content-type": "application/json", "requestid": f"r{number}"}
        self.new.append((number, Part(raw or json.dumps(body).encode(), headers)))
        return number

    def step(self, stop: Stop | None = None) -> None:
        self.active += [number for number, _ in self.new]
        parts, self.new = [part for _, part in self.new], []
        frames = self.batch.step(len(self.active), parts, stop)
        assert len(frames) == len(self.active)
        for number, frame in zip(self.active, frames, strict=True):
            self.frames[number].append(frame)
        self.active = [n for n, frame in zip(self.active, frames, strict=True) if not frame.last]

    def run(self) -> None:
        for _ in range(3000):
            if not self.active and not self.new:
                return
            self.step()
        raise AssertionError("does not end")

    def body(self, number: int) -> bytes:
        return b"".join(frame.data for frame in self.frames[number])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(LETTERS, max_size=170), st.booleans(), st.integers(1, 8), st.integers(0, 4)),
        min_size=1,
        max_size=12,
    )
)
def test_every_request_gets_its_own_answer_whatever_joins_and_leaves(
    asked: list[tuple[str, bool, int, int]],
) -> None:
    djl = Djl()
    for text, stream, new, steps in asked:
        djl.send(inputs=text, parameters={"max_new_tokens": new}, stream=stream)
        for _ in range(steps):
            djl.step()
    djl.run()
    for number, (text, stream, new, _) in enumerate(asked):
        frames = djl.frames[number]
        assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
        last = frames[-1]
        if not text or len(text) + new > 160:
            assert (last.status, last.content_type) == (400 if not text else 422, "application/json")
            assert "\n" not in last.error
            continue
        assert last.data, "0.30 never ends a reply whose last frame is empty"
        assert sum(bool(frame.content_type) for frame in frames) == 1
        expected = alone(Request(text, Parameters(max_new_tokens=new)), ENGINES["compiled"])
        rows = [json.loads(line) for line in djl.body(number).splitlines()]
        assert rows[-1]["generated_text"] == expected.text
        if stream:
            assert "".join(row["token"]["text"] for row in rows) == expected.text
    assert djl.batch.known == 0
    assert len([line for line in djl.lines if line.startswith("request id=r")]) == len(asked)


def test_errors_before_the_first_data_have_a_status_and_later_ones_end_the_stream() -> None:
    djl = Djl()
    stream = djl.send(inputs="abc", parameters={"max_new_tokens": 30, "ignore_eos_token": True}, stream=True)
    other = djl.send(inputs="abd", parameters={"max_new_tokens": 30, "ignore_eos_token": True})
    for _ in range(4):
        djl.step()
    assert djl.body(stream)

    def breaks(_: Step) -> None:
        raise RuntimeError("nrt error")

    djl.engine.breaks = breaks
    wrong = djl.send(raw=b"{")
    djl.step()
    assert (djl.frames[wrong][-1].status, djl.frames[wrong][-1].last) == (400, True)
    assert (djl.frames[other][-1].status, djl.frames[other][-1].error) == (500, "RuntimeError: nrt error")
    end = djl.frames[stream][-1]
    assert (end.status, end.last) == (0, True)
    assert b"nrt error" in end.data
    djl.engine.breaks = lambda _: None
    again = djl.send(inputs="abc", parameters={"max_new_tokens": 3})
    djl.run()
    assert json.loads(djl.body(again))["generated_text"]


def test_streams_and_answers_have_their_own_deadlines() -> None:
    djl = Djl(answer=5, stream=20)
    ask = {"inputs": "abc", "parameters": {"max_new_tokens": 150, "ignore_eos_token": True, "details": True}}
    answer, stream = djl.send(**ask), djl.send(**ask, stream=True)
    ended = {}
    for second in range(30):
        djl.clock.now = second
        djl.step()
        for number in (answer, stream):
            if djl.frames[number][-1].last:
                ended.setdefault(number, second)
    assert ended == {answer: 5, stream: 20}
    assert json.loads(djl.body(answer))["details"]["finish_reason"] == "timeout"
    assert json.loads(djl.body(stream).splitlines()[-1])["details"]["finish_reason"] == "timeout"


def test_a_stop_answers_what_was_accepted_and_refuses_what_comes_later() -> None:
    djl = Djl()
    ask = {"inputs": "abc", "parameters": {"max_new_tokens": 150, "ignore_eos_token": True, "details": True}}
    before = djl.send(**ask)
    djl.step()
    djl.clock.now = 10.0
    stop = Stop(refuse_from=11.0, answer_by=30.0)
    on_its_way = djl.send(**ask)
    djl.step(stop)
    djl.clock.now = 12.0
    late = djl.send(**ask)
    djl.step(stop)
    assert djl.frames[late][-1].status == 503
    assert not djl.frames[before][-1].last
    djl.clock.now = 30.0
    djl.step(stop)
    for number in (before, on_its_way):
        assert json.loads(djl.body(number))["details"]["finish_reason"] == "timeout"


def test_a_reset_forgets_everyone_and_frees_their_slots() -> None:
    djl = Djl()
    for _ in range(5):
        djl.send(inputs="abc", parameters={"max_new_tokens": 50})
    djl.step()
    djl.batch.reset()
    djl.active = []
    assert djl.batch.generator.idle
    assert djl.batch.generator.scheduler.seated == 0
    with pytest.raises(ValueError, match="2 requests in the batch, 0 known and 1 new"):
        djl.batch.step(2, [Part(b"{}")])
    fresh = djl.send(inputs="abc", parameters={"max_new_tokens": 3})
    djl.run()
    assert json.loads(djl.body(fresh))["generated_text"]


def test_log_lines_and_totals_hold_numbers_and_no_text() -> None:
    djl = Djl()
    djl.send(inputs="abcabc", parameters={"max_new_tokens": 4, "ignore_eos_token": True})
    djl.send(inputs="ab", parameters={"max_new_tokens": 400})
    for second in range(8):
        djl.clock.now = second / 10
        if djl.active or djl.new:
            djl.step()
    refused, answered = djl.lines
    assert answered == (
        "request id=r0 status=200 finish=length stream=false prompt_tokens=6 generated_tokens=4 total_ms=300.0 "
        "queue_ms=0.0 ttft_ms=0.0 itl_ms=100.0"
    )
    assert refused.startswith("request id=r1 status=422 finish=- ")
    djl.batch.metrics.flush(now=True)
    embedded = json.loads(djl.lines[-1])
    assert embedded["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "NeuronHarness/Serving"
    names = {m["Name"] for m in embedded["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert names == set(embedded) - {"_aws"}
    assert (embedded["InterTokenLatency"], embedded["Requests"], embedded["Errors"]) == ([100.0], 2, 1)
    text = djl.batch.metrics.text()
    worker = f'worker="{os.getpid()}"'
    assert f'serve_requests_total{{{worker},status="200"}} 1' in text
    assert f"serve_generated_tokens_total{{{worker}}} 4" in text
    assert f'serve_inter_token_latency_seconds_bucket{{{worker},le="0.25"}} 1' in text
