"""DJL's rolling batch without DJL: what each call hands over, and the frame that answers each of its requests.

DJL calls once a step with all active requests. Only a new one carries its body; the others are known by their place,
since DJL keeps the order, takes out those whose frame said `last`, and appends (docs/decisions/002).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from containers.drain import Stop
from serve.generator import Generator, Job
from serve.metrics import Finished, Metrics
from serve.protocols import Parsed, RequestError
from serve.request import Answer, Piece

Parse = Callable[[bytes, str, str], Parsed]
"""(body, content type, accept) -> Parsed; raises RequestError."""


@dataclass(frozen=True)
class Part:
    """A request in its first step; later ones say nothing."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """With lower-case names."""


@dataclass(frozen=True)
class Frame:
    """What a step says to one request. Without data and not last: wait. `status` with `error`: refused."""

    data: bytes = b""
    last: bool = False
    content_type: str = ""
    """Only with the first data."""
    status: int = 0
    error: str = ""


WAIT = Frame()


@dataclass(eq=False)
class _Exchange:
    """One client's request while it is in the batch."""

    request_id: str
    arrived: float
    parsed: Parsed | None = None
    jobs: list[Job] = field(default_factory=list)
    refused: RequestError | None = None
    begun: bool = False
    """Whether data was sent, after which a status cannot be told any more."""
    ended: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Deadlines:
    """Seconds for an answer that does not stream, and for a stream."""

    answer: float
    stream: float


class RollingBatch:
    """The requests that DJL believes to be active, in its order."""

    def __init__(self, generator: Generator, parse: Parse, deadlines: Deadlines, metrics: Metrics) -> None:
        self.generator, self.parse, self.deadlines, self.metrics = generator, parse, deadlines, metrics
        self.active: list[_Exchange] = []

    @property
    def known(self) -> int:
        """How many requests of the next call come without a body."""
        return len(self.active)

    def reset(self) -> None:
        """DJL has ended all active requests after a failed call."""
        for exchange in self.active:
            self._drop(exchange)
        self.active = []

    def step(self, size: int, new: Sequence[Part], stop: Stop | None = None) -> list[Frame]:
        """One call with `size` requests, the last of which are `new`: a step of the engine, and a frame for each.

        Raises ValueError where DJL has forgotten requests, which would give answers to the wrong clients.
        """
        if size != len(self.active) + len(new):
            raise ValueError(f"{size} requests in the batch, {len(self.active)} known and {len(new)} new")
        self.active += [self._open(part, stop) for part in new]
        if stop is not None:
            for job in self.generator.jobs.values():
                job.deadline = min(job.deadline, stop.answer_by)
        self.generator.step()
        scheduler = self.generator.scheduler
        self.metrics.seen(scheduler.seated, scheduler.shapes.slots, scheduler.waiting)
        frames = [self._guarded(exchange) for exchange in self.active]
        self.active = [e for e, frame in zip(self.active, frames) if not frame.last]  # noqa: B905 (3.10)
        return frames

    def _open(self, part: Part, stop: Stop | None) -> _Exchange:
        now = self.generator.clock()
        exchange = _Exchange(part.headers.get("requestid", ""), now)
        try:
            if stop is not None and now > stop.refuse_from:
                raise RequestError(503, "this server is being stopped; send the request again")
            parsed = self.parse(part.body, part.headers.get("content-type", ""), part.headers.get("accept", ""))
            limit = self.deadlines.stream if parsed.stream else self.deadlines.answer
            exchange.parsed = parsed
            exchange.jobs = self.generator.submit(parsed.requests, now + limit)
        except RequestError as error:
            exchange.refused = error
        except Exception as error:  # noqa: BLE001 (the client gets one line; the log gets the traceback)
            traceback.print_exc()
            exchange.refused = RequestError(500, f"{type(error).__name__}: {error}")
        return exchange

    def _guarded(self, exchange: _Exchange) -> Frame:
        """The exchange's frame; a mistake of ours in it must not end the others, as an exception in a step would."""
        try:
            frame = self._frame(exchange)
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            self._drop(exchange)
            exchange.refused = RequestError(500, f"{type(error).__name__}: {error}")
            frame = self._refusal(exchange)
        exchange.begun = exchange.begun or bool(frame.data)
        if frame.last:
            self.metrics.finished(self._summary(exchange, frame))
        return frame

    def _frame(self, exchange: _Exchange) -> Frame:
        failed = next((job.error for job in exchange.jobs if job.error), "")
        if failed:
            self._drop(exchange)
            exchange.refused = RequestError(500, failed)
        if exchange.refused is not None or exchange.parsed is None:
            return self._refusal(exchange)
        answer = self._streamed if exchange.parsed.stream else self._whole
        return answer(exchange, exchange.parsed)

    def _whole(self, exchange: _Exchange, parsed: Parsed) -> Frame:
        answers = [job.answer for job in exchange.jobs if job.answer is not None]
        if len(answers) < len(exchange.jobs):
            return WAIT
        return Frame(parsed.render(answers), True, parsed.content_type)

    def _streamed(self, exchange: _Exchange, parsed: Parsed) -> Frame:
        data = b""
        for index, job in enumerate(exchange.jobs):
            if index in exchange.ended:
                continue
            *pieces, final = [*job.pieces, None] if job.answer is None else job.pieces or [Piece("")]
            job.pieces = []
            data += b"".join(parsed.stream_piece(index, piece) for piece in pieces if piece is not None)
            if job.answer is not None:
                data += parsed.stream_end(index, job.answer, final or Piece(""))
                exchange.ended.add(index)
        last = len(exchange.ended) == len(exchange.jobs)
        return Frame(data, last, parsed.content_type if data and not exchange.begun else "")

    def _refusal(self, exchange: _Exchange) -> Frame:
        """Before the first data a status; after it, the protocol's own way to say that a stream failed."""
        assert exchange.refused is not None
        status, message = exchange.refused.status, str(exchange.refused)
        if exchange.begun and exchange.parsed is not None:
            return Frame(exchange.parsed.stream_error(status, message), True)
        return Frame(b"", True, "application/json", status, message)

    def _drop(self, exchange: _Exchange) -> None:
        for job in exchange.jobs:
            self.generator.cancel(job)

    def _summary(self, exchange: _Exchange, frame: Frame) -> Finished:
        jobs = exchange.jobs
        answers: list[Answer] = [job.answer for job in jobs if job.answer is not None]
        firsts = [job.first_token for job in jobs if job.first_token is not None]
        begun = [job.begun for job in jobs if job.begun is not None]
        between = [
            (job.last_token - job.first_token) / (len(job.sequence.generated) - 1)
            for job in jobs
            if job.first_token is not None and job.last_token is not None and len(job.sequence.generated) > 1
        ]
        return Finished(
            exchange.request_id,
            exchange.refused.status if exchange.refused is not None else 200,
            tuple(answer.finish_reason for answer in answers),
            bool(exchange.parsed and exchange.parsed.stream),
            sum(len(job.sequence.prompt) for job in jobs),
            sum(len(job.sequence.generated) for job in jobs),
            self.generator.clock() - exchange.arrived,
            min(begun) - exchange.arrived if begun else None,
            min(firsts) - exchange.arrived if firsts else None,
            sum(between) / len(between) if between else None,
        )
