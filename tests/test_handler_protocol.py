"""serve/: what the handler accepts and refuses, and options that survive the way through the environment."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from serve.options import OptionError, ServeOptions, from_properties, to_environment
from serve.protocols import lmi
from serve.protocols.errors import RequestError
from serve.protocols.lmi import Generation


def refused(body: object) -> list[str]:
    with pytest.raises(RequestError) as error:
        lmi.parse(json.dumps(body).encode())
    assert error.value.status == 400
    return list(error.value.problems)


def test_the_labs_request_is_understood() -> None:
    raw = b'{"inputs": "a", "parameters": {"max_new_tokens": 32, "do_sample": "true"}}'
    request = lmi.parse(raw)
    assert request.prompts == ("a",)
    assert request.parameters.do_sample
    assert request.parameters.max_new_tokens == 32
    assert not request.is_list


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "must be an object"),
        ({}, "inputs must be a text"),
        ({"inputs": ""}, "none of them empty"),
        ({"inputs": []}, "inputs must be"),
        ({"inputs": ["a", 1]}, "inputs must be"),
        ({"input": "a"}, 'input is not known; did you mean "inputs"?'),
        ({"inputs": "a", "parameters": 3}, "parameters must be an object"),
        ({"inputs": "a", "parameters": {"max_new_token": 3}}, 'did you mean "max_new_tokens"?'),
        ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, "out of range"),
        ({"inputs": "a", "parameters": {"max_new_tokens": True}}, "whole number expected"),
        ({"inputs": "a", "parameters": {"temperature": 0}}, "out of range"),
        ({"inputs": "a", "parameters": {"top_p": 1.5}}, "out of range"),
        ({"inputs": "a", "parameters": {"stop": "x"}}, "a list of texts"),
        ({"inputs": "a", "parameters": {"do_sample": "yes"}}, "true or false"),
        ({"inputs": ["a"], "stream": True}, "stream answers one prompt"),
        ({"inputs": "a", "stream": 1}, "stream must be true or false"),
    ],
)
def test_what_is_not_understood_is_refused(body: object, said: str) -> None:
    assert said in "; ".join(refused(body))


def test_all_problems_of_a_request_are_told_at_once() -> None:
    assert len(refused({"inputs": 1, "x": 1, "parameters": {"top_k": -1, "y": 2}})) == 4


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_refusal(raw: bytes) -> None:
    try:
        lmi.parse(raw)
    except RequestError as error:
        assert error.status == 400


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(JSON, st.dictionaries(st.sampled_from(["max_new_tokens", "stop", "top_k", "seed", "details", "q"]), JSON))
def test_any_json_is_a_request_or_a_refusal(inputs: object, parameters: dict) -> None:
    try:
        request = lmi.parse(json.dumps({"inputs": inputs, "parameters": parameters}).encode())
    except RequestError:
        return
    assert request.parameters.max_new_tokens >= 1


def test_answers_have_the_shape_of_their_request() -> None:
    answers = [Generation("x", "length", 3, 2), Generation("é\n", "eos_token", 3, 1)]
    many = lmi.parse(b'{"inputs": ["a", "b"], "parameters": {"details": true, "return_full_text": true}}')
    rows = json.loads(lmi.render(many, answers))
    assert [r["generated_text"] for r in rows] == ["ax", "bé\n"]
    assert rows[1]["details"] == {"finish_reason": "eos_token", "generated_tokens": 1, "prompt_tokens": 3}
    one = lmi.parse(b'{"inputs": "a"}')
    assert json.loads(lmi.render(one, answers[:1])) == {"generated_text": "x"}


@given(st.integers(1, 64), st.integers(1, 100000), st.sampled_from(["bf16", "fp16", "fp32"]), st.integers(1, 512))
def test_options_survive_djls_environment(tp: int, positions: int, dtype: str, batch: int) -> None:
    options = ServeOptions(tp, positions, dtype, batch)
    # DJL strips OPTION_ and lower-cases.
    init = {k.removeprefix("OPTION_").lower(): v for k, v in to_environment(options).items()}
    assert from_properties({**init, "device_id": "-1", "handler": "handle"}) == options
    assert init["tensor_parallel_degree"] == str(tp)


@pytest.mark.parametrize("properties", [{"n_positions": "many"}, {"n_positions": "0"}, {"dtype": "int4"}])
def test_wrong_options_name_themselves(properties: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(properties))):
        from_properties(properties)
