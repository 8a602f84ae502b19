"""Whatever the bytes are, the parser answers with a request or a refusal, at once."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, strategies as st

from serve.protocols import RequestError, lmi, openai
from serve.request import Answer, Piece
from tests.protocols.hostile import REQUESTS, Hostile
from tests.protocols.support import ask, refused


def test_there_are_at_least_sixty() -> None:
    assert len({r.name for r in REQUESTS}) == len(REQUESTS)
    assert sum(r.status != 200 for r in REQUESTS) >= 60


@pytest.mark.parametrize("hostile", REQUESTS, ids=lambda h: h.name)
def test_hostile(hostile: Hostile) -> None:
    if hostile.status == 200:
        assert ask(hostile.body, content_type=hostile.content_type).requests
        return
    problems = refused(hostile.body, hostile.status, content_type=hostile.content_type)
    assert len(problems) <= 21  # with what a client sends in bulk, too


@pytest.mark.parametrize("raw", [b'{"a":NaN}', b'{"temperature": 1e400}'])
def test_no_json_that_python_alone_understands(raw: bytes) -> None:
    assert math.isnan(json.loads(b'{"a":NaN}')["a"])  # what the standard library would have let in
    refused(raw)


@given(st.binary(max_size=80), st.text(max_size=30), st.text(max_size=20))
@example(b"[" * 100_000, "application/json", "")
def test_any_bytes_are_a_request_or_a_refusal(raw: bytes, content_type: str, accept: str) -> None:
    try:
        ask(raw, accept, content_type)
    except RequestError as error:
        assert error.status in (400, 415)
        assert str(error).isprintable()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.integers(10**300, 10**310),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["user", "assistant", "true", "text", "none", "auto"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.sampled_from(["type", "text", "0"])), inner, max_size=3),
    ),
    max_leaves=6,
)
NAMES = {
    "inputs": [*lmi.LmiBody.model_fields],
    "messages": [*openai.ChatBody.model_fields],
    "prompt": [*openai.CompletionBody.model_fields],
}
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": JSON, "content": JSON, **dict.fromkeys(["name", "tool_calls", "refusal", "audio"], JSON)}
)
VALID = {
    "inputs": st.one_of(st.just("a"), JSON),
    "messages": st.one_of(
        st.just([{"role": "user", "content": "a"}]), st.lists(st.one_of(MESSAGE, JSON), max_size=3), JSON
    ),
    "prompt": st.one_of(st.just("a"), st.lists(st.lists(st.integers(-2, 1100))), JSON),
}


@st.composite
def bodies(draw: st.DrawFn) -> dict:
    """Near misses: the fields that exist, with values that may or may not be theirs."""
    field = draw(st.sampled_from([*NAMES]))
    body = draw(st.dictionaries(st.sampled_from(NAMES[field]), JSON, max_size=4))
    body[field] = draw(VALID[field])
    if field == "inputs":
        names = [*lmi.LmiParameters.model_fields, "q"]
        body["parameters"] = draw(st.one_of(JSON, st.dictionaries(st.sampled_from(names), JSON, max_size=4)))
    return body


ANSWER = Answer("x", "length", 3, 2)


@given(bodies())
def test_any_json_is_a_request_that_can_be_answered_or_a_refusal(body: dict) -> None:
    try:
        parsed = ask(json.dumps(body).encode())
    except RequestError as error:
        assert error.status in (400, 422)
        assert all(p.isprintable() for p in error.problems)
        return
    assert parsed.requests
    for request in parsed.requests:
        p = request.parameters
        assert request.text or request.token_ids
        assert p.max_new_tokens is None or p.max_new_tokens >= 1
        assert p.temperature > 0
        assert 0 < p.top_p <= 1
        assert p.top_k >= 0
        assert all(isinstance(s, str) and s for s in p.stop)
        assert p.seed is None or -(2**63) <= p.seed < 2**64 + 8
        assert all(0 <= token < 1000 and abs(bias) <= 100 for token, bias in p.logit_bias)
    if not parsed.stream:
        json.loads(parsed.render([ANSWER] * len(parsed.requests)))
        return
    for i in range(len(parsed.requests)):
        parsed.stream_piece(i, Piece("x", (1,)))
        assert parsed.stream_end(i, ANSWER)
