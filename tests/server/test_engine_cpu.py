"""Engine `cpu` computes what transformers computes, for each kind of model, whatever shares its steps."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serve.engines.common import end_tokens, generation_config, repetition_penalty
from serve.options import OptionError
from tests.server.models import OURS, THEIRS

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("exactness")
    done = subprocess.run(
        [ROOT / ".venv-serve" / "bin" / "python", "-m", "tests.server.exactness", str(work)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((work / "found.json").read_text()) | {"work": str(work)}


@pytest.mark.server
@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_greedy_answers_in_fp32_are_those_of_transformers(found: Any, name: str) -> None:
    one = found[name]
    assert ("own forward pass" in one["engine"]) == (name in OURS), one["engine"]
    assert one["different"] == []
    assert one["answers"] >= 5, "a model that says the same to everything shows nothing"
    assert one["apart"] < 1e-5


@pytest.mark.server
def test_the_trainers_stack_says_the_same(found: Any) -> None:
    """What was evaluated in training is what is served: another transformers, the same tokens."""
    names = ["llama", "llama, grouped queries, tied", "llama, llama3", "mistral", "qwen2"]
    done = subprocess.run(
        [
            ROOT / ".venv-train" / "bin" / "python",
            "-m",
            "tests.server.greedy",
            Path(found["work"]) / "found.json",
            *names,
        ],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((Path(found["work"]) / "greedy.json").read_text())
    assert said.pop("transformers") == "4.48.1"
    assert said == {name: [] for name in names}


@pytest.mark.server
def test_what_our_own_forward_pass_does_not_know_is_said(found: Any) -> None:
    assert (
        "since our own does not know: sliding_window 24 below n_positions 160"
        in (found["mistral, sliding window"]["engine"])
    )
    assert "rope_scaling dynamic" in found["llama, dynamic"]["engine"]
    assert "every token reads the whole text again" in found["gemma2"]["engine"]


@pytest.mark.server
def test_bf16_chooses_as_fp32_does_more_often_than_transformers_in_bf16(found: Any) -> None:
    """On weights that make every rounding felt; SmolLM2's share is in benchmarks/serve.py."""
    ours, theirs = found["in bf16"]
    assert ours > max(theirs, 0.9)


@pytest.mark.server
def test_a_config_of_transformers_5_is_read_or_refused(found: Any) -> None:
    same, refused = found["rope_parameters"]
    assert same
    assert "config.json has rope_parameters, as transformers 5 writes it" in refused


def directory(folder: Path, generation: dict[str, Any] | None, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


class Tokenizer:
    eos_token_id = 9


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 3}, {1, 2}),
        ({}, {"eos_token_id": 3}, {3}),
        (None, {"eos_token_id": [3, 4]}, {3, 4}),
        (None, {"eos_token_id": None}, {9}),
    ],
)
def test_end_tokens_come_from_the_first_who_names_some(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], ends: set[int]
) -> None:
    assert end_tokens(directory(tmp_path, generation, config), Tokenizer()) == ends


def test_a_generation_config_is_applied_or_refused(tmp_path: Path) -> None:
    assert repetition_penalty(directory(tmp_path, {"repetition_penalty": 1.1, "temperature": 0.6}, {})) == 1.1
    harmless = {"num_beams": 1, "no_repeat_ngram_size": 0, "suppress_tokens": None, "bad_words_ids": []}
    assert generation_config(directory(tmp_path, harmless, {})) == harmless
    with pytest.raises(OptionError, match=r"no_repeat_ngram_size=3, num_beams=4, which this server does not apply"):
        generation_config(directory(tmp_path, {"num_beams": 4, "no_repeat_ngram_size": 3}, {}))
