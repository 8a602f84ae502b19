"""LMI's request and answer: {"inputs": text or list, "parameters": {...}} -> {"generated_text": ...}.

Schema: docs.djl.ai/master/docs/serving/serving/docs/lmi/user_guides/lmi_input_output_schema.html
Everything that is not understood is refused, with all problems at once; nothing is silently ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from serve.protocols.errors import RequestError


@dataclass(frozen=True)
class Parameters:
    """Generation parameters under LMI's names. Greedy unless do_sample."""

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """0: no limit."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    return_full_text: bool = False
    details: bool = False


@dataclass(frozen=True)
class Request:
    prompts: tuple[str, ...]
    parameters: Parameters
    is_list: bool
    stream: bool = False


@dataclass(frozen=True)
class Generation:
    """One answer; `finish_reason` is eos_token, stop_sequence or length."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int


_RANGES = {
    "max_new_tokens": (1, None),
    "temperature": (1e-3, 100.0),
    "top_k": (0, None),
    "top_p": (1e-6, 1.0),
}
_NAMES = [f.name for f in fields(Parameters)]


def parse(raw: bytes) -> Request:
    """Raises RequestError 400 naming every problem of the body."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError(400, f"the body must be an object with inputs, not {type(body).__name__}")
    problems = [
        _unknown(k, ["inputs", "parameters", "stream"]) for k in body if k not in ("inputs", "parameters", "stream")
    ]
    inputs = body.get("inputs")
    prompts: list[Any] = inputs if isinstance(inputs, list) else [inputs]
    if not prompts or not all(isinstance(p, str) and p for p in prompts):
        problems.append("inputs must be a text, or a list of texts, none of them empty")
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        problems.append("stream must be true or false")
    elif stream and isinstance(inputs, list):
        problems.append("stream answers one prompt: inputs must be a text")
    given = body.get("parameters") or {}
    values: dict[str, Any] = {}
    if isinstance(given, dict):
        values = _parameters(given, problems)
    else:
        problems.append("parameters must be an object")
    if problems:
        raise RequestError(400, *problems)
    return Request(tuple(prompts), Parameters(**values), isinstance(inputs, list), stream)


def _parameters(given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = "stop" if key == "stop_sequences" else key  # TGI's name for the same thing
        if name not in _NAMES:
            problems.append(_unknown(key, _NAMES, "parameters."))
            continue
        try:
            values[name] = _convert(name, value)
        except (TypeError, ValueError) as error:
            problems.append(f"parameters.{key}: {error}")
    return values


def _convert(name: str, value: Any) -> Any:
    """The value in its type; ValueError says what was expected."""
    if name in ("do_sample", "return_full_text", "details"):
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"  # the lab's notebook sends "true"
        if not isinstance(value, bool):
            raise ValueError(f"true or false expected, not {value!r}")
        return value
    if name == "stop":
        if isinstance(value, list) and value and all(isinstance(s, str) and s for s in value):
            return tuple(value)
        raise ValueError("a list of texts expected, none of them empty")
    whole = name in ("max_new_tokens", "top_k", "seed")
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"a {'whole ' if whole else ''}number expected, not {value!r}")
    low, high = _RANGES.get(name, (None, None))
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"{value} is out of range ({low} to {high if high is not None else 'any'})")
    return value if whole else float(value)


def _unknown(key: str, known: Sequence[str], prefix: str = "") -> str:
    close = get_close_matches(key, known, n=1)
    return f"{prefix}{key} is not known" + (f'; did you mean "{close[0]}"?' if close else "")


def render(request: Request, answers: Sequence[Generation]) -> bytes:
    """One object, or a list where `inputs` was a list."""
    rows = [_row(p, a, request.parameters) for p, a in zip(request.prompts, answers)]  # noqa: B905
    return json.dumps(rows if request.is_list else rows[0], ensure_ascii=False).encode()


def _row(prompt: str, answer: Generation, parameters: Parameters) -> dict[str, Any]:
    row: dict[str, Any] = {"generated_text": prompt + answer.text if parameters.return_full_text else answer.text}
    if parameters.details:
        row["details"] = {
            "finish_reason": answer.finish_reason,
            "generated_tokens": answer.generated_tokens,
            "prompt_tokens": answer.prompt_tokens,
        }
    return row


def stream_piece(text: str) -> bytes:
    """One line of a stream (JSON lines, LMI's default)."""
    return json.dumps({"token": {"text": text}}, ensure_ascii=False).encode() + b"\n"


def stream_end(answer: Generation) -> bytes:
    """The last line of a stream."""
    details = {"finish_reason": answer.finish_reason, "generated_tokens": answer.generated_tokens}
    last = {"token": {"text": ""}, "generated_text": answer.text, "details": details}
    return json.dumps(last, ensure_ascii=False).encode() + b"\n"
