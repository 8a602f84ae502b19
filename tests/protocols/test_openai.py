"""OpenAI's chat completions and completions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from serve.request import Answer, Parameters, Piece, TokenLogprob
from tests.protocols.support import ask, events, lines, refused

HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": "hi"}, "messages: must be an array"),
        ({"messages": ["hi"]}, "messages[0]: must be an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: missing"),
        ({"messages": [{"content": "a"}]}, "messages[0].role: missing"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role: must be 'system'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text goes in and out"),
        ({"messages": [{"role": "user", "content": []}]}, "must be a text or a list"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]}, "tool calls"),
        ({"messages": HELLO, "max_token": 3}, 'did you mean "max_tokens"?'),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens: must be greater"),
        ({"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}, "newer name of max_tokens"),
        ({"messages": HELLO, "temperature": 2.5}, "temperature: must be less"),
        ({"messages": HELLO, "n": 0}, "n: must be greater"),
        ({"messages": HELLO, "stream": "true"}, "stream: must be a valid boolean"),
        ({"messages": HELLO, "stream_options": {"include_usage": True}}, "only with stream true"),
        ({"messages": HELLO, "stream": True, "stream_options": {"x": 1}}, "stream_options.x: not known"),
        ({"messages": HELLO, "stream": True, "stream_options": 1}, "stream_options: must be an object"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs: only with logprobs true"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "less than or equal to 20"),
        ({"messages": HELLO, "logprobs": 1}, "logprobs: must be a valid boolean"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias: key 'x' must match pattern"),
        ({"messages": HELLO, "logit_bias": {"-1": 1}}, "logit_bias: key '-1' must match"),
        ({"messages": HELLO, "logit_bias": {"5": 101}}, "logit_bias.5: must be less than or equal to 100"),
        ({"messages": HELLO, "logit_bias": [5]}, "logit_bias: must be an object"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format: constrained answers"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools: tool calls are not supported"),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice: tool calls"),
        ({"messages": HELLO, "functions": [{}]}, "functions: tool calls"),
        ({"messages": HELLO, "modalities": ["text", "audio"]}, "modalities: only text"),
        ({"messages": HELLO, "store": True}, "store: nothing is stored"),
        ({"messages": HELLO, "reasoning_effort": "low"}, "reasoning_effort: not supported"),
        ({"prompt": ""}, "prompt: must be a text"),
        ({"prompt": []}, "prompt: must be a text"),
        ({"prompt": ["a", [1]]}, "prompt: must be a text"),
        ({"prompt": [1, True]}, "prompt: must be a text"),
        ({"prompt": [1, -1]}, "prompt: must be a text"),
        ({"prompt": [[1], []]}, "prompt: must be a text"),
        ({"prompt": "a", "suffix": "b"}, "suffix: text is continued"),
        ({"prompt": "a", "logprobs": 21}, "logprobs: must be less"),
        ({"prompt": "a", "logprobs": True}, "logprobs: must be a valid integer"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens: must be greater"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "echo: not with logprobs and stream"),
        ({"prompt": "a", "messages": HELLO}, "it has messages and prompt"),
    ],
)
def test_what_is_not_understood_is_refused(body: object, said: str) -> None:
    assert said in "; ".join(refused(body))


def test_all_problems_of_a_request_are_told_at_once() -> None:
    body = {
        "messages": [{"role": "x", "content": 1}],
        "tools": [{}],
        "logit_bias": {"x": 1},
        "top_logprobs": 1,
        "n": 0,
        "y": 1,
    }
    fields = {p.partition(":")[0] for p in refused(body)}
    wanted = {"messages[0].role", "messages[0].content", "tools", "logit_bias", "top_logprobs", "n", "y"}
    assert fields == wanted


def test_limits_are_told_beside_what_is_malformed() -> None:
    problems = refused({"messages": [*HELLO, *HELLO], "n": 9, "stream_options": {}, "logit_bias": {"5000": 1}})
    assert [p.partition(":")[0] for p in problems] == ["stream_options", "messages", "n", "logit_bias"]


def test_the_models_template_makes_the_prompt() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        # As openai's own message objects are sent back.
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": [], "audio": None},
        {"role": "user", "content": ""},
    ]
    (request,) = ask({"messages": messages}).requests
    assert request.text == "<system>be brief\n<user>a\nb\n<assistant>c\n<user>\n<assistant>"
    assert not request.add_special_tokens  # the template has put them in


def test_a_model_without_a_template_says_what_to_send_instead() -> None:
    assert refused({"messages": HELLO}, 422, chat_template=None) == [
        "messages: this model has no chat template; send `prompt` or `inputs`"
    ]


def test_defaults_are_openais() -> None:
    sampled = Parameters(do_sample=True)
    assert ask({"messages": HELLO}).requests[0].parameters == sampled
    assert ask({"prompt": "a"}).requests[0].parameters == replace(sampled, max_new_tokens=16)
    nothing = ("temperature", "n", "stop", "logit_bias", "tools", "response_format", "max_tokens", "stream_options")
    assert ask({"messages": HELLO, **dict.fromkeys(nothing)}).requests == ask({"messages": HELLO}).requests


def test_every_parameter_arrives() -> None:
    body = {
        "model": "anything",
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "stop": "x",
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.5,
        "logit_bias": {"0": -100, "999": 1.5},
        "seed": -5,
        "ignore_eos": True,
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
    }
    wanted = Parameters(
        do_sample=False,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias=((0, -100.0), (999, 1.5)),
        seed=-5,
        stop=("x",),
        ignore_eos=True,
    )
    chat = {"messages": HELLO, "max_completion_tokens": 7, "logprobs": True, "top_logprobs": 2, "tool_choice": "none"}
    assert ask({**body, **chat}).requests[0].parameters == replace(wanted, max_new_tokens=7, logprobs=2)
    text = {"prompt": "a", "max_tokens": 7, "logprobs": 0, "echo": True, "best_of": 1}
    assert ask({**body, **text}).requests[0].parameters == replace(
        wanted, max_new_tokens=7, logprobs=0, prompt_logprobs=True
    )


def test_several_prompts_and_answers_are_one_request_each() -> None:
    requests = ask({"prompt": ["a", "b"], "n": 2, "seed": 5}).requests
    assert [(r.text, r.parameters.seed) for r in requests] == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    assert [r.token_ids for r in ask({"prompt": [[1, 2], [3]]}).requests] == [(1, 2), (3,)]
    assert ask({"prompt": [1, 2]}).requests[0].token_ids == (1, 2)
    assert [r.token_ids for r in ask({"prompt": [[1.0, 2], [3.0]]}).requests] == [(1, 2), (3,)]
    assert len(ask({"messages": HELLO, "n": 3}).requests) == 3


def test_limits_of_the_endpoint_are_422() -> None:
    assert "roles must alternate" in refused({"messages": [*HELLO, *HELLO]}, 422)[0]
    assert "no token id of this model (0 to 999)" in refused({"messages": HELLO, "logit_bias": {"1000": 1}}, 422)[0]
    assert refused({"prompt": [[1], [1000]]}, 422) == ["prompt[1]: token ids of this model end at 999"]
    assert refused({"prompt": "a", "best_of": 2}, 422) == ["best_of: must equal n; every answer is returned"]
    assert "prompt times n: 9 sequences; max_batch_size is 8" in refused({"prompt": ["a"] * 3, "n": 3}, 422)[0]
    assert "n: 9 sequences" in refused({"messages": HELLO, "n": 9}, 422)[0]
    assert "prompt: 129 tokens; n_positions is 128" in refused({"prompt": [1] * 129}, 422)
    assert "messages: " in refused({"messages": [{"role": "user", "content": "a" * 200}]}, 422, longest_token=1)[0]
    assert refused({"prompt": "a", "echo": True, "logprobs": 1}, 422, prompt_logprobs="not compiled") == [
        "logprobs: not compiled"
    ]
    assert "echo" in refused({"prompt": [1], "echo": True}, 422, decode=None)[0]


ONE = TokenLogprob(7, "é", -0.5, ((7, "é", -0.5), (8, "x", float("-inf"))))
TWO = TokenLogprob(9, "\ufffd", -0.25, ((1, "y", -0.1), (9, "\ufffd", -0.25)))
ANSWER = Answer("é!", "stop_sequence", 3, 2, (ONE, TWO))
LATE = Answer("z", "timeout", 3, 4)


def test_chat_completions_have_openais_shape() -> None:
    parsed = ask({"messages": HELLO, "n": 2, "model": "m", "logprobs": True, "top_logprobs": 2})
    answer = json.loads(parsed.render([ANSWER, LATE]))
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "m"
    assert answer["id"].startswith("chatcmpl-")
    first, second = answer["choices"]
    assert first["message"] == {"role": "assistant", "content": "é!"}
    assert (first["index"], first["finish_reason"]) == (0, "stop")
    assert first["logprobs"]["content"][0] == {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [
            {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
            {"token": "x", "logprob": -9999.0, "bytes": [120]},
        ],
    }
    assert first["logprobs"]["content"][1]["bytes"] is None
    assert (second["finish_reason"], second["stop_reason"]) == ("length", "timeout")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    plain = json.loads(ask({"messages": HELLO}).render([LATE]))
    assert plain["choices"][0]["logprobs"] is None
    assert plain["model"] == "model"


def test_completions_have_openais_shape() -> None:
    parsed = ask({"prompt": ["a", "b"], "n": 2, "logprobs": 1})
    answer = json.loads(parsed.render([ANSWER, LATE, ANSWER, LATE]))
    assert answer["object"] == "text_completion"
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["text"] == "é!"
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["é", "\ufffd"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"é": -0.5, "x": -9999.0}, {"y": -0.1, "\ufffd": -0.25}],
        "text_offset": [0, 1],
    }
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}


def test_echo_puts_the_prompt_and_its_tokens_first() -> None:
    prompt = (TokenLogprob(1, "ab", None), TokenLogprob(2, "c", -1.0, ((3, "d", -0.5),)))
    parsed = ask({"prompt": "abc", "echo": True, "logprobs": 1})
    choice = json.loads(parsed.render([replace(ANSWER, prompt_logprobs=prompt)]))["choices"][0]
    assert choice["text"] == "abcé!"
    assert choice["logprobs"]["tokens"] == ["ab", "c", "é", "\ufffd"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -0.5, -0.25]
    assert choice["logprobs"]["top_logprobs"][:2] == [None, {"d": -0.5, "c": -1.0}]
    assert choice["logprobs"]["text_offset"] == [0, 2, 3, 4]
    assert json.loads(ask({"prompt": [1, 2], "echo": True}).render([LATE]))["choices"][0]["text"] == "[1][2]z"


def test_a_chat_stream_is_deltas_usage_and_done() -> None:
    parsed = ask({"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}, "n": 2, "model": "m"})
    assert parsed.content_type == "text/event-stream"
    sent = parsed.stream_piece(0, Piece("é", (7,)))
    assert parsed.stream_piece(0, Piece("", (7,))) == b""
    sent += parsed.stream_piece(1, Piece("z"))
    sent += parsed.stream_end(1, LATE)
    assert b"[DONE]" not in sent  # the other answer goes on
    sent += parsed.stream_end(0, ANSWER, Piece("!"))
    *chunks, usage, done = events(sent)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert all(c["usage"] is None and c["object"] == "chat.completion.chunk" and c["model"] == "m" for c in chunks)
    assert len({c["id"] for c in [*chunks, usage]}) == 1
    choices = [c["choices"][0] for c in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": "é"}
    assert choices[1]["delta"] == {"role": "assistant", "content": "z"}
    assert (choices[2]["delta"], choices[2]["finish_reason"], choices[2]["stop_reason"]) == ({}, "length", "timeout")
    assert (choices[3]["delta"], choices[3]["finish_reason"]) == ({"content": "!"}, "stop")
    assert "usage" not in events(ask({"messages": HELLO, "stream": True}).stream_end(0, LATE))[0]


def test_a_chat_stream_carries_logprobs_also_of_tokens_without_text_yet() -> None:
    parsed = ask({"messages": HELLO, "stream": True, "logprobs": True})
    (chunk,) = events(parsed.stream_piece(0, Piece("", (9,), (TWO,))))
    assert [t["token"] for t in chunk["choices"][0]["logprobs"]["content"]] == ["\ufffd"]


def test_a_completions_stream_counts_its_offsets_on() -> None:
    parsed = ask({"prompt": "ab", "stream": True, "logprobs": 1})
    sent = parsed.stream_piece(0, Piece("é", (7,), (ONE,))) + parsed.stream_end(0, ANSWER, Piece("!", (9,), (TWO,)))
    first, second, done = events(sent)
    assert done == "[DONE]"
    assert first["choices"][0]["logprobs"]["text_offset"] == [0]
    assert second["choices"][0]["logprobs"]["text_offset"] == [1]
    echoed = ask({"prompt": "ab", "stream": True, "echo": True})
    texts = [
        e["choices"][0]["text"]
        for e in events(echoed.stream_piece(0, Piece("c")) + echoed.stream_piece(0, Piece("d")))
    ]
    assert texts == ["abc", "d"]


def test_json_lines_where_asked_for() -> None:
    parsed = ask({"messages": HELLO, "stream": True}, accept="application/jsonlines")
    assert parsed.content_type == "application/jsonlines"
    chunks = lines(parsed.stream_piece(0, Piece("a")) + parsed.stream_end(0, LATE))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_stream_that_fails_ends_with_openais_error() -> None:
    error, done = events(ask({"messages": HELLO, "stream": True}).stream_error(500, "lost: all"))
    assert error == {"error": {"message": "lost: all", "type": "server_error", "param": None, "code": None}}
    assert done == "[DONE]"
    error, _ = events(ask({"messages": HELLO, "stream": True}).stream_error(422, "messages[0]: too long"))
    assert error["error"]["param"] == "messages[0]"
    assert error["error"]["type"] == "invalid_request_error"
