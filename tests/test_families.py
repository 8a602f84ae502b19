"""The table of what runs where, the checks of a model's config, and a run file's sizes against instances."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from containers import families
from containers.families import Dimensions
from harness.estimate import hardware, outlook
from harness.spec import endpoint_times, fit, stacks
from harness.spec.runfile import RunFile
from tests.families import table

STACK = stacks.get(stacks.DEFAULT)
LLAMA: dict[str, Any] = {
    **{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
    **{"num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048, "vocab_size": 32000},
    "hidden_act": "silu",
}


def serving(tp: int = 2, positions: int = 1024, **changed: Any) -> str:
    return "\n".join(families.serving_problems({**LLAMA, **changed}, tp_degree=tp, n_positions=positions))


# -- the table


def test_every_cell_says_what_showed_it_or_why_not() -> None:
    for name, row in families.families().items():
        assert set(row) == set(families.USES), name
        assert all(len(cell.why) > 10 for cell in row.values()), name


def test_only_what_was_run_is_in_it() -> None:
    """Each yes of the table is a recorded run; the recorded files are made by the real packages."""
    for name, row in families.families().items():
        assert row["train"].ok is (table.TRAINING[name]["trains"] and name not in table.BY_DATA), name
        for use, kind in (("train_tensor", "TP"), ("train_pipeline", "PP")):
            assert row[use].ok is table.CORES.get(f"{name}, {kind} 2", {"equal": False})["equal"], (name, use)
        found = table.SERVING[name]
        assert row["continuous_batching"].ok is (found["answers"] > 0 and found["answers"] == found["equal"]), name


def test_what_the_review_found_is_refused_with_the_reason() -> None:
    for model_type, why in {
        "qwen2": "does not know the family",
        "phi3": "does not know the family",
        "gemma2": "does not know the family",
        "gpt_neox": "in an older form",
        "gptj": "in an older form",
        "opt": "no prompt graph of one slot",
        "bloom": "no prompt graph of one slot",
        "gpt2": "copies each prompt of it into every slot",
    }.items():
        text = serving(model_type=model_type)
        assert f"a {model_type} model cannot be served" in text and why in text, text
        assert "these can: llama, mistral, mixtral" in text
    assert [serving(model_type=name) for name in ("llama", "mistral", "mixtral")] == [""] * 3


def test_a_family_that_nobody_tried_is_trained_with_a_line_and_never_cut_or_served() -> None:
    assert families.training_problems("brand_new") == []
    assert "has not been tried on stack sdk2.20" in families.unknown_family("brand_new")
    assert families.unknown_family("llama") == ""
    (text,) = families.training_problems("brand_new", tensor=2)
    assert "not in the table" in text and "llama" in text
    assert "not in the table" in serving(model_type="brand_new")


def test_tensor_parallelism_is_for_what_was_cut_and_compared() -> None:
    assert families.training_problems("llama", tensor=2) == []
    (text,) = families.training_problems("qwen2", tensor=2)
    assert "qwen2 model cannot be trained with tensor_parallel_size 2" in text and "these can: llama" in text


# -- what the serving library leaves out of its graphs without a word


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling yarn"),
        ({"model_type": "mistral", "rope_scaling": {"rope_type": "llama3"}}, "rope_scaling llama3"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"head_dim": 128}, "head_dim is 128, and its graphs take hidden_size / num_attention_heads, 64"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"model_type": "mistral", "sliding_window": 512}, "exceeds the model's attention window of 512"),
    ],
)
def test_what_would_give_wrong_answers_is_refused(changed: dict[str, Any], says: str) -> None:
    assert says in serving(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"attention_bias": False, "head_dim": 64},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 4096},
    ],
)
def test_what_its_graphs_hold_is_served(changed: dict[str, Any]) -> None:
    assert serving(**changed) == ""


def test_lengths_and_degrees() -> None:
    assert "n_positions 4096 exceeds the model's 2048 positions" in serving(positions=4096)
    assert "tp_degree 64 exceeds the model's 32 attention heads" in serving(tp=64)
    assert "3 and the model's 8 experts" in serving(tp=3, model_type="mixtral", num_local_experts=8)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [name for group in families.NAMES.values() for name in group] + ["model_type", "rope_scaling"]
)


@given(
    st.dictionaries(names | st.text(max_size=8), json_values, max_size=12), st.integers(1, 64), st.integers(1, 9000)
)
def test_any_config_is_judged_without_a_traceback(config: dict[str, Any], size: int, length: int) -> None:
    found = Dimensions.of(config)
    if all(value is None or value > 0 for value in (found.heads, found.kv_heads, found.hidden, found.experts)):
        families.serving_problems(config, tp_degree=size, n_positions=length)
        families.tensor_problems(found, size, True, length)
        families.pipeline_problems(found, size)


# -- a run file


def run_file(train: dict[str, Any] | None = None, serve: dict[str, Any] | None = None, **compute: Any) -> RunFile:
    raw = {"name": "r", "model": {"id": "a/b"}, "data": {"id": "c/d"}, "train": train or {}, "serve": serve or {}}
    return RunFile.model_validate({**raw, "compute": compute})


def said(run: RunFile, config: dict[str, Any] | None = None) -> str:
    return "\n".join(" | ".join(problem.lines()) for problem in fit.problems(run, STACK, config))


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (run_file(train_instance="ml.m5.large"), 'compute.train_instance = "ml.m5.large"'),
        (run_file(train_instance="ml.inf2.xlarge"), 'compute.train_instance = "ml.inf2.xlarge"'),
        (run_file(serve_instance="ml.g5.xlarge"), 'compute.serve_instance = "ml.g5.xlarge"'),
        (run_file({"tensor_parallel_size": 3}), "train.tensor_parallel_size is 3, and ml.trn1.2xlarge has 2"),
        (run_file({"tensor_parallel_size": 8}), "it stays within one host"),
        (
            run_file({"tensor_parallel_size": 8, "pipeline_parallel_size": 3}, train_instance="ml.trn1.32xlarge"),
            "the job's 32 NeuronCores are no multiple of it",
        ),
        (
            run_file({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, train_instance="ml.trn1.32xlarge"),
            "use 2 or 8",
        ),
        (run_file(serve={"tp_degree": 3}), "serve.tp_degree is 3, and ml.inf2.xlarge has 2"),
        (run_file(serve={"tp_degree": 6}, serve_instance="ml.inf2.24xlarge"), "use one of 1, 2, 4, 12"),
    ],
)
def test_sizes_are_held_against_instances_on_every_platform(run: RunFile, says: str) -> None:
    assert says in said(run), said(run)


def test_a_run_file_that_fits_says_nothing() -> None:
    assert said(run_file({"tensor_parallel_size": 2}, {"tp_degree": 2}), LLAMA) == ""
    large = {"train_instance": "ml.trn1.32xlarge", "train_instance_count": 2, "serve_instance": "ml.inf2.48xlarge"}
    assert said(run_file({"tensor_parallel_size": 8}, {"tp_degree": 8}, **large), {**LLAMA}) == ""


def test_the_model_is_held_against_rows_positions_and_the_stack() -> None:
    run = run_file({"tensor_parallel_size": 2, "block_size": 4096}, {"n_positions": 4096})
    text = said(run, {**LLAMA, "num_attention_heads": 33, "head_dim": None})
    assert "[train] tensor_parallel_size 2 does not divide the model's attention heads (33)" in text
    assert "[train] block_size 4096 exceeds the model's 2048 positions" in text
    assert "[serve] n_positions 4096 exceeds the model's 2048 positions" in text
    assert "[serve] a gpt2 model cannot be served" in said(run_file(), {**LLAMA, "model_type": "gpt2"})


def test_copies_of_a_model_on_an_instance() -> None:
    for instance, degree, copies in (("inf2.xlarge", 1, 2), ("inf2.xlarge", 2, 1), ("inf2.48xlarge", 1, 24)):
        subject = SimpleNamespace(serve_tp=degree)
        assert outlook.replicas(hardware.find(instance), subject) == copies  # type: ignore[arg-type]


def test_config_of_a_directory(tmp_path: Path) -> None:
    run = run_file()
    run = run.model_copy(update={"model": run.model.model_copy(update={"id": str(tmp_path)})})
    assert fit.config_of(run) is None
    (tmp_path / "config.json").write_text("[1]")
    assert fit.config_of(run) is None
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert fit.config_of(run) == LLAMA


def test_every_time_out_of_a_start_is_the_run_files() -> None:
    assert endpoint_times.environment(2400) == {"OPTION_MODEL_LOADING_TIMEOUT": "2400"}
    assert set(endpoint_times.variant(2400).values()) == {2400}
