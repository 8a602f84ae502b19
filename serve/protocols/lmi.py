"""LMI's and TGI's requests: {"inputs": text or list, "parameters": {...}, "stream": ...} -> {"generated_text": ...}.

LMI, of DJL Serving: docs.djl.ai/master/docs/serving/serving/docs/lmi/user_guides/lmi_input_output_schema.html
TGI: huggingface.github.io/text-generation-inference (Generate parameters, StreamResponse).
One request schema for both. The answer is LMI's, or TGI's where OPTION_TGI_COMPAT is set or the request comes with
`Accept: text/event-stream`. Whatever is not understood is refused; nothing is silently ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from serve.protocols.base import EVENT_STREAM, JSON, JSON_LINES, Context, Parsed
from serve.protocols.body import (
    MAX_TOP_LOGPROBS,
    Fields,
    Seed,
    Stops,
    Unsupported,
    Whole,
    check,
    check_prompt_length,
    check_sequences,
    refuse,
    type_name,
    wrong,
)
from serve.request import Answer, Parameters, Piece, Request, TokenLogprob

LOWEST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON does not have; OpenAI's value for a token that cannot be."""


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"  # notebooks for SageMaker send "true"
    if not isinstance(value, bool):
        raise wrong("must be true or false")
    return value


Flag = Annotated[bool, PlainValidator(_flag), WithJsonSchema({"type": "boolean"})]
_ONE = "one sequence is generated per input; send the input several times"
_NO_BEAMS = "beam search is not supported"
_SPECIAL = "special tokens are left out of the text"


class LmiParameters(Fields):
    """`parameters` of LMI and TGI. Greedy unless do_sample is true or a sampling parameter is given (LMI 0.32)."""

    max_new_tokens: Whole | None = Field(None, ge=1, description="Default: as many as fit into n_positions.")
    do_sample: Flag | None = Field(None, description="Default: whether temperature, top_k, top_p or min_p is given.")
    temperature: float | None = Field(None, ge=0, le=100, description="0: greedy. Default 1.")
    top_k: Whole | None = Field(None, ge=-1, description="0 and -1: no limit, the default.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default 1.")
    min_p: float | None = Field(None, ge=0, le=1, description="Default 0.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Default: generation_config's, else 1.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Default 0.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Default 0.")
    seed: Seed | None = Field(None, description="Default: a random one.")
    stop: Stops | None = Field(None, description="Texts that end the answer; they are not part of it.")
    stop_sequences: Stops | None = Field(None, description="The same as stop.")
    ignore_eos_token: Flag | None = Field(None, description="Go on after the end token.")
    return_full_text: Flag | None = Field(None, description="Put the prompt before the answer.")
    details: Flag | None = Field(None, description="finish_reason, token counts, tokens with log probabilities.")
    decoder_input_details: Flag | None = Field(None, description="With details: the prompt's tokens, too.")
    top_n_tokens: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="With details: likeliest tokens.")

    best_of: Annotated[Any, Unsupported(_ONE, 1)] = None
    n: Annotated[Any, Unsupported(_ONE, 1)] = None
    num_beams: Annotated[Any, Unsupported(_NO_BEAMS, 1)] = None
    length_penalty: Annotated[Any, Unsupported(_NO_BEAMS, 1)] = None
    early_stopping: Annotated[Any, Unsupported(_NO_BEAMS, False)] = None
    typical_p: Annotated[Any, Unsupported("not supported; use top_p or min_p", 1)] = None
    watermark: Annotated[Any, Unsupported("not supported", False)] = None
    truncate: Annotated[Any, Unsupported("a prompt is not cut; send what fits")] = None
    grammar: Annotated[Any, Unsupported("constrained answers are not supported")] = None
    adapter_id: Annotated[Any, Unsupported("adapters are not supported; the endpoint serves one model")] = None
    stop_token_ids: Annotated[Any, Unsupported("not supported; give texts as stop", [])] = None
    include_stop_str_in_output: Annotated[Any, Unsupported("a stop text is never part of the answer", False)] = None
    skip_special_tokens: Annotated[Any, Unsupported(_SPECIAL, True)] = None
    spaces_between_special_tokens: Annotated[Any, Unsupported(_SPECIAL, True)] = None


def _inputs(value: Any) -> list[str] | str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
        return value
    raise wrong("must be a text, or a list of texts, none of them empty")


class LmiBody(Fields):
    """A request of LMI or TGI."""

    inputs: Annotated[
        Any,
        PlainValidator(_inputs),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                ]
            }
        ),
    ] = Field(description="One prompt, or several, which are answered by a list.")
    parameters: dict[str, Any] | None = None
    stream: Flag | None = Field(None, description="One prompt only.")


def parse(given: Mapping[str, Any], context: Context, accept: str = "") -> LmiParsed:
    """Raises RequestError 400 naming every problem of the body; 422 for what the endpoint cannot do."""
    problems: list[str] = []
    raw = given.get("parameters")
    if raw is not None and not isinstance(raw, dict):
        problems.append(f"parameters: must be an object, not {type_name(raw)}")
        raw = None
    body = check(LmiBody, {k: v for k, v in given.items() if k != "parameters"}, problems)
    parameters = check(LmiParameters, raw or {}, problems, "parameters.")
    problems.extend(_contradictions(given, raw or {}))
    beyond: list[str] = []
    if body is not None:
        several = isinstance(body.inputs, list)
        prompts = body.inputs if several else [body.inputs]
        beyond.extend(check_sequences(len(prompts), "inputs", context))
        for i, prompt in enumerate(prompts):
            beyond.extend(check_prompt_length(prompt, f"inputs[{i}]" if several else "inputs", context))
    if parameters is not None and parameters.decoder_input_details and context.prompt_logprobs:
        beyond.append(f"parameters.decoder_input_details: {context.prompt_logprobs}")
    refuse(problems, beyond)
    assert body is not None and parameters is not None  # else there was a problem
    return LmiParsed(body, parameters, prompts, context, accept)


def _contradictions(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    found = []
    streams = given.get("stream") in (True, "true")
    if streams and isinstance(given.get("inputs"), list):
        found.append("stream: answers one prompt; inputs must be a text")
    if parameters.get("stop") is not None and parameters.get("stop_sequences") is not None:
        found.append("parameters.stop_sequences: is the same as stop; give one of them")
    if streams and parameters.get("decoder_input_details") in (True, "true"):
        found.append("parameters.decoder_input_details: not with stream")
    return found


def _parameters(p: LmiParameters, logprobs: bool) -> Parameters:
    asked = any(v is not None for v in (p.temperature, p.top_k, p.top_p, p.min_p))
    sample = (asked if p.do_sample is None else p.do_sample) and p.temperature != 0
    return Parameters(
        max_new_tokens=p.max_new_tokens,
        do_sample=sample,
        temperature=p.temperature or 1.0,
        top_k=max(0, p.top_k or 0),
        top_p=1.0 if p.top_p is None else p.top_p,
        min_p=p.min_p or 0.0,
        repetition_penalty=p.repetition_penalty,
        presence_penalty=p.presence_penalty or 0.0,
        frequency_penalty=p.frequency_penalty or 0.0,
        seed=p.seed,
        stop=tuple(p.stop or p.stop_sequences or ()),
        ignore_eos=bool(p.ignore_eos_token),
        logprobs=(p.top_n_tokens or 0) if logprobs else None,
        prompt_logprobs=bool(p.decoder_input_details),
    )


class LmiParsed(Parsed):
    """LMI's answers, or TGI's: those have `logprob` for `log_prob`, lists, and events for JSON lines."""

    def __init__(
        self, body: LmiBody, parameters: LmiParameters, prompts: list[str], context: Context, accept: str
    ) -> None:
        self.stream = bool(body.stream)
        self._list = isinstance(body.inputs, list) or context.tgi_compat
        self._tgi = context.tgi_compat or EVENT_STREAM in accept
        self._full = bool(parameters.return_full_text)
        self._details = bool(parameters.details or parameters.decoder_input_details or context.tgi_compat)
        # TGI's events have log probabilities always.
        shared = _parameters(parameters, self._details or (self._tgi and self.stream))
        self._top = bool(shared.logprobs)
        self.requests = tuple(Request(prompt, shared) for prompt in prompts)
        self.content_type = (EVENT_STREAM if self._tgi else JSON_LINES) if self.stream else JSON

    def render(self, answers: Sequence[Answer]) -> bytes:
        rows = [self._row(request, answer) for request, answer in zip(self.requests, answers)]  # noqa: B905
        return json.dumps(rows if self._list else rows[0], ensure_ascii=False).encode()

    def _row(self, request: Request, answer: Answer) -> dict[str, Any]:
        row: dict[str, Any] = {"generated_text": request.text + answer.text if self._full else answer.text}
        if self._details:
            row["details"] = details = self._short_details(request, answer)
            details["tokens"] = [self._token(t) for t in answer.logprobs]
            if self._top:
                details["top_tokens"] = [_top(t, self._tgi) for t in answer.logprobs]
            details["prefill"] = [self._token(t) for t in answer.prompt_logprobs]
        elif answer.finish_reason in ("timeout", "error"):  # nobody should take these for the whole answer
            row["details"] = {"finish_reason": answer.finish_reason}
        return row

    def _short_details(self, request: Request, answer: Answer) -> dict[str, Any]:
        return {
            "finish_reason": answer.finish_reason,
            "generated_tokens": answer.generated_tokens,
            "prompt_tokens": answer.prompt_tokens,
            "inputs": request.text,
        }

    def _token(self, token: TokenLogprob) -> dict[str, Any]:
        return _token(token.token_id, token.text, token.logprob, self._tgi)

    def stream_piece(self, index: int, piece: Piece) -> bytes:
        return b"".join(self._frame(line) for line in self._lines(piece))

    def stream_end(self, index: int, answer: Answer, piece: Piece = Piece("")) -> bytes:  # noqa: B008
        request = self.requests[index]
        *others, last = self._lines(piece) or [{"token": _token(None, "", None, self._tgi)}]
        last["generated_text"] = request.text + answer.text if self._full else answer.text
        last["details"] = self._short_details(request, answer)
        return b"".join(self._frame(line) for line in (*others, last))

    def _lines(self, piece: Piece) -> list[dict[str, Any]]:
        """One object per token; the text, which need not end where a token does, is the last one's."""
        count = len(piece.token_ids) or bool(piece.text)
        lines = []
        for i in range(count):
            known = piece.logprobs[i] if i < len(piece.logprobs) else None
            token_id = piece.token_ids[i] if piece.token_ids else None
            text = piece.text if i == count - 1 else ""
            line: dict[str, Any] = {"token": _token(token_id, text, known.logprob if known else None, self._tgi)}
            if known and self._top:
                line["top_tokens"] = _top(known, self._tgi)
            lines.append(line)
        return lines

    def _frame(self, line: dict[str, Any]) -> bytes:
        text = json.dumps(line, ensure_ascii=False).encode()
        return b"data: " + text + b"\n\n" if self._tgi else text + b"\n"

    def stream_error(self, status: int, message: str) -> bytes:
        more = {"error_type": "generation"} if self._tgi else {}
        return self._frame({"error": message, "code": status, **more})


def _token(token_id: int | None, text: str, logprob: float | None, tgi: bool) -> dict[str, Any]:
    known = None if logprob is None else max(logprob, LOWEST_LOGPROB)
    if tgi:
        return {"id": -1 if token_id is None else token_id, "text": text, "logprob": known, "special": False}
    token: dict[str, Any] = {"text": text} if token_id is None else {"id": token_id, "text": text}
    return token if known is None else {**token, "log_prob": known}


def _top(token: TokenLogprob, tgi: bool) -> list[dict[str, Any]]:
    return [_token(i, text, logprob, tgi) for i, text, logprob in token.top]
