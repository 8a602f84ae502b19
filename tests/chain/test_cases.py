"""Model directories and data of public reports, trained or refused by the real trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chain.conftest import in_train_environment

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cases(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cases")
    out = in_train_environment("-W", "ignore", "-m", "tests.chain.cases", str(tiny_model), str(folder), timeout=500)
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("genconfig-sampling", "generation: generation_config.json has sampling values without do_sample"),
        ("eos-differs", "generation: end tokens are now <eos> (1), <|im_end|> (291)"),
        ("no-eos-in-config", "generation: end tokens are now <eos> (1)"),
        ("missing-weights-allowed", "artifact written"),
        ("learned-positions", "generation: end tokens are now <eos> (1): training ends answers with them"),
        ("hub-cache", "artifact written"),
        ("chatml", "train: 16 examples of format messages"),
        ("jinja beside", "  loss    'Yes<eos>'"),
        ("directory", "train: 48 examples of format prompt_completion"),
        ("hub", "train: columns that are not used: label"),
        ("hub-chats", "train: 9 examples of format messages"),
    ],
)
def test_what_is_trained(cases: dict[str, Any], name: str, said: str) -> None:
    assert cases[name]["code"] == (0 if name != "learned-positions" else 3), cases[name]
    assert said in cases[name]["output"], cases[name]["output"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rope-parameters", "rope_parameters is not understood: written by transformers 5; transformers 4.48.1"),
        ("missing-weights", "1 of 21 weights are in none of its files: model.norm.weight: they would be random"),
        ("ids-outside", "eos_token <|im_end|> is not in the model: it has id 291"),
        ("learned-positions", "packing is not shown to be right for model type gpt2"),
        ("chat without a template", "chats.jsonl line 1: a chat needs a chat template, and the model has none"),
        ("hub-null", "hub row 2: text is null; it must be text"),
        ("hub-chats-in-text", "hub row 1: text must be text, not a list of messages; name the column: messages"),
        ("hub-label", "the row has label"),
        ("short-corpus", "tokens, one block needs 64"),
    ],
)
def test_what_is_refused_is_one_line_before_anything_is_trained(cases: dict[str, Any], name: str, said: str) -> None:
    assert cases[name]["code"] == 3, cases[name]
    assert said in cases[name]["output"], cases[name]["output"]
    assert "starting at step" not in cases[name]["output"]
    assert cases[name]["left"] == {}


def test_the_artifact_ends_with_what_training_ended_with(cases: dict[str, Any]) -> None:
    left = {name: case["left"].get("generation_config.json", {}) for name, case in cases.items()}
    assert (
        left["genconfig-sampling"] | {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1}
        == (left["genconfig-sampling"])
    )
    assert left["eos-differs"]["eos_token_id"] == [1, 291]
    assert left["no-eos-in-config"]["eos_token_id"] == 1
    assert cases["no-eos-in-config"]["left"]["config.json"]["eos_token_id"] == 1


def test_the_artifact_has_the_template_that_it_was_trained_with(cases: dict[str, Any]) -> None:
    for name, part in (("chatml", "<|im_start|>"), ("jinja beside", "{{ m.content }}<eos>")):
        assert part in cases[name]["left"]["tokenizer_config.json"]["chat_template"]
