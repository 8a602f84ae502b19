"""The protocols on a whole endpoint: entrypoint, DJL's front, rolling batch, engine cpu, a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.chain.conftest import tiny_model
from tests.protocols.hostile import REQUESTS
from tests.protocols.support import events, lines
from tests.server.endpoint import Endpoint

__all__ = ["tiny_model"]  # a fixture
pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
PROMPT = "red green blue: warm or cold?"


@pytest.fixture(scope="module")
def endpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    model = tmp_path_factory.mktemp("requests") / "model"
    shutil.copytree(tiny_model, model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    options = {"OPTION_N_POSITIONS": "128", "OPTION_MAX_BATCH_SIZE": "4", "OPTION_DTYPE": "fp32"}
    with Endpoint(model, {"NEURON_HARNESS_DEVICE": "cpu", **options}) as started:
        yield started


def ask(endpoint: Endpoint, status: int = 200, accept: str = "", **body: Any) -> Any:
    """The JSON of an answer, or the bytes of a stream."""
    headers = {"Accept": accept} if accept else {}
    answer = endpoint.request("POST", "/invocations", json.dumps(body).encode(), **headers)
    assert answer.status == status, answer.body
    return answer.body if body.get("stream") else answer.json()


def test_every_hostile_request_gets_its_status_and_the_endpoint_is_as_before(endpoint: Endpoint) -> None:
    before = ask(endpoint, inputs=PROMPT, parameters={"max_new_tokens": 8})
    for hostile in REQUESTS:
        answer = endpoint.request("POST", "/invocations", hostile.body, **{"Content-Type": hostile.content_type})
        assert answer.status == hostile.status, (hostile.name, answer.body[:300])
        if hostile.status != 200:
            said = answer.json()
            assert said["code"] == hostile.status, hostile.name
            assert said["error"].isprintable(), hostile.name
    assert endpoint.ping() == 200
    assert ask(endpoint, inputs=PROMPT, parameters={"max_new_tokens": 8}) == before
    assert "Traceback" not in endpoint.log()


def test_a_bad_request_touches_nobody_else(endpoint: Endpoint) -> None:
    good = {"inputs": PROMPT, "parameters": {"max_new_tokens": 40}}
    alone = ask(endpoint, **good)

    def one(i: int) -> Any:
        if i % 2:
            return ask(endpoint, 400, inputs=PROMPT, parameters={"top_p": 3, "stop": 5})["error"]
        return ask(endpoint, **good)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(16)))
    assert all(answer == alone for answer in answers[::2])
    assert all("parameters.top_p" in error and "parameters.stop" in error for error in answers[1::2])


def test_lmi_details_are_true(endpoint: Endpoint) -> None:
    parameters = {"max_new_tokens": 6, "details": True, "decoder_input_details": True, "top_n_tokens": 3}
    answer = ask(endpoint, inputs=PROMPT, parameters=parameters)
    details = answer["details"]
    assert details["generated_tokens"] == len(details["tokens"]) <= 6
    assert details["prompt_tokens"] == len(details["prefill"]) > 3
    assert "".join(t["text"] for t in details["prefill"]) == PROMPT
    assert "log_prob" not in details["prefill"][0]
    assert all(t["log_prob"] <= 0 for t in details["tokens"] + details["prefill"][1:])
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert len(top) == 3
        assert top[0]["id"] == token["id"]  # greedy
        assert [t["log_prob"] for t in top] == sorted((t["log_prob"] for t in top), reverse=True)
    assert ask(endpoint, inputs=[PROMPT, "No."], parameters={"max_new_tokens": 6})[0] == {
        "generated_text": answer["generated_text"]
    }


@pytest.mark.parametrize("accept", ["", "text/event-stream"])
def test_streams_say_what_the_whole_answer_says(endpoint: Endpoint, accept: str) -> None:
    parameters = {"max_new_tokens": 20}
    whole = ask(endpoint, inputs=PROMPT, parameters=parameters)["generated_text"]
    sent = ask(endpoint, accept=accept, inputs=PROMPT, parameters=parameters, stream=True)
    rows = events(sent) if accept else lines(sent)
    assert "".join(row["token"]["text"] for row in rows) == whole == rows[-1]["generated_text"]
    assert rows[-1]["details"]["finish_reason"] in ("length", "eos_token")
    assert ("logprob" in rows[0]["token"]) is bool(accept)


def test_stop_texts_end_the_answer_and_are_never_streamed(endpoint: Endpoint) -> None:
    whole = ask(endpoint, inputs=PROMPT, parameters={"max_new_tokens": 60})["generated_text"]
    stop = whole[len(whole) // 2 :][:3]
    wanted = whole[: whole.index(stop)]
    for field in ("stop", "stop_sequences"):
        parameters = {"max_new_tokens": 60, field: [stop], "details": True}
        answer = ask(endpoint, inputs=PROMPT, parameters=parameters)
        assert (answer["generated_text"], answer["details"]["finish_reason"]) == (wanted, "stop_sequence")
        rows = lines(ask(endpoint, inputs=PROMPT, parameters=parameters, stream=True))
        assert "".join(row["token"]["text"] for row in rows) == wanted


def test_no_length_means_what_fits(endpoint: Endpoint) -> None:
    parameters = {"details": True, "ignore_eos_token": True}
    details = ask(endpoint, inputs=PROMPT, parameters=parameters)["details"]
    assert details["prompt_tokens"] + details["generated_tokens"] == 128
    assert details["finish_reason"] == "length"


def test_chat_is_the_template_and_its_usage_is_true(endpoint: Endpoint) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "red green blue"}]
    chat = ask(endpoint, messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2, n=2)
    text = "system: a\nuser: red green blue\nassistant:"
    raw = ask(endpoint, inputs=text, parameters={"max_new_tokens": 8, "details": True})
    assert [c["message"]["content"] for c in chat["choices"]] == [raw["generated_text"]] * 2
    made = raw["details"]["generated_tokens"]
    prompt = raw["details"]["prompt_tokens"]
    assert chat["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 2 * made,
        "total_tokens": prompt + 2 * made,
    }
    assert len(chat["choices"][0]["logprobs"]["content"]) == made
    refused = ask(endpoint, 422, messages=[messages[1], messages[0]])
    assert "system comes first" in refused["error"]


def test_a_chat_stream_is_events_with_usage(endpoint: Endpoint) -> None:
    body = {"messages": [{"role": "user", "content": "red"}], "max_tokens": 8, "temperature": 0, "n": 2}
    whole = ask(endpoint, **body)
    *chunks, usage, done = events(ask(endpoint, **body, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert usage["usage"] == whole["usage"]
    for i in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == i]
        assert "".join(c["delta"].get("content", "") for c in mine) == whole["choices"][i]["message"]["content"]
        assert [c["finish_reason"] for c in mine][-1] == whole["choices"][i]["finish_reason"]


def test_completions_echo_with_logprobs_is_one_reading_of_the_whole(endpoint: Endpoint) -> None:
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "echo": True, "logprobs": 1}
    choice = ask(endpoint, **body)["choices"][0]
    assert choice["text"].startswith(PROMPT)
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:i])) for i in range(len(logprobs["tokens"]))]
    # Read again as a prompt, the same tokens have the same log probabilities.
    again = ask(endpoint, **{**body, "prompt": choice["text"], "max_tokens": 1})["choices"][0]["logprobs"]
    assert again["tokens"][: len(logprobs["tokens"])] == logprobs["tokens"]
    for ours, theirs in zip(logprobs["token_logprobs"][1:], again["token_logprobs"][1:], strict=False):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_token_ids_are_a_prompt(endpoint: Endpoint) -> None:
    details = ask(endpoint, inputs=PROMPT, parameters={"max_new_tokens": 1, "decoder_input_details": True})["details"]
    ids = [token["id"] for token in details["prefill"]]
    greedy = {"max_tokens": 8, "temperature": 0}
    assert (
        ask(endpoint, prompt=ids, **greedy)["choices"][0]["text"]
        == ask(endpoint, prompt=PROMPT, **greedy)["choices"][0]["text"]
    )


def test_a_seed_gives_the_same_answer_alone_and_in_company(endpoint: Endpoint) -> None:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 1.5, "seed": 7}
    alone = ask(endpoint, **body)["choices"][0]["text"]
    three = [c["text"] for c in ask(endpoint, **body, n=3)["choices"]]
    assert three[0] == alone
    assert len(set(three)) > 1  # each its own seed
    assert three[1] == ask(endpoint, **{**body, "seed": 8})["choices"][0]["text"]


def test_bias_and_penalties_reach_the_tokens(endpoint: Endpoint) -> None:
    forced = ask(endpoint, prompt="red", max_tokens=5, temperature=0, logit_bias={"65": 100}, ignore_eos=True)
    details = ask(endpoint, inputs="red", parameters={"max_new_tokens": 1, "details": True})["details"]
    assert len(set(forced["choices"][0]["text"])) == 1
    assert details["tokens"][0]["text"] != forced["choices"][0]["text"][0]
    body = {"prompt": "red", "max_tokens": 30, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    plain = ask(endpoint, **body)["choices"][0]["logprobs"]["tokens"]
    varied = ask(endpoint, **body, frequency_penalty=2, presence_penalty=2)["choices"][0]["logprobs"]["tokens"]
    assert len(set(varied)) > len(set(plain))


def test_what_does_not_fit_is_422_after_tokenising(endpoint: Endpoint) -> None:
    said = ask(endpoint, 422, inputs="warm or cold? " * 40)["error"]
    assert "n_positions" in said or "128" in said
    said = ask(endpoint, 422, inputs=[PROMPT] * 5)["error"]
    assert "max_batch_size is 4" in said
