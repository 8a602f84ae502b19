"""Shapes and parameter counts: exact against the published ones, and clear about what config.json lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from harness.errors import InvalidInput
from harness.estimate import models
from harness.estimate.architecture import FAMILIES, from_config

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "intermediate_size": 128,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("model", models.known().values(), ids=lambda m: m.id)
def test_the_count_is_the_published_one(model: models.KnownModel) -> None:
    assert model.architecture.parameters == model.published
    assert model.source.startswith(("mlc-ai/", "Lightning-AI/", "huggingface/"))
    assert model.licence
    assert model.published_source.startswith("https://")


def test_at_least_twenty_models_are_carried_under_names_of_their_own() -> None:
    every = [name.lower() for m in models.known().values() for name in (m.id, *m.aliases)]
    assert len(models.known()) >= 20
    assert len(set(every)) == len(every)


def test_the_labs_model_is_known_by_the_name_in_its_run_file() -> None:
    found = models.find("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T")
    assert found is not None
    assert found.architecture.kv_heads == 4
    assert models.find("somebody/else") is None


def test_a_count_by_hand() -> None:
    arch = from_config(TINY)
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    mlp = 3 * 64 * 128
    assert arch.parameters == 2 * (attention + mlp + 2 * 64) + 2 * 100 * 64 + 64
    assert arch.lora_parameters(8, ("q_proj",)) == 2 * 8 * (64 + 64)


def test_experts_count_once_each_and_only_the_chosen_ones_are_active() -> None:
    dense, moe = from_config(TINY), from_config({**TINY, "num_local_experts": 4, "num_experts_per_tok": 1})
    assert moe.parameters - dense.parameters == 2 * (3 * 3 * 64 * 128 + 4 * 64)
    assert moe.active_parameters == dense.parameters + 2 * 4 * 64


def test_an_unknown_family_is_said_to_be_one() -> None:
    assert not from_config({**TINY, "model_type": "brandnew"}).known
    assert all(from_config({**TINY, "model_type": kind}).known for kind in FAMILIES)


def test_a_config_that_keeps_its_decoder_under_text_config() -> None:
    assert from_config({"model_type": "outer", "text_config": TINY}).hidden == 64


@pytest.mark.parametrize("value", [None, 0, -1, "64", 1.5, True])
def test_a_missing_or_impossible_number_is_named(value: object) -> None:
    with pytest.raises(InvalidInput, match="hidden_size"):
        from_config({**TINY, "hidden_size": value})


@given(
    st.dictionaries(
        st.sampled_from(sorted(TINY)), st.one_of(st.none(), st.integers(-5, 5000), st.text(max_size=5), st.booleans())
    )
)
def test_any_config_is_read_or_refused(changes: dict[str, object]) -> None:
    try:
        arch = from_config({**TINY, **changes})
    except InvalidInput:
        return
    assert arch.parameters > 0


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\ufeff{}"])
def test_a_directory_whose_config_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput):
        models.of_directory(tmp_path)


def test_a_directory_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    found = models.architecture_of(str(tmp_path))
    assert found is not None
    assert found[0].layers == 2
