"""Hyperparameters of AWS's lab and of a framework estimator, taken as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from containers import compatibility
from containers.contract import ContractError, Paths, TrainingInput, training_arguments

# As in the lab's notebook (fine-tuning TinyLlama with optimum-neuron on Trainium); values are strings by then.
LAB = {
    "model_name_or_path": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "dataset_name": "5cp/imdb_review_prompts",
    "output_dir": "/opt/ml/model",
    "do_train": "",
    "bf16": "",
    "disable_tqdm": "true",
    "per_device_train_batch_size": "1",
    "gradient_accumulation_steps": "8",
    "block_size": "150",
    "max_steps": "100",
    "logging_steps": "10",
    "tensor_parallel_size": "2",
    "use_fast_tokenizer": "true",
    "trust_remote_code": "false",
    "torch_dtype": "bfloat16",
    "streaming": "false",
    "preprocessing_num_workers": "4",
    "config_name": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "low_cpu_mem_usage": "true",
    "keep_linebreaks": "true",
    "sequence_parallel_enabled": "true",
}
KEPT = ("model_name_or_path", "dataset_name", "do_train", "bf16", "disable_tqdm", "block_size", "max_steps")
KEPT += ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "tensor_parallel_size")


def test_the_labs_own_are_taken_verbatim_with_a_line_for_each_without_effect() -> None:
    values, lines = compatibility.understood(LAB)
    assert values == {name: LAB[name] for name in KEPT}
    left_out = sorted(set(LAB) - set(KEPT))
    assert [line.split()[1] for line in lines] == left_out
    assert all("has no effect here: " in line and "\n" not in line for line in lines)


def test_they_reach_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = training_arguments(Paths(tmp_path), TrainingInput(LAB))
    assert argv[argv.index("--output_dir") + 1] == str(tmp_path / "checkpoints")
    assert "--use_fast_tokenizer" not in argv and "--bf16" in argv
    assert capsys.readouterr().out.count("entrypoint: hyperparameter") == len(LAB) - len(KEPT)


def test_another_output_dir_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="output_dir"):
        training_arguments(Paths(tmp_path), TrainingInput({"output_dir": "/tmp/x"}))


def test_an_estimators_are_json_and_have_keys_for_the_toolkit() -> None:
    values, lines = compatibility.understood(
        {
            "model_name_or_path": '"TinyLlama/TinyLlama-1.1B"',
            "max_steps": "100",
            "learning_rate": "5e-05",
            "bf16": "true",
            "do_train": '""',
            "sagemaker_program": '"run_clm.py"',
            "sagemaker_submit_directory": '"s3://bucket/source.tar.gz"',
            "sagemaker_container_log_level": "20",
            "sagemaker_job_name": '"job"',
            "sagemaker_region": '"us-west-2"',
        }
    )
    wanted = {"model_name_or_path": "TinyLlama/TinyLlama-1.1B", "max_steps": "100", "learning_rate": "5e-05"}
    assert values == {**wanted, "bf16": "true", "do_train": ""}
    assert len(lines) == 5
    assert (
        "hyperparameter sagemaker_program = 'run_clm.py' has no effect here: the image runs its own program" in lines
    )


def test_sequence_parallelism_off_keeps_its_meaning() -> None:
    values, _ = compatibility.understood({"sequence_parallel_enabled": "False"})
    assert values == {"disable_sequence_parallel": "true"}
    values, _ = compatibility.understood({"sequence_parallel_enabled": "true"})
    assert values == {}


def test_only_whole_json_strings_are_decoded() -> None:
    columns = '"{\\"prompt\\": \\"question\\"}"'
    given = {"data_columns": columns, "run_name": '"a', "seed": "7", "eval_steps": "null"}
    values, lines = compatibility.understood(given)
    assert values == {"data_columns": '{"prompt": "question"}', "run_name": '"a', "seed": "7"}
    assert lines == ["hyperparameter eval_steps = 'null' has no effect here: null stands for the default"]


def test_keys_of_a_tuning_job_are_left_out() -> None:
    assert compatibility.understood({"_tuning_objective_metric": '"loss"'})[0] == {}


def test_a_configuration_of_another_model_is_not_passed_over() -> None:
    values, lines = compatibility.understood({"model_name_or_path": "a/b", "config_name": "c/d"})
    assert values == {"model_name_or_path": "a/b", "config_name": "c/d"} and lines == []


@given(st.dictionaries(st.text(max_size=20) | st.sampled_from([*LAB, "sagemaker_program"]), st.text(max_size=20)))
def test_nothing_gets_lost_without_a_line(hyperparameters: dict[str, str]) -> None:
    values, lines = compatibility.understood(hyperparameters)
    added = {"disable_sequence_parallel"} - set(hyperparameters)
    assert len(set(values) - added) + len(lines) == len(hyperparameters)
