"""Which sequence sits in which slot, and what the next graph execution is sent. Pure policy: no torch, no text model.

Static shapes: a device holds `slots` sequences at once; a prompt enters through a context graph of its bucket, every
further token through the token graph, which runs all slots. One step is one execution; between two steps sequences
may be submitted and released, which is what continuous batching across requests needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

SMALLEST_BUCKET = 128
"""The smallest that transformers-neuronx itself chooses."""


@dataclass(frozen=True)
class Shapes:
    """The static shapes that are compiled: one context graph and one token graph per bucket."""

    slots: int
    token_buckets: tuple[int, ...]
    context_buckets: tuple[int, ...]

    @property
    def n_positions(self) -> int:
        """Tokens of prompt and answer together."""
        return self.token_buckets[-1]


def shapes(n_positions: int, max_batch_size: int) -> Shapes:
    """Doubling buckets up to n_positions, for prompts and for answers.

    At least two slots: transformers-neuronx 0.12 cannot build the context graph of a single shared slot.
    """
    sizes = [n_positions]
    size = SMALLEST_BUCKET
    while size < n_positions:
        sizes.append(size)
        size *= 2
    buckets = tuple(sorted(sizes))
    return Shapes(max(2, max_batch_size), buckets, buckets)


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated to it. `slot` is None while it waits and after its release."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    slot: int | None = None
    generated: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def last(self) -> int:
        return self.generated[-1] if self.generated else self.prompt[-1]


@dataclass(frozen=True)
class Step:
    """One graph execution: the rows of input_ids, cache_ids and start_ids, and whose they are."""

    kind: str
    """prefill or decode."""
    bucket: int
    ids: list[list[int]]
    cache_ids: list[list[int]]
    start_ids: list[int]
    sequences: list[Sequence]


class Scheduler:
    """First come, first served; the lowest free slot; a prompt is let in before the others go on.

    What is sent keeps to what transformers-neuronx 0.12 does with it (tests/tnx/table.json):
    - A prompt goes alone and at its own length: the library pads right to the bucket, and takes the last token's
      place from the largest cache id. Several prompts in one call would run one after the other all the same.
    - A decode step names every seated sequence: the token graph runs all slots, and one that is not named gets
      token 0 written at its position 0.
    - Its rows are in order of slots: with every slot named, the library returns them in that order whatever
      start_ids says.
    - A prompt of one token enters by a decode step: the library takes any call of width 1 for one.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._waiting: deque[Sequence] = deque()
        self._seated: dict[int, Sequence] = {}

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ValueError if it can never fit."""
        if not sequence.prompt or sequence.max_new_tokens < 1:
            raise ValueError("a sequence needs a token to start from and one to generate")
        if len(sequence.prompt) + sequence.max_new_tokens > self.shapes.n_positions:
            raise ValueError(f"{len(sequence.prompt)} + {sequence.max_new_tokens} tokens exceed n_positions")
        self._waiting.append(sequence)

    def step(self) -> Step | None:
        """What to execute next, or None if nothing is to be done. Its tokens go to `advance` before the next call."""
        while self._waiting and len(self._seated) < self.shapes.slots:
            sequence = self._waiting.popleft()
            sequence.slot = next(i for i in range(self.shapes.slots) if i not in self._seated)
            self._seated[sequence.slot] = sequence
            if len(sequence.prompt) > 1:
                return self._prefill(sequence, sequence.slot)
        return self._decode() if self._seated else None

    def _prefill(self, sequence: Sequence, slot: int) -> Step:
        size = len(sequence.prompt)
        bucket = fit(self.shapes.context_buckets, size)
        return Step("prefill", bucket, [list(sequence.prompt)], [list(range(size))], [slot], [sequence])

    def _decode(self) -> Step:
        slots = sorted(self._seated)
        rows = [self._seated[i] for i in slots]
        places = [[s.length - 1] for s in rows]
        bucket = fit(self.shapes.token_buckets, max(s.length for s in rows))
        return Step("decode", bucket, [[s.last] for s in rows], places, slots, rows)

    def advance(self, step: Step, tokens: Items[int]) -> None:
        """Take the tokens that were chosen after `step`, one for each of its rows."""
        if len(tokens) != len(step.sequences):
            raise ValueError(f"{len(tokens)} tokens for {len(step.sequences)} sequences")
        for sequence, token in zip(step.sequences, tokens):  # noqa: B905 (3.10: checked above)
            sequence.generated.append(token)

    def release(self, sequence: Sequence) -> None:
        """Free the slot, or leave the queue; releasing twice is once. The slot's memory needs no cleaning."""
        if sequence.slot is not None:
            del self._seated[sequence.slot]
            sequence.slot = None
        elif sequence in self._waiting:
            self._waiting.remove(sequence)


def fit(buckets: tuple[int, ...], size: int) -> int:
    """The smallest bucket that holds `size` tokens. Raises ValueError if none does."""
    for bucket in buckets:
        if bucket >= size:
            return bucket
    raise ValueError(f"{size} tokens; the largest bucket is {buckets[-1]}")


def cut(text: str, stops: Items[str]) -> str | None:
    """`text` up to the first of the stop strings in it; None if it holds none."""
    found = [i for i in (text.find(s) for s in stops) if i >= 0]
    return text[: min(found)] if found else None


def settled(text: str, stops: Items[str]) -> str:
    """What of an unfinished text may be shown: not the start of a stop string, not half a character."""
    text = text.rstrip("\ufffd")
    held = max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held].rstrip("\ufffd")
