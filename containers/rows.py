"""The rows of a data channel: what a line of a .jsonl file may be. The trainer reads by it, the harness checks by it.

  {"prompt": ..., "completion": ...}   loss on the completion only
  {"text": ...}                        plain language modelling

Other keys are let pass. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

ANSWER = ("prompt", "completion")
TEXT = ("text",)


def read(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line number, row) for each line that is not blank; a str instead of a row says what is wrong with the line."""
    first: tuple[str, ...] | None = None
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            if not raw.strip():
                continue
            row = _row(raw)
            if isinstance(row, dict):
                first = first or tuple(row)
                if tuple(row) != first:
                    row = f"has {' and '.join(row)}, the rows before it have {' and '.join(first)}"
            yield number, row


def _row(raw: bytes) -> dict[str, str] | str:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    except ValueError as error:
        return (
            f"not JSON ({error.msg} at column {error.colno})"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
    except RecursionError:
        return "not JSON (nested too deep)"
    return _checked(value) if isinstance(value, dict) else f"a JSON object expected, not {type(value).__name__}"


def _checked(value: dict[str, object]) -> dict[str, str] | str:
    out = {}
    keys = ANSWER if "prompt" in value else TEXT
    for key in keys:
        if key not in value:
            return f"{key} is missing" if keys == ANSWER else "needs prompt and completion, or text"
        text = value[key]
        if not isinstance(text, str):
            return f"{key} must be text, not {type(text).__name__}"
        out[key] = text
    return out
