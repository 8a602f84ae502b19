"""containers/hyperparameters.py: what is wrong with a flag is one line, in `plan` and in the job alike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from containers import hyperparameters
from harness.spec.stacks import train_options

OPTIONS = train_options("sdk2.20")


def found(values: dict[str, Any], has_validation: bool | None = True) -> list[str]:
    return [str(finding) for finding in hyperparameters.check(values, OPTIONS, has_validation)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"lr_scheduler_type": "cosin"},
            'lr_scheduler_type = "cosin" is not a valid choice (did you mean "cosine"?)',
        ),
        ({"lr_scheduler_type": "polynom"}, 'did you mean "polynomial"?'),
        ({"eval_strategy": "step"}, 'did you mean "steps"?'),
        ({"eval_strategy": "never"}, "one of no, steps, epoch"),
        ({"save_strategy": "epochs"}, 'did you mean "epoch"?'),
        ({"train_on": "prompts"}, "one of completions, all"),
        ({"too_long": "cut"}, "one of drop, truncate"),
        ({"half_precision_backend": "apex"}, "one of xla, amp"),
        ({"neuron_cc_optlevel": 4}, "one of 1, 2, 3"),
        ({"optim": "adamw"}, 'optim = "adamw" is not a valid choice'),
        ({"optim": "paged_adamw_8bit"}, "it needs a package or a kernel that the training image lacks"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: must be a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate = inf: must be a finite number"),
        ({"learning_rate": -1e-5}, "learning_rate = -1e-05: must be 0 or more"),
        ({"weight_decay": float("-inf")}, "weight_decay = -inf: must be a finite number"),
        ({"max_train_samples": -1}, "max_train_samples = -1: must be 1 or more"),
        ({"max_eval_samples": 0}, "max_eval_samples = 0: must be 1 or more"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size = 0: must be 1 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps = 0: must be 1 or more"),
        ({"block_size": 0}, "block_size = 0: must be 2 or more"),
        ({"max_steps": 0}, "max_steps = 0: must be 1 or more, or -1 for no limit"),
        ({"num_train_epochs": 0}, "num_train_epochs = 0: must be above 0"),
        ({"num_train_epochs": -3.0}, "num_train_epochs = -3.0: must be above 0"),
        ({"warmup_ratio": 1.5}, "warmup_ratio = 1.5: must be between 0 and 1"),
        ({"warmup_steps": -1}, "warmup_steps = -1: must be 0 or more"),
        ({"adam_beta2": 1.0}, "adam_beta2 = 1.0: must be 0 or more and below 1"),
        ({"label_smoothing_factor": 1}, "label_smoothing_factor = 1: must be 0 or more and below 1"),
        ({"logging_steps": 0}, "logging_steps = 0: must be 1 or more, or a share of all steps below 1"),
        ({"save_steps": 2.5}, "save_steps = 2.5: must be 1 or more, or a share"),
        ({"save_total_limit": 0}, "save_total_limit = 0: must be 1 or more"),
        ({"seed": -1}, "seed = -1: must be between 0 and 4294967295"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size = 0: must be 1 or more"),
        ({"pipeline_parallel_num_microbatches": 0}, "must be 1 or more, or -1 for no limit"),
        ({"validation_split_percentage": 90}, "must be between 1 and 50"),
        ({"fp16": True}, "use bf16, which Trainium is made for"),
        ({"deepspeed": "ds.json"}, "it is for GPUs"),
        ({"fsdp": "full_shard"}, "it is for GPUs"),
        ({"push_to_hub": True}, "the job ends with an artifact in S3"),
        ({"auto_find_batch_size": True}, "every batch size is a graph of its own"),
        ({"do_predict": True}, "the trainer does not predict"),
        ({"do_train": False}, "the trainer trains"),
        ({"async_save": True}, "goes on training before a checkpoint's files are written"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "needs eval_strategy"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps"},
            'eval_strategy "no" is not save_strategy "steps"',
        ),
        (
            {
                "load_best_model_at_end": True,
                "save_strategy": "steps",
                "eval_strategy": "steps",
                "eval_steps": 100,
                "save_steps": 150,
            },
            "save_steps 150 is no multiple of eval_steps 100",
        ),
        ({"use_peft": True, "pipeline_parallel_size": 2}, "raises NotImplementedError"),
        ({"lora_r": 8}, "lora_r without use_peft"),
        ({"use_peft": True, "lora_r": 0}, "must be 1 or more"),
        ({"use_peft": True, "lora_dropout": 1.0}, "below 1"),
        (
            {"use_peft": True, "lora_target_modules": "q_proj, v_proj", "tensor_parallel_size": 2},
            "name all of q_proj, k_proj and v_proj, or none",
        ),
        ({"early_stopping_patience": 3}, "needs evaluations"),
        ({"hang_timeout": -1.0}, "must be 0 or more"),
        ({"label_smoothing_factor": 0.1, "tensor_parallel_size": 2}, "one worker's part of the vocabulary"),
        ({"packing": True, "pipeline_parallel_size": 2}, "gives a pipeline input_ids, attention_mask and labels"),
        ({"packing": True, "group_by_length": True}, "exclude each other"),
        ({"group_by_length": True, "tensor_parallel_size": 2}, "does not work with tensor_parallel_size above 1"),
    ],
)
def test_what_is_wrong_is_one_line(values: dict[str, Any], said: str) -> None:
    lines = found(values)
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_an_evaluation_needs_data() -> None:
    for values in ({"eval_strategy": "steps"}, {"do_eval": True}):
        assert "there is no validation data" in found(values, False)[0]
        assert found(values, None) == found(values, True) == []


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1e30},  # fails in training, where it can be seen
        {"learning_rate": 0.0, "max_steps": -1, "logging_steps": 0.1, "save_steps": 500, "seed": 0},
        {"do_train": True, "do_eval": False, "fp16": False, "deepspeed": ""},
        {"lr_scheduler_type": "cosine", "optim": "adamw_torch", "packing": True, "tensor_parallel_size": 2},
        {"group_by_length": True},
    ],
)
def test_what_is_right_has_no_line(values: dict[str, Any]) -> None:
    assert found(values) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_seq_length", 'did you mean "block_size"?'),
        ("num_epochs", 'did you mean "num_train_epochs"?'),
        ("lr", 'did you mean "learning_rate"?'),
        ("learing_rate", 'did you mean "learning_rate"?'),
        ("num_train", "names are not shortened: num_train_epochs"),
        ("trust_remote_code", "code of a model's repository is not run"),
        ("preprocessing_num_workers", "rows are tokenised as they are read"),
        ("colour", "colour is not a flag of run_clm"),
    ],
)
def test_flags_that_there_are_not(name: str, said: str) -> None:
    assert said in str(hyperparameters.unknown(name, list(OPTIONS)))


def test_secrets_are_refused_and_never_repeated() -> None:
    token = "hf_" + "a1B2" * 8
    for values in (
        {"token": token},
        {"hub_token": "x"},
        {"dataset_config_name": token},
        {"run_name": "AKIA" + "B" * 16},
    ):
        (finding,) = hyperparameters.secrets(values)
        assert "is a credential" in finding.what and "[secrets]" in finding.hint
        assert not any(str(value) in str(finding) for value in values.values())
    assert list(hyperparameters.secrets({"run_name": "hf_run", "learning_rate": 1.0})) == []


@given(
    st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.one_of(st.integers(), st.floats(), st.booleans(), st.text()))
)
def test_any_values_give_lines_and_no_traceback(values: dict[str, Any]) -> None:
    assert all("\n" not in line.split(" = ")[0] for line in found(values))
    list(hyperparameters.secrets(values))


@given(st.sampled_from(sorted({option["type"] for option in OPTIONS.values()})), st.text(max_size=20))
def test_any_word_is_a_value_or_told(kind: str, text: str) -> None:
    _, problem = hyperparameters.parsed(kind, text)
    assert problem in ("", "true or false", "a whole number", "a number")


def test_a_tracker_that_the_image_lacks_is_refused_with_the_line_of_a_derived_image() -> None:
    pins = ("transformers", "wandb")
    assert list(hyperparameters.trackers({"report_to": "tensorboard"}, ())) == []
    assert list(hyperparameters.trackers({"report_to": "wandb mlflow"}, pins)) == []
    (line,) = map(str, hyperparameters.trackers({"report_to": "wandb"}, ("transformers",)))
    assert "RUN pip install wandb" in line
    assert "wandb==VERSION to train_pins" in line
