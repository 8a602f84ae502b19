"""OpenAI's chat completions ({"messages": [...]}) and completions ({"prompt": ...}), as far as a text model can.

Schema: platform.openai.com/docs/api-reference/chat/create and /completions/create. top_k, min_p, repetition_penalty
and ignore_eos are additions under vLLM's names. Streams are server-sent events, or JSON lines where `Accept` asks
for application/jsonlines, as DJL Serving's own chat streams are.
"""

from __future__ import annotations

import json
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, StringConstraints, WithJsonSchema

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
    wrong,
)
from serve.request import Answer, Parameters, Piece, Request, TokenLogprob

# What OpenAI calls the ends of an answer. A deadline is a limit like the length; `stop_reason` tells them apart.
FINISH_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length", "timeout": "length"}
MAX_TOKENS = 16
"""What completions generate where nothing is said: OpenAI's default."""
LOWEST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON does not have; OpenAI's value for a token that cannot be."""
MAX_LOGIT_BIAS = 1024
"""Entries; OpenAI takes 300 or so."""

_NO_TOOLS = "tool calls are not supported; describe the functions in a message and parse the answer"
_NO_MEDIA = "only text goes in and out"


class StreamOptions(Fields):
    """What a stream carries besides the answer."""

    include_usage: bool | None = Field(default=None, description="A last chunk with the token counts.")
    include_obfuscation: Annotated[Any, Unsupported("streams are not padded", False)] = None


class _Common(Fields):
    """What chat and completions share."""

    model: str | None = Field(None, description="An endpoint serves one model; the answer repeats this name.")
    temperature: float | None = Field(None, ge=0, le=2, description="0: greedy. Default 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default 1.")
    n: Whole | None = Field(
        None, ge=1, description="Answers per prompt; answer i has the seed `seed + i`. Default 1."
    )
    stream: bool | None = None
    stream_options: dict[str, Any] | None = Field(None, description="Only with stream: include_usage.")
    stop: Stops | None = Field(None, description="Texts that end the answer; they are not part of it.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Default 0.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Default 0.")
    logit_bias: (
        dict[Annotated[str, StringConstraints(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
        | None
    ) = Field(None, max_length=MAX_LOGIT_BIAS, description="Added to the logits: token id to bias.")
    seed: Seed | None = Field(None, description="Default: a random one.")
    user: str | None = Field(None, description="Has no effect.")
    metadata: dict[str, Any] | None = Field(None, description="Has no effect.")
    store: Annotated[Any, Unsupported("nothing is stored", False)] = None
    service_tier: Annotated[Any, Unsupported("there is one tier", "auto", "default")] = None

    top_k: Whole | None = Field(None, ge=-1, description="Addition. 0 and -1: no limit, the default.")
    min_p: float | None = Field(None, ge=0, le=1, description="Addition. Default 0.")
    repetition_penalty: float | None = Field(
        None, gt=0, le=100, description="Addition. Default: generation_config's, else 1."
    )
    ignore_eos: bool | None = Field(None, description="Addition: go on after the end token.")


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise wrong('must be a text or a list of {"type": "text", "text": ...}')
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise wrong(f'parts must be {{"type": "text", "text": ...}}, not {kind!r:.40}: {_NO_MEDIA}')
        texts.append(part["text"])
    return "\n".join(texts)


class Message(Fields):
    """A turn of the conversation. `developer` is OpenAI's newer name of `system`, and becomes it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str,
        PlainValidator(_content),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                            "required": ["type", "text"],
                        },
                    },
                ]
            }
        ),
    ] = Field(description="A text, or text parts, which are joined by newlines.")
    name: str | None = Field(None, description="For templates that use it.")
    tool_calls: Annotated[Any, Unsupported(_NO_TOOLS, [])] = None
    function_call: Annotated[Any, Unsupported(_NO_TOOLS)] = None
    refusal: Annotated[Any, Unsupported("not supported")] = None
    audio: Annotated[Any, Unsupported(_NO_MEDIA)] = None
    annotations: Annotated[Any, Unsupported("not supported", [])] = None


class ChatBody(_Common):
    """A request for a chat completion."""

    messages: list[dict[str, Any]] = Field(min_length=1, description="The conversation so far; see Message.")
    max_tokens: Whole | None = Field(None, ge=1, description="Default: as many as fit into n_positions.")
    max_completion_tokens: Whole | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log probabilities of the answer's tokens.")
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Only with logprobs.")

    response_format: Annotated[Any, Unsupported("constrained answers are not supported", {"type": "text"})] = None
    tools: Annotated[Any, Unsupported(_NO_TOOLS, [])] = None
    tool_choice: Annotated[Any, Unsupported(_NO_TOOLS, "none", "auto")] = None
    parallel_tool_calls: Annotated[Any, Unsupported(_NO_TOOLS, True, False)] = None
    functions: Annotated[Any, Unsupported(_NO_TOOLS, [])] = None
    function_call: Annotated[Any, Unsupported(_NO_TOOLS, "none", "auto")] = None
    modalities: Annotated[Any, Unsupported(_NO_MEDIA, ["text"])] = None
    audio: Annotated[Any, Unsupported(_NO_MEDIA)] = None
    prediction: Annotated[Any, Unsupported("not supported")] = None
    reasoning_effort: Annotated[Any, Unsupported("not supported")] = None
    verbosity: Annotated[Any, Unsupported("not supported")] = None
    web_search_options: Annotated[Any, Unsupported("not supported")] = None


def _ids(value: Any) -> list[int] | None:
    """Token ids, or None for what is no list of them; 8.0 is a whole number in JSON."""
    if not isinstance(value, list) or not value:
        return None
    ids = [int(v) if isinstance(v, float) and v.is_integer() else v for v in value]
    return ids if all(type(v) is int and v >= 0 for v in ids) else None


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """One text or list of token ids, or a list of either kind."""
    ids = _ids(value)
    if ids is not None:
        return [ids]
    prompts = [value] if isinstance(value, str) else value
    if isinstance(prompts, list) and prompts:
        if all(isinstance(p, str) and p for p in prompts):
            return prompts
        found = [ids for ids in map(_ids, prompts) if ids is not None]
        if len(found) == len(prompts):
            return found
    raise wrong("must be a text, a list of texts, token ids, or a list of those; none of them empty")


_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


class CompletionBody(_Common):
    """A request for completions."""

    prompt: Annotated[
        Any,
        PlainValidator(_prompts),
        WithJsonSchema(
            {
                "anyOf": [
                    _TEXT,
                    {"type": "array", "items": _TEXT, "minItems": 1},
                    _IDS,
                    {"type": "array", "items": _IDS, "minItems": 1},
                ]
            }
        ),
    ] = Field(description="One text or list of token ids, or several.")
    max_tokens: Whole | None = Field(None, ge=1, description=f"Default {MAX_TOKENS}, as OpenAI's.")
    logprobs: Whole | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="Log probabilities, and how many others."
    )
    echo: bool | None = Field(None, description="Put the prompt before the answer; with logprobs, its tokens, too.")
    best_of: Whole | None = Field(None, ge=1, description="Must equal n.")
    suffix: Annotated[Any, Unsupported("text is continued, not filled in")] = None


def parse_chat(given: Mapping[str, Any], context: Context, accept: str = "") -> ChatParsed:
    """Raises RequestError 400 naming every problem of the body; 422 for what the endpoint cannot do."""
    problems: list[str] = []
    beyond: list[str] = []
    body = check(ChatBody, given, problems)
    options = _stream_options(given, problems)
    raw = given.get("messages")
    messages = [
        check(Message, message, problems, f"messages[{i}].")
        for i, message in enumerate(raw if isinstance(raw, list) else [])
        if isinstance(message, dict)  # ChatBody says which are not
    ]
    if given.get("top_logprobs") is not None and given.get("logprobs") is not True:
        problems.append("top_logprobs: only with logprobs true")
    if given.get("max_tokens") is not None and given.get("max_completion_tokens") is not None:
        problems.append("max_completion_tokens: is the newer name of max_tokens; give one of them")
    whole = [message for message in messages if message is not None]
    text = ""
    if body is not None and len(whole) == len(body.messages):
        text = _templated(whole, context, beyond)
        beyond.extend(check_prompt_length(text, "messages", context))
    if body is not None:
        beyond.extend(_common_limits(body, 1, "n", context))
    refuse(problems, beyond)
    assert body is not None  # else there was a problem
    n = body.n or 1
    parameters = _parameters(
        body,
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    requests = tuple(Request(text, _seeded(parameters, i), add_special_tokens=False) for i in range(n))
    return ChatParsed(requests, n, body, options, context, accept)


def parse_completions(given: Mapping[str, Any], context: Context, accept: str = "") -> CompletionsParsed:
    """Raises RequestError 400 naming every problem of the body; 422 for what the endpoint cannot do."""
    problems: list[str] = []
    beyond: list[str] = []
    body = check(CompletionBody, given, problems)
    options = _stream_options(given, problems)
    prompt_logprobs = given.get("echo") is True and given.get("logprobs") is not None
    if prompt_logprobs and given.get("stream") is True:
        problems.append("echo: not with logprobs and stream")
    if body is not None:
        if body.best_of not in (None, body.n or 1):
            beyond.append("best_of: must equal n; every answer is returned")
        beyond.extend(_common_limits(body, len(body.prompt), "prompt" if not body.n else "prompt times n", context))
        for i, prompt in enumerate(body.prompt):
            beyond.extend(_prompt_limits(prompt, f"prompt[{i}]" if len(body.prompt) > 1 else "prompt", context))
        if body.echo and context.decode is None and not isinstance(body.prompt[0], str):
            beyond.append("echo: not for a prompt of token ids on this endpoint")
    if prompt_logprobs and context.prompt_logprobs:
        beyond.append(f"logprobs: {context.prompt_logprobs}")
    refuse(problems, beyond)
    assert body is not None  # else there was a problem
    n = body.n or 1
    parameters = _parameters(
        body,
        max_new_tokens=body.max_tokens or MAX_TOKENS,
        logprobs=body.logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    requests = tuple(
        Request(p, _seeded(parameters, i)) if isinstance(p, str) else Request("", _seeded(parameters, i), tuple(p))
        for p in body.prompt
        for i in range(n)
    )
    return CompletionsParsed(requests, n, body, options, context, accept)


def _stream_options(given: Mapping[str, Any], problems: list[str]) -> StreamOptions:
    raw = given.get("stream_options")
    if raw is not None and given.get("stream") is not True:
        problems.append("stream_options: only with stream true")
    checked = check(StreamOptions, raw, problems, "stream_options.") if isinstance(raw, dict) else None
    return checked or StreamOptions()


def _common_limits(body: _Common, prompts: int, what: str, context: Context) -> Iterator[str]:
    yield from check_sequences(prompts * (body.n or 1), what, context)
    for key in body.logit_bias or {}:
        if int(key) >= context.vocabulary:
            yield f"logit_bias: {key} is no token id of this model (0 to {context.vocabulary - 1})"


def _prompt_limits(prompt: str | list[int], where: str, context: Context) -> Iterator[str]:
    if isinstance(prompt, str):
        yield from check_prompt_length(prompt, where, context)
        return
    if len(prompt) > context.n_positions:
        yield f"{where}: {len(prompt)} tokens; n_positions is {context.n_positions}"
    if max(prompt) >= context.vocabulary:
        yield f"{where}: token ids of this model end at {context.vocabulary - 1}"


def _templated(messages: Sequence[Message], context: Context, beyond: list[str]) -> str:
    if context.chat_template is None:
        beyond.append("messages: this model has no chat template; send `prompt` or `inputs`")
        return ""
    turns = []
    for message in messages:
        turn = {"role": "system" if message.role == "developer" else message.role, "content": message.content}
        turns.append(turn if message.name is None else {**turn, "name": message.name})
    try:
        text = context.chat_template(turns)
    except Exception as error:  # noqa: BLE001 (templates refuse by raising whatever they like)
        beyond.append(f"messages: the model's chat template refuses them: {error}")
        return ""
    if not text:
        beyond.append("messages: the model's chat template makes nothing of them")
    return text


def _parameters(body: _Common, **own: Any) -> Parameters:
    """OpenAI samples unless temperature is 0."""
    return Parameters(
        do_sample=body.temperature != 0,
        temperature=body.temperature or 1.0,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        stop=tuple(body.stop or ()),
        ignore_eos=bool(body.ignore_eos),
        logit_bias=tuple((int(key), bias) for key, bias in (body.logit_bias or {}).items()),
        **own,
    )


def _seeded(parameters: Parameters, i: int) -> Parameters:
    """Answer i of one prompt: with the same seed they would all be the same."""
    return parameters if parameters.seed is None or i == 0 else replace(parameters, seed=parameters.seed + i)


class _OpenAiParsed(Parsed):
    """What answers of chat and completions have in common: identity, choices, usage, events."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(
        self,
        requests: tuple[Request, ...],
        n: int,
        body: _Common,
        options: StreamOptions,
        context: Context,
        accept: str,
    ) -> None:
        self.requests = requests
        self.stream = bool(body.stream)
        self._events = JSON_LINES not in accept
        self.content_type = (EVENT_STREAM if self._events else JSON_LINES) if self.stream else JSON
        self._n = n
        self._usage = bool(options.include_usage)
        self._identity = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_kind if self.stream else self.kind,
            "created": int(time.time()),
            "model": body.model or context.model_name,
        }
        self._ended: dict[int, Answer] = {}

    def render(self, answers: Sequence[Answer]) -> bytes:
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        return _dump({**self._identity, "choices": choices, "usage": self._counted(answers)})

    def _counted(self, answers: Sequence[Answer]) -> dict[str, int]:
        """A prompt counts once, however many answers it gets."""
        prompt = sum(answer.prompt_tokens for answer in answers[:: self._n])
        completion = sum(answer.generated_tokens for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @abstractmethod
    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """A whole answer."""

    @abstractmethod
    def _delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A choice of a chunk, without its end."""

    def stream_piece(self, index: int, piece: Piece) -> bytes:
        if not piece.text and not piece.logprobs:
            return b""
        choice = self._delta(index, piece.text, piece.logprobs)
        return self._chunk({**choice, "finish_reason": None})

    def stream_end(self, index: int, answer: Answer, piece: Piece = Piece("")) -> bytes:  # noqa: B008
        self._ended[index] = answer
        sent = self._chunk({**self._delta(index, piece.text, piece.logprobs), **_end(answer)})
        if len(self._ended) < len(self.requests):
            return sent
        if self._usage:
            answers = [self._ended[i] for i in range(len(self.requests))]
            sent += self._frame({**self._identity, "choices": [], "usage": self._counted(answers)})
        return sent + (b"data: [DONE]\n\n" if self._events else b"")

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        more = {"usage": None} if self._usage else {}
        return self._frame({**self._identity, "choices": [choice], **more})

    def _frame(self, value: dict[str, Any]) -> bytes:
        return b"data: " + _dump(value) + b"\n\n" if self._events else _dump(value) + b"\n"

    def stream_error(self, status: int, message: str) -> bytes:
        return self._frame(error_body(status, message)) + (b"data: [DONE]\n\n" if self._events else b"")


class ChatParsed(_OpenAiParsed):
    """A chat completion, and its stream of deltas."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._logprobs = self.requests[0].parameters.logprobs is not None
        self._started: set[int] = set()

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": _chat_logprobs(answer.logprobs) if self._logprobs else None,
            **_end(answer),
        }

    def _delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        if index not in self._started:
            self._started.add(index)
            delta = {"role": "assistant", "content": text}
        return {"index": index, "delta": delta, "logprobs": _chat_logprobs(logprobs) if logprobs else None}


class CompletionsParsed(_OpenAiParsed):
    """Completions, and their stream of texts."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        requests: tuple[Request, ...],
        n: int,
        body: CompletionBody,
        options: StreamOptions,
        context: Context,
        accept: str,
    ) -> None:
        super().__init__(requests, n, body, options, context, accept)
        self._logprobs = body.logprobs is not None
        self._echoed = [self._prompt(r, context) for r in requests] if body.echo else []
        self._offsets = [len(text) for text in self._echoed] or [0] * len(requests)
        self._started: set[int] = set()

    @staticmethod
    def _prompt(request: Request, context: Context) -> str:
        if not request.token_ids:
            return request.text
        assert context.decode is not None  # checked with the other limits
        return context.decode(request.token_ids)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        tokens = answer.logprobs
        text = answer.text
        offset = 0
        if self._echoed:
            text = self._echoed[index] + text
            tokens = answer.prompt_logprobs + tokens
            offset = 0 if answer.prompt_logprobs else self._offsets[index]
        logprobs = _completion_logprobs(tokens, offset) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, **_end(answer)}

    def _delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        if index not in self._started:
            self._started.add(index)
            text = (self._echoed[index] if self._echoed else "") + text
        told = _completion_logprobs(logprobs, self._offsets[index]) if logprobs else None
        self._offsets[index] += sum(len(t.text) for t in logprobs)
        return {"index": index, "text": text, "logprobs": told}


def _end(answer: Answer) -> dict[str, Any]:
    end: dict[str, Any] = {"finish_reason": FINISH_REASONS.get(answer.finish_reason, answer.finish_reason)}
    if answer.finish_reason == "timeout":
        end["stop_reason"] = "timeout"
    return end


def _bounded(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    def one(text: str, logprob: float | None) -> dict[str, Any]:
        # Half a character has no text of its own; its bytes are not known here.
        spelled = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": _bounded(logprob), "bytes": spelled}

    return {
        "content": [{**one(t.text, t.logprob), "top_logprobs": [one(*other[1:]) for other in t.top]} for t in tokens]
    }


def _completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Parallel lists. top_logprobs always has the token itself, as OpenAI's `logprobs + 1` entries."""
    offsets, tops = [], []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
        # Nothing predicts a prompt's first token; where two tokens have one text, the likelier is the one kept.
        top: dict[str, float | None] = {}
        for text, logprob in [*((text, logprob) for _, text, logprob in token.top), (token.text, token.logprob)]:
            top.setdefault(text, _bounded(logprob))
        tops.append(None if token.logprob is None else top)
    return {
        "tokens": [t.text for t in tokens],
        "token_logprobs": [_bounded(t.logprob) for t in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def error_body(status: int, message: str) -> dict[str, Any]:
    """{"error": {"message", "type", "param", "code"}}; `param` is the field that the first problem is about."""
    field, colon, _ = message.partition(": ")
    named = colon and field.replace("_", "").replace(".", "").replace("[", "").replace("]", "").isalnum()
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": field if status < 500 and named else None,
            "code": None,
        }
    }


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
