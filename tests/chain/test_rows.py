"""Rows by real tokenizers: tokenised once, one beginning, one end, loss where the answer is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chain.conftest import in_train_environment

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads(in_train_environment("-W", "ignore", "-m", "tests.chain.real_tokenizers"))


@pytest.mark.parametrize(
    ("name", "text", "loss"),
    [
        ("llama answer", "<s> Is it warm? Yes</s>", "Yes</s>"),
        ("llama joined", "<s> [INST] hello [/INST]hi there</s>", "hi there</s>"),
        ("llama emoji", "<s> Is it 😀? 日本 Yes</s>", "日本 Yes</s>"),
        ("llama text with bos", "<s> [INST] hello [/INST] hi there</s>", None),
        ("llama answer with ends", "<s> Is it warm? Yes</s>", "Yes</s>"),
        (
            "llama chat",
            "<s> [INST] Is it warm? [/INST] Yes </s><s> [INST] Is it cold? [/INST] No. </s>",
            "Yes </s> No. </s>",
        ),
        ("bytes answer", "Is it warm? Yes<|endoftext|>", "Yes<|endoftext|>"),
        ("bytes emoji", "Is it 😀?😀 Yes<|endoftext|>", "😀 Yes<|endoftext|>"),
        ("bytes text", "Is it warm?<|endoftext|>", None),
        (
            "bytes chat",
            "<|im_start|>user\nIs it warm?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\n"
            "Is it cold?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|><|endoftext|>",
            "Yes<|im_end|>No.<|im_end|><|endoftext|>",
        ),
        (
            "bytes alpaca",
            "<|im_start|>user\nIs it\nwarm?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|><|endoftext|>",
            "Yes<|im_end|><|endoftext|>",
        ),
    ],
)
def test_what_is_trained(facts: dict[str, Any], name: str, text: str, loss: str | None) -> None:
    assert facts[name]["text"] == text
    assert loss is None or facts[name]["loss"].strip() == loss


def test_the_first_token_of_an_answer_is_the_one_of_the_whole_text(facts: dict[str, Any]) -> None:
    """Tokenised apart, "hi" would be "▁hi", which never follows a prompt that does not end with a blank."""
    tokens = facts["llama joined"]["tokens"]
    answer = max(i for i, token in enumerate(tokens) if token.endswith("]")) + 1
    assert "".join(tokens[answer:]) == "hi▁there</s>"
    assert not any(token.startswith("▁h") for token in tokens[answer:])


@pytest.mark.parametrize("name", ["llama", "bytes"])
def test_a_sequence_begins_as_the_prompt_that_an_endpoint_gets(facts: dict[str, Any], name: str) -> None:
    prompt = facts[f"{name} prompt"]["tokens"]
    assert facts[f"{name} answer"]["tokens"][: len(prompt)] == prompt


def test_generation_has_to_stop_where_turns_end(facts: dict[str, Any]) -> None:
    assert facts["bytes chat"]["ends"] == ["<|endoftext|>", "<|im_end|>"]
    assert facts["bytes answer"]["ends"] == ["<|endoftext|>"]
    assert facts["llama chat"]["ends"] == ["</s>"]
