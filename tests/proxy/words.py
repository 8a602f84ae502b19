"""An endpoint's handler with the real protocols and, for a model, one that repeats the prompt's words backwards.

As DJL Serving answers: `{"error", "code"}` where it refuses; a stream's failure inside the stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from serve.protocols import Context, Parsed, RequestError, parse
from serve.request import Answer, Piece, Request, TokenLogprob

CONTEXT = Context(
    n_positions=256,
    max_sequences=8,
    vocabulary=1000,
    chat_template=lambda messages: " ".join(f"{m['role']}: {m['content']}" for m in messages),
    decode=lambda ids: "".join(f" t{i}" for i in ids),
)


@dataclass
class Reply:
    status: int
    content_type: str
    body: Iterator[bytes]


def answer(body: bytes, content_type: str, accept: str = "", pause: float = 0.0) -> Reply:
    """What the endpoint answers, as it comes; `pause` seconds before each token of a stream."""
    try:
        parsed = parse(body, content_type, CONTEXT, accept)
    except RequestError as error:
        text = json.dumps({"error": str(error), "code": error.status}).encode()
        return Reply(error.status, "application/json", iter([text]))
    if parsed.stream:
        return Reply(200, parsed.content_type, _stream(parsed, pause))
    answers = [_answer(request, list(_words(request))) for request in parsed.requests]
    return Reply(200, parsed.content_type, iter([parsed.render(answers)]))


def _stream(parsed: Parsed, pause: float) -> Iterator[bytes]:
    for index, request in enumerate(parsed.requests):
        tokens = list(_words(request))
        for token in tokens:
            time.sleep(pause)
            logprobs = (token,) if request.parameters.logprobs is not None else ()
            yield parsed.stream_piece(index, Piece(token.text, (token.token_id,), logprobs))
            if token.text == " break":
                yield parsed.stream_error(500, "the engine broke: as asked")
                return
        yield parsed.stream_end(index, _answer(request, tokens))


def _words(request: Request) -> Iterator[TokenLogprob]:
    words = (request.text or CONTEXT.decode(request.token_ids)).split()  # type: ignore[misc]
    limit = request.parameters.max_new_tokens or len(words)
    for i, word in enumerate(reversed(words[-limit:])):
        if word in request.parameters.stop:
            return
        top = tuple((n, f" {'x' * n}", -1.0 - n) for n in range(request.parameters.logprobs or 0))
        yield TokenLogprob(i, f" {word}", -0.5, top)


def _answer(request: Request, tokens: list[TokenLogprob]) -> Answer:
    words = (request.text or CONTEXT.decode(request.token_ids)).split()  # type: ignore[misc]
    parameters = request.parameters
    ended = "length" if len(tokens) == parameters.max_new_tokens else "eos_token"
    if any(word in parameters.stop for word in words):
        ended = "stop_sequence"
    prompt = [TokenLogprob(i, f" {w}" if i else w, -0.25 if i else None) for i, w in enumerate(words)]
    return Answer(
        "".join(t.text for t in tokens),
        ended,
        len(words),
        len(tokens),
        tuple(tokens) if parameters.logprobs is not None else (),
        tuple(prompt) if parameters.prompt_logprobs else (),
    )
