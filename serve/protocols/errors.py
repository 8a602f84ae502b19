"""What a client is told when a request cannot be answered."""

from __future__ import annotations

import json
from collections.abc import Iterable

# What is told ends in a log line and, on DJL Serving from 0.30 on, in the HTTP reason phrase as well.
MAX_PROBLEMS = 20
MAX_PROBLEM_LENGTH = 300


class RequestError(Exception):
    """The client's mistake or limit: an HTTP status and one line per problem, `field: reason`.

    400 malformed, 413 too long, 415 not JSON, 422 well-formed but beyond what this endpoint can do.
    """

    def __init__(self, status: int, *problems: str) -> None:
        self.status = status
        self.problems = tuple(_lines(problems))
        super().__init__("; ".join(self.problems))


def body(status: int, message: str) -> bytes:
    """{"error": ..., "code": ...}, the form that DJL itself uses."""
    return json.dumps({"error": message, "code": status}).encode()


def _lines(problems: tuple[str, ...]) -> Iterable[str]:
    """Printable and short: field names come from the client, and a newline in a reason phrase is a 500."""
    for problem in problems[:MAX_PROBLEMS]:
        text = " ".join(problem.split())
        if len(text) > MAX_PROBLEM_LENGTH:
            text = text[:MAX_PROBLEM_LENGTH] + "..."
        yield "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(problems) > MAX_PROBLEMS:
        yield f"and {len(problems) - MAX_PROBLEMS} more problems"
