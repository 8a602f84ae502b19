"""What clients send and get: LMI's and TGI's schema, OpenAI's chat and completions, all on /invocations.

`parse` tells them apart by their own field (inputs, messages, prompt). docs/requests.md is the page for users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from serve.protocols import lmi, openai
from serve.protocols.base import Context, Parsed
from serve.protocols.body import decode
from serve.protocols.errors import RequestError

__all__ = ["Context", "Parsed", "RequestError", "parse"]

PROTOCOLS: Mapping[str, Callable[[dict[str, Any], Context, str], Parsed]] = {
    "inputs": lmi.parse,
    "messages": openai.parse_chat,
    "prompt": openai.parse_completions,
}


def parse(body: bytes, content_type: str, context: Context, accept: str = "") -> Parsed:
    """A body in the protocol that its fields tell.

    Raises RequestError with every problem found, one line each: 413 too long, 415 not JSON by its type, 400
    malformed, 422 beyond what this endpoint does. Nothing else is raised, whatever the bytes are.
    """
    given = decode(body, content_type, context)
    told = [name for name in PROTOCOLS if given.get(name) is not None]
    if len(told) != 1:
        found = " and ".join(told) if told else ", ".join(map(_meant, sorted(given)[:5])) or "nothing"
        raise RequestError(
            400,
            "the body must have one of inputs (LMI, TGI), messages (OpenAI chat) or prompt (OpenAI completions); "
            f"it has {found}",
        )
    return PROTOCOLS[told[0]](given, context, accept)


def _meant(name: str) -> str:
    close = get_close_matches(name, PROTOCOLS, n=1)
    return f'{name} (did you mean "{close[0]}"?)' if close else name
