"""LMI's and TGI's requests and answers."""

from __future__ import annotations

import json

import pytest

from serve.request import Answer, Parameters, Piece, TokenLogprob
from tests.protocols.support import ask, events, lines, refused


def test_the_labs_request_is_understood() -> None:
    parsed = ask({"inputs": "a", "parameters": {"max_new_tokens": 32, "do_sample": "true"}})
    (request,) = parsed.requests
    assert request.text == "a"
    assert request.add_special_tokens
    assert request.parameters == Parameters(max_new_tokens=32, do_sample=True)
    assert not parsed.stream
    assert parsed.content_type == "application/json"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "must be a JSON object, not an array"),
        ({}, "it has nothing"),
        ({"inputs": ""}, "inputs: must be a text"),
        ({"inputs": []}, "inputs: must be"),
        ({"inputs": ["a", 1]}, "inputs: must be"),
        ({"inputs": ["a", ""]}, "none of them empty"),
        ({"input": "a"}, 'input (did you mean "inputs"?)'),
        ({"inputs": "a", "prompt": "b"}, "it has inputs and prompt"),
        ({"inputs": "a", "parameters": 3}, "parameters: must be an object, not a number"),
        ({"inputs": "a", "steam": True}, 'steam: not known; did you mean "stream"?'),
        ({"inputs": "a", "parameters": {"max_new_token": 3}}, 'did you mean "max_new_tokens"?'),
        ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, "greater than or equal to 1, not 0"),
        ({"inputs": "a", "parameters": {"max_new_tokens": True}}, "valid integer"),
        ({"inputs": "a", "parameters": {"max_new_tokens": "3"}}, "valid integer"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 1.5}}, "valid integer"),
        ({"inputs": "a", "parameters": {"temperature": -0.1}}, "parameters.temperature: must be greater"),
        ({"inputs": "a", "parameters": {"temperature": "1"}}, "valid number"),
        ({"inputs": "a", "parameters": {"top_p": 1.5}}, "parameters.top_p: must be less"),
        ({"inputs": "a", "parameters": {"top_p": 0}}, "greater than 0"),
        ({"inputs": "a", "parameters": {"seed": 2**64}}, "64 bits"),
        ({"inputs": "a", "parameters": {"seed": -(2**63) - 1}}, "64 bits"),
        ({"inputs": "a", "parameters": {"seed": 1.5}}, "64 bits"),
        ({"inputs": "a", "parameters": {"stop": 3}}, "a text or a list of texts"),
        ({"inputs": "a", "parameters": {"stop": ["x", ""]}}, "none of them empty"),
        ({"inputs": "a", "parameters": {"stop": ["x"] * 17}}, "17 stop texts; at most 16"),
        ({"inputs": "a", "parameters": {"stop": ["x"], "stop_sequences": ["y"]}}, "give one of them"),
        ({"inputs": "a", "parameters": {"stop": ["x"], "stop_sequences": ["x"]}}, "give one of them"),
        ({"inputs": "a", "parameters": {"do_sample": "yes"}}, "true or false"),
        ({"inputs": "a", "parameters": {"best_of": 2}}, "send the input several times"),
        ({"inputs": "a", "parameters": {"num_beams": 4}}, "beam search is not supported"),
        ({"inputs": "a", "parameters": {"watermark": True}}, "not supported"),
        ({"inputs": "a", "parameters": {"watermark": 0}}, "not supported"),
        ({"inputs": "a", "parameters": {"typical_p": 0.9}}, "use top_p or min_p"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "json", "value": {}}}}, "constrained answers"),
        ({"inputs": "a", "parameters": {"adapter_id": "x"}}, "adapters"),
        ({"inputs": "a", "parameters": {"top_n_tokens": 21}}, "less than or equal to 20"),
        ({"inputs": ["a"], "stream": True}, "stream: answers one prompt"),
        ({"inputs": "a", "stream": 1}, "stream: must be true or false"),
        ({"inputs": "a", "stream": True, "parameters": {"decoder_input_details": True}}, "not with stream"),
    ],
)
def test_what_is_not_understood_is_refused(body: object, said: str) -> None:
    assert said in "; ".join(refused(body))


def test_all_problems_of_a_request_are_told_at_once() -> None:
    problems = refused(
        {"inputs": 1, "x": 1, "stream": "no", "parameters": {"top_k": -2, "y": 2, "stop": "a", "stop_sequences": "b"}}
    )
    fields = {p.partition(":")[0] for p in problems}
    assert fields == {"inputs", "x", "stream", "parameters.top_k", "parameters.y", "parameters.stop_sequences"}


def test_null_is_as_good_as_absent() -> None:
    names = ("stop", "stop_sequences", "seed", "temperature", "max_new_tokens", "details", "grammar", "top_k")
    body = {"inputs": "a", "stream": None, "prompt": None, "parameters": dict.fromkeys(names)}
    assert ask(body).requests == ask({"inputs": "a"}).requests
    assert ask({"inputs": "a", "parameters": None}).requests == ask({"inputs": "a"}).requests
    assert ask({"inputs": "a", "parameters": {"stop": ["x"], "stop_sequences": None}}).requests[
        0
    ].parameters.stop == ("x",)


@pytest.mark.parametrize(
    ("given", "sample", "temperature"),
    [
        ({}, False, 1.0),
        ({"temperature": 0}, False, 1.0),
        ({"temperature": 0, "do_sample": True}, False, 1.0),
        ({"temperature": 0.5}, True, 0.5),
        ({"temperature": 0.5, "do_sample": False}, False, 0.5),
        ({"do_sample": True}, True, 1.0),
        ({"top_k": 3}, True, 1.0),
        ({"top_p": 0.5}, True, 1.0),
        ({"min_p": 0.5}, True, 1.0),
        ({"seed": 3}, False, 1.0),
    ],
)
def test_sampling_is_asked_for_by_a_sampling_parameter_and_never_at_temperature_zero(
    given: dict, sample: bool, temperature: float
) -> None:
    parameters = ask({"inputs": "a", "parameters": given}).requests[0].parameters
    assert (parameters.do_sample, parameters.temperature) == (sample, temperature)


def test_every_parameter_arrives() -> None:
    given = {
        "max_new_tokens": 5.0,
        "do_sample": True,
        "temperature": 0.5,
        "top_k": -1,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "seed": 2**64 - 1,
        "stop_sequences": ["x", "y"],
        "ignore_eos_token": True,
        "decoder_input_details": True,
        "top_n_tokens": 3,
        "best_of": 1,
        "watermark": False,
        "stop_token_ids": [],
    }
    assert ask({"inputs": "a", "parameters": given}).requests[0].parameters == Parameters(
        max_new_tokens=5,
        do_sample=True,
        temperature=0.5,
        top_k=0,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        seed=2**64 - 1,
        stop=("x", "y"),
        ignore_eos=True,
        logprobs=3,
        prompt_logprobs=True,
    )


def test_limits_of_the_endpoint_are_422() -> None:
    assert "max_batch_size is 8" in refused({"inputs": ["a"] * 9}, 422)[0]
    assert (
        "costs a graph"
        in refused(
            {"inputs": "a", "parameters": {"decoder_input_details": True}}, 422, prompt_logprobs="costs a graph"
        )[0]
    )
    long = refused({"inputs": ["a", "é" * 100]}, 422, longest_token=1)
    assert long == [
        "inputs[1]: 200 bytes of text; no token is longer than 1 bytes, so that is more than n_positions 128 tokens"
    ]
    assert ask({"inputs": "é" * 64}, longest_token=1).requests[0].text == "é" * 64  # 128 bytes: may fit


ANSWER = Answer(
    "é\n",
    "eos_token",
    prompt_tokens=3,
    generated_tokens=2,
    logprobs=(
        TokenLogprob(7, "é", -0.5, ((7, "é", -0.5), (8, "x", float("-inf")))),
        TokenLogprob(9, "\n", -0.25, ((9, "\n", -0.25), (1, "y", -3.0))),
    ),
    prompt_logprobs=(TokenLogprob(1, "a", None), TokenLogprob(2, "b", -1.0)),
)


def test_answers_have_the_shape_of_their_request() -> None:
    answers = [Answer("x", "length", 3, 2), ANSWER]
    many = ask({"inputs": ["a", "b"], "parameters": {"return_full_text": True}})
    assert json.loads(many.render(answers)) == [{"generated_text": "ax"}, {"generated_text": "bé\n"}]
    one = ask({"inputs": "a"})
    assert json.loads(one.render(answers[:1])) == {"generated_text": "x"}
    assert json.loads(ask({"inputs": "a"}, tgi_compat=True).render([ANSWER]))[0]["generated_text"] == "é\n"


def test_details_are_lmis() -> None:
    parsed = ask({"inputs": "ab", "parameters": {"decoder_input_details": True, "top_n_tokens": 2}})
    assert json.loads(parsed.render([ANSWER]))["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 2,
        "prompt_tokens": 3,
        "inputs": "ab",
        "tokens": [{"id": 7, "text": "é", "log_prob": -0.5}, {"id": 9, "text": "\n", "log_prob": -0.25}],
        "top_tokens": [
            [{"id": 7, "text": "é", "log_prob": -0.5}, {"id": 8, "text": "x", "log_prob": -9999.0}],
            [{"id": 9, "text": "\n", "log_prob": -0.25}, {"id": 1, "text": "y", "log_prob": -3.0}],
        ],
        "prefill": [{"id": 1, "text": "a"}, {"id": 2, "text": "b", "log_prob": -1.0}],
    }


def test_an_answer_that_its_deadline_cut_says_so_unasked() -> None:
    answer = Answer("x", "timeout", 3, 2)
    assert json.loads(ask({"inputs": "a"}).render([answer]))["details"] == {"finish_reason": "timeout"}


PIECES = (
    Piece("é", (7,), ANSWER.logprobs[:1]),
    Piece("", (5, 6)),
    Piece("and\n", (8, 9)),
)


def test_streams_are_json_lines() -> None:
    parsed = ask({"inputs": "a", "stream": True})
    assert parsed.content_type == "application/jsonlines"
    sent = b"".join(parsed.stream_piece(0, p) for p in PIECES) + parsed.stream_end(0, ANSWER, Piece(".", (4,)))
    *tokens, last = lines(sent)
    assert "".join(t["token"]["text"] for t in tokens) == "éand\n"
    assert [t["token"].get("id") for t in tokens] == [7, 5, 6, 8, 9]
    assert last["token"] == {"id": 4, "text": "."}
    assert last["generated_text"] == "é\n"
    assert last["details"]["finish_reason"] == "eos_token"
    assert lines(ask({"inputs": "a", "stream": True}).stream_end(0, ANSWER))[0]["token"] == {"text": ""}
    assert parsed.stream_piece(0, Piece("")) == b""


@pytest.mark.parametrize("how", [{"accept": "text/event-stream"}, {"tgi_compat": True}])
def test_tgis_clients_get_events_with_tgis_names(how: dict) -> None:
    parsed = ask({"inputs": "a", "stream": True, "parameters": {"top_n_tokens": 2}}, **how)
    assert parsed.content_type == "text/event-stream"
    assert parsed.requests[0].parameters.logprobs == 2
    first, last = events(parsed.stream_piece(0, PIECES[0]) + parsed.stream_end(0, ANSWER))
    assert first["token"] == {"id": 7, "text": "é", "logprob": -0.5, "special": False}
    assert first["top_tokens"][0] == {"id": 7, "text": "é", "logprob": -0.5, "special": False}
    assert last["generated_text"] == "é\n"
    assert last["details"]["generated_tokens"] == 2


def test_a_stream_that_fails_ends_with_the_error() -> None:
    body = {"inputs": "a", "stream": True}
    assert lines(ask(body).stream_error(500, "lost"))[0] == {"error": "lost", "code": 500}
    event = events(ask(body, accept="text/event-stream").stream_error(500, "lost"))[0]
    assert event == {"error": "lost", "code": 500, "error_type": "generation"}


def test_tgis_clients_find_their_names_also_where_nothing_streams() -> None:
    parsed = ask({"inputs": "a", "parameters": {"details": True}}, accept="text/event-stream")
    assert parsed.content_type == "application/json"
    token = json.loads(parsed.render([ANSWER]))["details"]["tokens"][0]
    assert token == {"id": 7, "text": "é", "logprob": -0.5, "special": False}
    assert ask({"inputs": "a"}, accept="text/event-stream").requests[0].parameters.logprobs is None
