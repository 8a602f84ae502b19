"""Which sequence sits in which slot, and what the next step computes. Pure policy: no torch, no text, no clock.

An engine holds `slots` sequences at once. A step is one call of it: the next token of running sequences, tokens of
prompts that are being read, or both where the engine can. Between two steps sequences may be submitted and released,
which is what continuous batching needs. How an engine wants to be called is in its Shapes; what a step costs is
learnt from the seconds that the caller reports, so that the same scheduler runs in a simulation.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import count

SMALLEST_BUCKET = 128
"""The smallest that transformers-neuronx itself chooses."""
STALL = 2.0
"""How much longer than a decode step a step may become by the prompts read in it, in decode steps: a stream's next
token then comes within three ordinary steps, which a reader does not notice."""
SMALLEST_CHUNK = 64
"""Prompt tokens that are read in a step however tight the budget is: otherwise what a step costs with nothing in it
would soon be most of it."""
TELLING = 128
"""Prompt tokens of a step from which the cost of one is learnt. Small steps would make tokens look dear, dear tokens
make steps smaller."""
OVERTAKE = 4.0
"""A prompt lets shorter ones pass that come within this many times its own reading time: short questions do not wait
for long documents, and since the bound is a time of arrival, nobody waits for ever."""


@dataclass(frozen=True)
class Shapes:
    """How an engine is called: static shapes where they are compiled, limits elsewhere."""

    slots: int
    token_buckets: tuple[int, ...]
    context_buckets: tuple[int, ...]
    chunk: int = 0
    """The most prompt tokens of a step of an engine that reads several prompts, or parts of them, beside running
    sequences. 0: a prompt is read whole, in a step of its own."""
    shortest: int = 1
    """A prompt of fewer tokens is read token by token, by decode steps."""

    @property
    def n_positions(self) -> int:
        """Tokens of prompt and answer together."""
        return self.token_buckets[-1]


def shapes(n_positions: int, max_batch_size: int) -> Shapes:
    """Doubling buckets up to n_positions, for prompts and for answers, as engine `neuron` compiles them.

    At least two slots: transformers-neuronx 0.12 cannot build the context graph of a single shared slot. A prompt of
    one token is read by a decode step: it takes any call of width 1 for one.
    """
    sizes = [n_positions]
    size = SMALLEST_BUCKET
    while size < n_positions:
        sizes.append(size)
        size *= 2
    buckets = tuple(sorted(sizes))
    return Shapes(max(2, max_batch_size), buckets, buckets, shortest=2)


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated to it. `slot` is None while it waits and after its release."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    slot: int | None = None
    generated: list[int] = field(default_factory=list)
    filled: int = 0
    """How many of its tokens the engine has read into the slot."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def running(self) -> bool:
        """All but its newest token is read, so that one more gives the next."""
        return self.filled >= self.length - 1 and bool(self.generated)

    def tokens(self, start: int, end: int) -> list[int]:
        """Its tokens [start, end), of prompt and answer."""
        cut = len(self.prompt)
        if end <= cut:
            return list(self.prompt[start:end])
        return [*self.prompt[start:], *self.generated[max(0, start - cut) : end - cut]]


@dataclass(frozen=True)
class Row:
    """What a step reads of one sequence: `tokens` at positions `start`, `start` + 1, …; logits if `sampled`."""

    sequence: Sequence
    slot: int
    start: int
    tokens: list[int]
    sampled: bool

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Step:
    """One call of the engine; rows in order of slots."""

    kind: str
    """decode: one token a row; prefill: prompts or parts of them; mixed: both."""
    bucket: int
    """The smallest bucket that holds every row's end (of context_buckets in a prefill, else of token_buckets)."""
    rows: list[Row]
    prompt_tokens: int
    """How many prompt tokens are read; what a step costs beyond a decode step grows with them."""

    @property
    def sampled(self) -> list[Sequence]:
        """Whose next token is chosen after the step, in the order of the engine's logits."""
        return [row.sequence for row in self.rows if row.sampled]


@dataclass
class Costs:
    """Seconds of a decode step and of a prompt token, as running means; 0.0 while unknown."""

    decode: float = 0.0
    token: float = 0.0

    def learn(self, step: Step, seconds: float) -> None:
        if step.kind == "decode":
            self.decode = _mean(self.decode, seconds)
            return
        beyond = max(seconds - (self.decode if step.kind == "mixed" else 0.0), 0.0)
        if step.prompt_tokens >= TELLING or not self.token:
            self.token = _mean(self.token, beyond / max(step.prompt_tokens, 1))


def _mean(old: float, new: float) -> float:
    return new if not old else 0.8 * old + 0.2 * new  # about the last ten


class Scheduler:
    """Slots, the queue before them, and what comes next.

    - The lowest free slot is taken: fewer slots in use mean smaller tensors.
    - The queue is in order of arrival, but see OVERTAKE.
    - While sequences run, prompts are read only as far as the budget of STALL allows; at least a chunk, or a whole
      prompt where the engine cannot do less, between two decode steps.
    - A decode step names every running sequence: on engine `neuron` the token graph runs all slots, and one that is
      not named gets token 0 written at its position 0 (tests/tnx/table.json).
    """

    def __init__(self, shapes: Shapes, stall: float = STALL, overtake: float = OVERTAKE) -> None:
        self.shapes, self.stall, self.overtake = shapes, stall, overtake
        self.costs = Costs()
        self._waiting: list[tuple[float, int, Sequence]] = []  # a heap: rank, number of arrival
        self._arrivals = count()
        self._gone: set[Sequence] = set()  # released while they waited; they leave the heap when it is their turn
        self._seated: dict[int, Sequence] = {}
        self._free = list(range(shapes.slots))
        self._stalled = 0.0  # seconds since the last token of the running sequences

    @property
    def waiting(self) -> int:
        return len(self._waiting) - len(self._gone)

    @property
    def seated(self) -> int:
        return len(self._seated)

    def submit(self, sequence: Sequence, now: float = 0.0) -> None:
        """Queue a sequence that arrived at `now` seconds. Raises ValueError if it can never fit."""
        if not sequence.prompt or sequence.max_new_tokens < 1:
            raise ValueError("a sequence needs a token to start from and one to generate")
        if len(sequence.prompt) + sequence.max_new_tokens > self.shapes.n_positions:
            raise ValueError(f"{len(sequence.prompt)} + {sequence.max_new_tokens} tokens exceed n_positions")
        rank = now + self.overtake * self.costs.token * len(sequence.prompt)
        heapq.heappush(self._waiting, (rank, next(self._arrivals), sequence))

    def step(self) -> Step | None:
        """What to compute next, or None if nothing is to be done. It goes to `advance` before the next call."""
        self._seat()
        running = [s for _, s in sorted(self._seated.items()) if s.running]
        reading = [s for s in self._seated.values() if not s.running]  # in the order in which they were seated
        if not reading:
            return self._made("decode", [_next(s) for s in running]) if running else None
        if self.shapes.chunk:
            return self._mixed(running, reading)
        return self._apart(running, reading)

    def _seat(self) -> None:
        while self._waiting and self._free:
            sequence = heapq.heappop(self._waiting)[2]
            if sequence in self._gone:
                self._gone.remove(sequence)
                continue
            sequence.slot = heapq.heappop(self._free)
            self._seated[sequence.slot] = sequence

    def _mixed(self, running: list[Sequence], reading: list[Sequence]) -> Step:
        """A token for everyone who runs, and as much of the prompts as may be read meanwhile."""
        left = self._chunk(bool(running))
        rows = [_next(s) for s in running]
        for sequence in reading:
            if left <= 0:
                break
            size = min(len(sequence.prompt) - sequence.filled, left)
            rows.append(_part(sequence, size))
            left -= size
        rows.sort(key=lambda row: row.slot)
        return self._made("mixed" if running else "prefill", rows)

    def _chunk(self, stalls: bool) -> int:
        if not stalls or not (self.costs.token and self.costs.decode):
            return self.shapes.chunk
        fits = int(self.stall * self.costs.decode / self.costs.token)
        return min(max(SMALLEST_CHUNK, fits), self.shapes.chunk)

    def _apart(self, running: list[Sequence], reading: list[Sequence]) -> Step:
        """A whole prompt, or a decode step when the running sequences have waited long enough for one."""
        short = [s for s in reading if len(s.prompt) < self.shapes.shortest]
        whole = [s for s in reading if len(s.prompt) >= self.shapes.shortest]
        if whole:
            ahead = self.costs.token * len(whole[0].prompt)
            allowed = self.stall * self.costs.decode
            if not running or not self._stalled or self._stalled + ahead <= allowed:
                return self._made("prefill", [_part(whole[0], len(whole[0].prompt))])
        rows = [_next(s) for s in running] + [_part(s, 1) for s in short]
        return self._made("decode", sorted(rows, key=lambda row: row.slot))

    def _made(self, kind: str, rows: list[Row]) -> Step:
        buckets = self.shapes.context_buckets if kind == "prefill" else self.shapes.token_buckets
        read = 0 if kind == "decode" else sum(len(row.tokens) for row in rows if not row.sequence.running)
        return Step(kind, fit(buckets, max(row.end for row in rows)), rows, read)

    def advance(self, step: Step, tokens: Items[int], seconds: float = 0.0) -> None:
        """Take the tokens that were chosen after `step`, one for each of `step.sampled`, and what the step took.

        A sequence that was released meanwhile is let pass.
        """
        if len(tokens) != len(step.sampled):
            raise ValueError(f"{len(tokens)} tokens for {len(step.sampled)} sequences")
        if seconds:
            self.costs.learn(step, seconds)
        # At least a little, so that the second prompt in a row is weighed against the budget.
        self._stalled = self._stalled + max(seconds, 1e-9) if step.kind == "prefill" else 0.0
        for row in step.rows:
            row.sequence.filled = row.end
        for sequence, token in zip(step.sampled, tokens):  # noqa: B905 (3.10: checked above)
            sequence.generated.append(token)

    def release(self, sequence: Sequence) -> None:
        """Free the slot, or leave the queue; releasing twice is once. The slot's memory needs no cleaning."""
        if sequence.slot is not None:
            del self._seated[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            sequence.slot = None
        elif sequence not in self._gone and any(s is sequence for _, _, s in self._waiting):
            self._gone.add(sequence)


def _next(sequence: Sequence) -> Row:
    assert sequence.slot is not None
    return Row(sequence, sequence.slot, sequence.filled, sequence.tokens(sequence.filled, sequence.length), True)


def _part(sequence: Sequence, size: int) -> Row:
    assert sequence.slot is not None
    start = sequence.filled
    sampled = start + size == len(sequence.prompt)
    return Row(sequence, sequence.slot, start, sequence.tokens(start, start + size), sampled)


def fit(buckets: tuple[int, ...], size: int) -> int:
    """The smallest bucket that holds `size` tokens. Raises ValueError if none does."""
    for bucket in buckets:
        if bucket >= size:
            return bucket
    raise ValueError(f"{size} tokens; the largest bucket is {buckets[-1]}")
