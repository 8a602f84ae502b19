"""The handler that DJL Serving calls: the only file that imports djl_python.

DJL executes this file up to three times while it looks for hooks, so importing it does nothing: the engine is
made by the first call, which DJL sends empty, with the options as properties.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from djl_python import Input, Output

from containers import drain
from serve import engines
from serve.options import ServeOptions, check_environment, from_properties
from serve.protocols import Context, Parsed, errors, parse
from serve.protocols.errors import RequestError
from serve.request import Answer, Parameters, Piece, Request


@lru_cache(maxsize=1)
def _engine(name: str, model_dir: str, options: ServeOptions) -> engines.Engine:
    return engines.load(name, Path(model_dir), options)


@lru_cache(maxsize=1)
def _state() -> dict[str, Any]:
    """What the INIT call said; later calls carry no options."""
    return {}


def handle(inputs: Input) -> Output | None:
    """DJL's entry point: None answers the INIT call, an Output everything else."""
    if inputs.is_empty():
        properties = inputs.get_properties()
        check_environment(os.environ)
        options = from_properties(properties)
        name = properties.get("serve_engine", "neuron")
        engine = _engine(name, properties["model_dir"], options)
        _state().update(engine=engine, context=_context(engine, options))
        print(f"handler ready: engine {name}, {options}", flush=True)
        return None
    if drain.stopping():
        return _json(503, errors.body(503, "this server is being stopped; send the request again"))
    try:
        with drain.in_progress():
            kind, accept = (inputs.get_property(name) or "" for name in ("Content-Type", "Accept"))
            return _answer(_state()["engine"], parse(inputs.get_as_bytes(), kind, _state()["context"], accept))
    except RequestError as error:
        return _json(error.status, errors.body(error.status, str(error)))
    except Exception as error:  # noqa: BLE001 (the client gets one line; the log gets the traceback)
        import traceback

        traceback.print_exc()
        return _json(500, errors.body(500, f"{type(error).__name__}: {error}".splitlines()[0]))


def _context(engine: Any, options: ServeOptions) -> Context:
    tokenizer = engine.tokenizer

    def template(messages: Any) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text).removeprefix(tokenizer.bos_token or "")  # these engines' encoding puts it there

    return Context(
        n_positions=options.n_positions,
        max_sequences=options.max_batch_size,
        vocabulary=len(tokenizer),
        tgi_compat=options.tgi_compat,
        chat_template=template if tokenizer.chat_template else None,
        prompt_logprobs="this engine does not compute log probabilities of prompts",
    )


def _answer(engine: engines.Engine, request: Parsed) -> Output:
    for one in request.requests:
        _check(one)
    if not request.stream:
        answers = [a for r in _groups(request.requests) for a in engine.generate(*_arguments(engine, r))]
        return _json(200, request.render(answers))
    if len(request.requests) > 1:
        raise RequestError(422, "this engine streams one answer at a time")
    (prompt,), parameters = _arguments(engine, request.requests)
    pieces = engine.stream(prompt, parameters)
    first = next(pieces)  # raises here, with a status of its own, rather than inside a stream of status 200
    output = Output()
    output.add_property("Content-Type", request.content_type)
    output.add_stream_content(drain.streamed(_lines(request, first, pieces)), output_formatter=lambda line: line)
    return output


def _check(request: Request) -> None:
    """Raises RequestError 422 for what these engines cannot do."""
    p, plain = request.parameters, Parameters()
    kept = replace(
        plain,
        max_new_tokens=p.max_new_tokens,
        do_sample=p.do_sample,
        temperature=p.temperature,
        top_k=p.top_k,
        top_p=p.top_p,
        seed=p.seed,
        stop=p.stop,
        logprobs=p.logprobs or None,
    )
    if request.token_ids or replace(p, logprobs=p.logprobs or None) != kept or p.logprobs:
        raise RequestError(422, "this engine knows max_new_tokens, temperature, top_k, top_p, seed and stop")


def _groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Those with the same parameters are answered together."""
    group: list[Request] = []
    for request in requests:
        if group and group[0].parameters != request.parameters:
            yield group
            group = []
        group.append(request)
    yield group


def _arguments(engine: Any, requests: Sequence[Request]) -> tuple[list[str], Parameters]:
    """Prompts and parameters as the engines take them: with a number of tokens, at most what fits."""
    prompts, parameters = [r.text for r in requests], requests[0].parameters
    if parameters.max_new_tokens is None:
        longest = max(len(engine.tokenizer(prompt)["input_ids"]) for prompt in prompts)
        parameters = replace(parameters, max_new_tokens=max(1, engine.options.n_positions - longest))
    return prompts, parameters


def _lines(request: Parsed, first: str | Answer, rest: Iterator[str | Answer]) -> Iterator[bytes]:
    """A failure in mid-stream is the stream's last part, since the status is already sent."""
    try:
        yield _line(request, first)
        for piece in rest:
            yield _line(request, piece)
    except Exception as error:  # noqa: BLE001
        yield request.stream_error(500, f"{type(error).__name__}: {error}".splitlines()[0])


def _line(request: Parsed, piece: str | Answer) -> bytes:
    return request.stream_piece(0, Piece(piece)) if isinstance(piece, str) else request.stream_end(0, piece)


def _json(status: int, body: bytes) -> Output:
    # The message becomes the HTTP reason phrase, where a newline would break the response: it stays constant.
    output = Output(status, "OK" if status < 400 else "refused")
    output.add_property("Content-Type", "application/json")
    output.add(body)
    return output
