"""From requests to answers: an engine, the scheduler, the choice of tokens and their text, step by step.

Each request has a deadline and fails alone. Nothing here knows a protocol or DJL; the clock is handed in.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from serve import sampling
from serve.engines import Engine
from serve.protocols.errors import RequestError
from serve.request import Answer, Piece, Request, TokenLogprob
from serve.scheduler import Scheduler, Sequence
from serve.text import Text, decoder

MEASURED = 512
"""Tokens of prompts whose log probabilities are computed at once: more take no less time each, and a row of logits in
fp32 has the vocabulary's size."""
QUEUE = 256
"""Sequences that may wait for a slot. At 32 slots and a second an answer that is 8 s of waiting; more would only
time out."""


@dataclass(eq=False)
class Job:
    """One sequence on its way to an answer. `answer` is None while it goes on; `error` says why there is none."""

    request: Request
    sequence: Sequence
    sampler: sampling.Sampler
    text: Text
    arrived: float
    deadline: float
    """By the generator's clock, in seconds, as all times here."""
    answer: Answer | None = None
    error: str = ""
    begun: float | None = None
    """When the first step that reads its prompt began."""
    first_token: float | None = None
    last_token: float | None = None
    pieces: list[Piece] = field(default_factory=list)
    """What was added since somebody last emptied the list."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    _fresh_tokens: list[int] = field(default_factory=list)
    _fresh_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.answer is not None or bool(self.error)


class Generator:
    """Sequences that join and leave at any step. One thread calls it."""

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float] = monotonic,
        queue: int = QUEUE,
        scheduler: Scheduler | None = None,
    ) -> None:
        self.engine, self.clock, self.queue = engine, clock, queue
        self.scheduler = scheduler or Scheduler(engine.shapes)
        self.jobs: dict[Sequence, Job] = {}
        self._decode = decoder(engine.tokenizer)
        self._longest_token = longest_token(engine.tokenizer)

    def submit(self, requests: tuple[Request, ...], deadline: float) -> list[Job]:
        """Queue the sequences of one client; all of them or none.

        Raises RequestError: 422 for what does not fit or is not computed by this engine, 429 where the queue is full.
        """
        problems: list[str] = []
        now = self.clock()
        if self.scheduler.waiting + len(requests) > self.queue + self.engine.shapes.slots:
            raise RequestError(
                429,
                f"{self.scheduler.waiting} sequences wait for a place already, {self.queue} may; send it again later",
            )
        jobs = []
        for number, request in enumerate(requests):
            name = "the prompt" if len(requests) == 1 else f"inputs[{number}]"
            size = len(request.text.encode("utf-8", "replace"))
            most = self.engine.shapes.n_positions * self._longest_token
            if size > most:
                # Before tokenising, which takes minutes for a text of megabytes, and stops everyone meanwhile.
                problems.append(f"{name} has {size} bytes; no more than {most} can fit into n_positions")
                continue
            found = self._job(request, name, now, deadline, problems)
            if found is not None:
                jobs.append(found)
        if problems:
            raise RequestError(422, *problems)
        for job in jobs:
            self.scheduler.submit(job.sequence, now)
            self.jobs[job.sequence] = job
        return jobs

    def _job(self, request: Request, name: str, now: float, deadline: float, problems: list[str]) -> Job | None:
        p, limit = request.parameters, self.engine.shapes.n_positions
        prompt = request.token_ids or tuple(
            self.engine.tokenizer(request.text, add_special_tokens=request.add_special_tokens)["input_ids"]
        )
        before = len(problems)
        vocabulary = len(self.engine.tokenizer)
        if not prompt:
            problems.append(f"{name} has no tokens")
        elif p.max_new_tokens is None and len(prompt) >= limit:
            problems.append(f"{name} has {len(prompt)} tokens: no place for an answer in n_positions {limit}")
        elif p.max_new_tokens is not None and len(prompt) + p.max_new_tokens > limit:
            problems.append(
                f"{name} has {len(prompt)} tokens; with max_new_tokens {p.max_new_tokens} that exceeds "
                f"n_positions {limit}"
            )
        if any(not 0 <= t < vocabulary for t in (*request.token_ids, *(t for t, _ in p.logit_bias))):
            problems.append(f"{name}: a token id is not below {vocabulary}, the size of the vocabulary")
        if p.prompt_logprobs and not self.engine.prompt_logprobs:
            problems.append(f"{name}: log probabilities of the prompt need a graph that this engine does not compile")
        if len(problems) > before:
            return None
        new = limit - len(prompt) if p.max_new_tokens is None else p.max_new_tokens
        return Job(
            request,
            Sequence(prompt, new),
            sampling.Sampler(p, prompt, self.engine.repetition_penalty),
            Text(self._decode, p.stop),
            now,
            deadline,
        )

    @property
    def idle(self) -> bool:
        return not self.jobs

    def step(self) -> None:
        """End what is late, then compute one step. What came of it is in the jobs."""
        now = self.clock()
        for job in [j for j in self.jobs.values() if now >= j.deadline]:
            self._end(job, "timeout")
        step = self.scheduler.step()
        if step is None:
            return
        jobs = [self.jobs[sequence] for sequence in step.sampled]
        begun = self.clock()
        for row in step.rows:
            if not row.start:
                self.jobs[row.sequence].begun = begun
        try:
            logits = self.engine.forward(step)
            # Before the choice, which adjusts them.
            self._measure(jobs)
            raw = {i: logits[i].copy() for i, job in enumerate(jobs) if job.request.parameters.logprobs is not None}
            tokens = sampling.choose(logits, [job.sampler for job in jobs])
        except Exception as error:  # noqa: BLE001 (the step's sequences fail; the others go on)
            traceback.print_exc()
            for row in step.rows:
                self._fail(self.jobs[row.sequence], f"{type(error).__name__}: {error}")
            return
        ended = self.clock()
        self.scheduler.advance(step, tokens, ended - begun)
        for i, (job, token) in enumerate(zip(jobs, tokens)):  # noqa: B905 (3.10)
            job.first_token, job.last_token = ended if job.first_token is None else job.first_token, ended
            try:
                self._receive(job, token, raw.get(i))
            except Exception as error:  # noqa: BLE001 (one sequence's text must not end the others)
                traceback.print_exc()
                self._fail(job, f"{type(error).__name__}: {error}")

    def cancel(self, job: Job) -> None:
        """Free what a finished or abandoned job holds; twice is once."""
        self.jobs.pop(job.sequence, None)
        self.scheduler.release(job.sequence)

    def _measure(self, jobs: list[Job]) -> None:
        """The prompts' own log probabilities, when the first token is about to be chosen; many prompts at once."""
        asked = [job for job in jobs if job.request.parameters.prompt_logprobs and not job.prompt_logprobs]
        while asked:
            count = _together([len(job.sequence.prompt) for job in asked])
            some, asked = asked[:count], asked[count:]
            for job, rows in zip(some, self.engine.forward_all([job.sequence.prompt for job in some])):  # noqa: B905
                prompt, top = job.sequence.prompt, job.request.parameters.logprobs or 0
                job.prompt_logprobs = (
                    TokenLogprob(prompt[0], self._decode((prompt[0],)), None),
                    *(self._logprob(rows[i], token, top) for i, token in enumerate(prompt[1:])),
                )

    def _logprob(self, row: sampling.Logits, token: int, top: int) -> TokenLogprob:
        logprob, best = sampling.logprobs(row, token, top)
        return TokenLogprob(
            token, self._decode((token,)), logprob, tuple((t, self._decode((t,)), value) for t, value in best)
        )

    def _receive(self, job: Job, token: int, raw: sampling.Logits | None) -> None:
        """Add a chosen token to its job, which may end by it."""
        if token < 0:
            self._fail(job, "the model's logits are no numbers")
            return
        p = job.request.parameters
        job.sampler.accept(token)
        if raw is not None:
            found = self._logprob(raw, token, p.logprobs or 0)
            job.logprobs.append(found)
            job._fresh_logprobs.append(found)
        job._fresh_tokens.append(token)
        ended = token in self.engine.ends and not p.ignore_eos
        if not ended:
            job.text.push(token)
        if job.text.stopped:
            self._end(job, "stop_sequence")
        elif ended:
            self._end(job, "eos_token")
        elif len(job.sequence.generated) >= job.sequence.max_new_tokens:
            self._end(job, "length")
        else:
            self._show(job, last=False)

    def _show(self, job: Job, last: bool) -> None:
        text = job.text.take(last)
        if text or (last and job._fresh_tokens):
            job.pieces.append(Piece(text, tuple(job._fresh_tokens), tuple(job._fresh_logprobs)))
            job._fresh_tokens, job._fresh_logprobs = [], []

    def _end(self, job: Job, reason: str) -> None:
        job.text.finish()
        if job.text.stopped:
            reason = "stop_sequence"
        self._show(job, last=True)
        job.answer = Answer(
            job.text.text,
            reason,
            len(job.sequence.prompt),
            len(job.sequence.generated),
            tuple(job.logprobs),
            job.prompt_logprobs,
        )
        self.cancel(job)

    def _fail(self, job: Job, why: str) -> None:
        job.error = " ".join(why.split()) or "error"
        self.cancel(job)


def longest_token(tokenizer: object) -> int:
    """Bytes of the longest token: a text of n bytes has at least n divided by it tokens.

    A byte-level vocabulary writes each byte as a character, which UTF-8 gives one or two bytes: never fewer.
    """
    words = tokenizer.get_vocab()  # type: ignore[attr-defined]
    return max((len(word.encode("utf-8", "replace")) for word in words), default=1)


def _together(sizes: list[int]) -> int:
    """How many of the first are measured at once; one at least."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > MEASURED and count:
            return count
    return len(sizes)
