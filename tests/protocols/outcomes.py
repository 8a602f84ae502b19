"""What becomes of every hostile request: `python -m tests.protocols.outcomes` in the image's environment."""

from __future__ import annotations

import json

import pydantic

from serve.protocols import Context, RequestError, parse
from tests.protocols.hostile import REQUESTS

CONTEXT = Context(n_positions=128, max_sequences=8, vocabulary=1000, chat_template=lambda messages: "a")


def outcomes() -> dict[str, list[object]]:
    """By name: the status and the fields that are named; the wording of positions is pydantic's own."""
    found: dict[str, list[object]] = {}
    for hostile in REQUESTS:
        try:
            parse(hostile.body, hostile.content_type, CONTEXT)
            found[hostile.name] = [200]
        except RequestError as error:
            found[hostile.name] = [error.status, [p.partition(": ")[0] for p in error.problems]]
    return found


if __name__ == "__main__":
    print(json.dumps({"pydantic": pydantic.VERSION, "outcomes": outcomes()}))
