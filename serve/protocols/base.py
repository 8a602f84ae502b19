"""What every protocol offers the handler: a body is parsed into Requests once, and renders what became of them.

No torch, no transformers: what parsing needs of the model comes in a Context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from serve.request import Answer, Piece, Request

JSON = "application/json"
JSON_LINES = "application/jsonlines"
EVENT_STREAM = "text/event-stream"

# A body holds at most this many bytes per token that could be answered together, plus what JSON adds around the
# prompts. English has 4 bytes a token, and an escaped character at most 12; so this refuses only what cannot be met.
BODY_BYTES_PER_TOKEN = 64
BODY_BYTES_AROUND = 1024 * 1024
# The longest token of the common vocabularies: a run of 128 spaces in Llama 3's.
LONGEST_TOKEN = 128


@dataclass(frozen=True)
class Context:
    """What parsing needs to know of the model and the endpoint; made once, at start."""

    n_positions: int
    """Tokens of prompt and answer together."""
    max_sequences: int
    """Sequences that one request may ask for: prompts times `n`."""
    vocabulary: int
    """Token ids are below this."""
    chat_template: Callable[[Sequence[Mapping[str, str]]], str] | None = None
    """Messages (role, content) to the prompt with its special tokens, the assistant's turn opened; None: the model
    has no template. What it raises becomes a 422: templates refuse, for instance, roles that do not alternate."""
    decode: Callable[[Sequence[int]], str] | None = None
    """Token ids to text, for `echo` of a prompt that was given as ids."""
    prompt_logprobs: str = ""
    """Empty: the engine computes them. Otherwise why not, in a sentence that the client gets."""
    model_name: str = "model"
    """Answers carry it where the request names none."""
    longest_token: int = LONGEST_TOKEN
    """Bytes of the vocabulary's longest token: a prompt of more than n_positions times this cannot fit."""
    tgi_compat: bool = False
    """LMI's option of that name: answers are lists, streams are events, as TGI's clients expect."""

    @property
    def max_prompt_bytes(self) -> int:
        """A longer prompt is refused without tokenising it, which takes a second per 2 MB and holds up everyone."""
        return self.n_positions * self.longest_token

    @property
    def max_body_bytes(self) -> int:
        """A longer body is refused unread."""
        return BODY_BYTES_AROUND + BODY_BYTES_PER_TOKEN * self.n_positions * self.max_sequences


class Parsed(ABC):
    """One request of a client, understood, and the form of its answer.

    Either `render` is called once with all answers, in the order of `requests`; or, if `stream`, `stream_piece` as
    pieces come and `stream_end` once per sequence, in any order between sequences; the last `stream_end` also ends
    the stream (usage, [DONE]). `stream_error` ends a stream whose status is sent already. It keeps the state of its
    stream: one object per request. What is refused before the first byte has DJL's form in every protocol, since a
    rolling batch's errors have no other (decision 002); `harness proxy` gives OpenAI's clients OpenAI's.
    """

    requests: tuple[Request, ...]
    stream: bool
    content_type: str
    """Of `render`, or of the stream."""

    @abstractmethod
    def render(self, answers: Sequence[Answer]) -> bytes:
        """The whole body; never empty."""

    @abstractmethod
    def stream_piece(self, index: int, piece: Piece) -> bytes:
        """What to send for a piece of sequence `index`; empty if that is nothing."""

    @abstractmethod
    def stream_end(self, index: int, answer: Answer, piece: Piece = Piece("")) -> bytes:  # noqa: B008 (frozen)
        """The end of sequence `index`, `piece` being what was not sent of it yet; never empty."""

    @abstractmethod
    def stream_error(self, status: int, message: str) -> bytes:
        """The last thing sent in a stream that failed; never empty."""
