"""What a client is told when a request cannot be answered."""

from __future__ import annotations

import json


class RequestError(Exception):
    """The client's mistake or limit: an HTTP status and one line per problem (400 malformed, 422 cannot be met)."""

    def __init__(self, status: int, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.status = status
        self.problems = problems


def body(status: int, message: str) -> bytes:
    """{"error": ..., "code": ...}, the form that DJL itself uses."""
    return json.dumps({"error": message, "code": status}).encode()
