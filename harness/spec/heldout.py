"""Rows of a test channel: what the endpoint is asked, and the answer that is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from containers.rows import Row


@dataclass(frozen=True)
class HeldOut:
    """One held-out example."""

    prompt: str
    """Of a chat its messages as they are shown, not as the model reads them."""
    answer: str
    messages: tuple[dict[str, Any], ...] = ()
    """Of a chat what comes before the answer; the endpoint puts it into the model's template."""


def of(row: Row) -> HeldOut | str:
    """The example of a row, or why nobody can be asked it and its answer be compared."""
    values = row.values
    if "completion" in values:
        return HeldOut(values["prompt"], values["completion"])
    chat = values.get("messages")
    if chat is None:
        return "the test channel needs prompt and completion, or messages"
    if len(chat) < 2 or chat[-1]["role"] != "assistant":
        return "the last message of a test chat must be the assistant's: it is what is right"
    if "tools" in values or not all(isinstance(message.get("content"), str) for message in chat):
        return "a test chat has texts only: tools are not asked for"
    *before, last = chat
    shown = "\n".join(f"{message['role']}: {message['content']}" for message in before)
    return HeldOut(shown, last["content"], tuple(before))
