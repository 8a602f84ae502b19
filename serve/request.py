"""What a protocol hands to the scheduler, and what it gets back. Inert data: no protocol and no engine in it.

A protocol (serve/protocols/) parses a body into Requests, one per sequence to generate, and renders Pieces and
Answers. The scheduler and the engines see nothing of HTTP or JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

# Why an answer ended, by TGI's names where it has one; "timeout" is ours: the request's deadline passed.
FINISH_REASONS = ("eos_token", "stop_sequence", "length", "timeout", "error")


@dataclass(frozen=True)
class Parameters:
    """How one sequence is generated. None means: what the model's generation_config says, else what fits."""

    max_new_tokens: int | None = None
    """None: as many as fit into n_positions."""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """0: no limit."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    """Divides (positive) or multiplies (negative) logits of tokens in prompt and answer; 1.0: none."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    """Go on after an end token, for load tests that want a fixed length."""
    logprobs: int | None = None
    """None: none; n: the chosen token's and those of the n most likely."""
    prompt_logprobs: bool = False
    """Also those of the prompt's tokens, as `echo` with `logprobs` asks for."""


@dataclass(frozen=True)
class Request:
    """One sequence to generate: a text, or token ids as OpenAI's completions take them (then `text` is empty)."""

    text: str
    parameters: Parameters
    token_ids: tuple[int, ...] = ()
    add_special_tokens: bool = True
    """False where a chat template has put them in already."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log probability (natural logarithm) and the most likely ones in its place, best first."""

    token_id: int
    text: str
    logprob: float | None
    """None for a prompt's first token, which nothing predicts."""
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer: text that will not be taken back, and the tokens since the last piece."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A finished sequence."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
