"""A make-believe model's facts for parsing, and short ways to ask and to read answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from serve.protocols import Context, Parsed, RequestError, parse


class TemplateError(Exception):
    """As jinja2's, which the fast tier has no need of."""


def template(messages: Sequence[Mapping[str, str]]) -> str:
    """Like Mistral's: roles must alternate, and there is a line for the answer."""
    roles = [m["role"] for m in messages if m["role"] != "system"]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise TemplateError("Conversation roles must alternate user/assistant/user/assistant/...")
    return "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + "<assistant>"


CONTEXT = Context(
    n_positions=128,
    max_sequences=8,
    vocabulary=1000,
    chat_template=template,
    decode=lambda ids: "".join(f"[{i}]" for i in ids),
)


def ask(body: object, accept: str = "", content_type: str = "application/json", **context: Any) -> Parsed:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse(raw, content_type, replace(CONTEXT, **context), accept)


def refused(body: object, status: int = 400, **how: Any) -> list[str]:
    """The problems; every one a short printable line."""
    with pytest.raises(RequestError) as error:
        ask(body, **how)
    assert error.value.status == status
    problems = list(error.value.problems)
    assert problems
    assert all(p.isprintable() and 0 < len(p) < 320 for p in problems)
    return problems


def lines(stream: bytes) -> list[Any]:
    """JSON lines."""
    assert stream.endswith(b"\n")
    return [json.loads(line) for line in stream.splitlines()]


def events(stream: bytes) -> list[Any]:
    """Server-sent events; [DONE] as it is."""
    assert stream.endswith(b"\n\n")
    found = []
    for event in stream.removesuffix(b"\n\n").split(b"\n\n"):
        assert event.startswith(b"data: ")
        assert b"\n" not in event
        data = event.removeprefix(b"data: ")
        found.append(data.decode() if data == b"[DONE]" else json.loads(data))
    return found
