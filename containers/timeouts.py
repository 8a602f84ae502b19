"""DJL Serving's time-outs, all from the run file's two: they must never fire before the handler's own deadlines.

The handler ends every answer in time, with what there is of it. Each of DJL's limits does worse: one kills Python
and fails the model for good, one cuts the connection (docs/decisions/002). They are the last resort, a minute behind.
Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

from collections.abc import Mapping

from containers import contract

MARGIN = 60  # seconds; a busy machine is late by some


def longest(env: Mapping[str, str]) -> int:
    """Seconds that the longest answer of an endpoint may take, by its environment."""
    answer = whole(env, "OPTION_ANSWER_TIMEOUT", contract.ANSWER_DEADLINE)
    return max(answer, whole(env, "OPTION_STREAM_TIMEOUT", contract.STREAM_DEADLINE))


def whole(env: Mapping[str, str], name: str, default: int) -> int:
    """A variable that is a positive whole number; `default` for what is none, which the handler refuses by name."""
    text = env.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else default


def chunked_read(env: Mapping[str, str]) -> int:
    """config.properties' chunked_read_timeout: the longest gap in a reply, for one that does not stream all of it."""
    return longest(env) + MARGIN


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """What DJL reads from the environment, whatever the image or the request has set there."""
    return {
        # A step of the rolling batch, and the wait for a place in it. PID 1 sees a step that hangs much sooner.
        "OPTION_PREDICT_TIMEOUT": str(longest(env) + 2 * MARGIN),
        # SageMaker's own window ends earlier or at the same time, and says so in the endpoint's FailureReason.
        "OPTION_MODEL_LOADING_TIMEOUT": str(contract.MAX_STARTUP_WINDOW),
        # A worker that died ends the container: /ping would say Healthy for a minute while every request is refused.
        "SERVING_RETRY_THRESHOLD": "0",
    }
