"""Values of the trainer's flags, checked before anything is paid for: choices, ranges, contradictions, no effect.

Which flags there are, their types and choices come from the stack's packages (train/options/, generated). The harness
checks a run file's [train] by this module, the trainer its command line. Standard library and Python 3.10 syntax
only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from containers.contract import is_credential
from containers.model_dir import Finding

# What the training image has (AWS's Deep Learning Container for training, Hugging Face's Dockerfile.neuronx).
TRACKERS = ("tensorboard", "mlflow")
Scalar = bool | int | float | str
Options = Mapping[str, Mapping[str, Any]]

_Range = tuple[Callable[[float], bool], str]
_FROM_0: _Range = (lambda v: v >= 0, "0 or more")
_FROM_1: _Range = (lambda v: v >= 1, "1 or more")
_ABOVE_0: _Range = (lambda v: v > 0, "above 0")
_SHARE: _Range = (lambda v: 0 <= v <= 1, "between 0 and 1")
_BELOW_1: _Range = (lambda v: 0 <= v < 1, "0 or more and below 1")
_STEPS: _Range = (lambda v: 0 < v < 1 or (v >= 1 and v == int(v)), "1 or more, or a share of all steps below 1")
_SEED: _Range = (lambda v: 0 <= v < 1 << 32, "between 0 and 4294967295")  # numpy's limit
_MINUS_1: _Range = (lambda v: v == -1 or v >= 1, "1 or more, or -1 for no limit")
# What PyTorch's optimizers and transformers' Trainer would raise, divide by, or silently take for something else.
RANGES: dict[str, _Range] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay"), _FROM_0),
    **dict.fromkeys(("adam_epsilon", "dataloader_num_workers", "neftune_noise_alpha"), _FROM_0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _BELOW_1),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _FROM_1),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "max_train_samples"), _FROM_1),
    **dict.fromkeys(("max_eval_samples", "save_total_limit", "dataloader_prefetch_factor", "ddp_timeout"), _FROM_1),
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "kv_size_multiplier"), _FROM_1),
    **dict.fromkeys(("num_local_ranks_per_step",), _FROM_1),
    **dict.fromkeys(("max_steps", "pipeline_parallel_num_microbatches"), _MINUS_1),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _STEPS),
    **dict.fromkeys(("seed", "data_seed", "validation_split_seed"), _SEED),
    **dict.fromkeys(("hang_timeout", "early_stopping_patience", "early_stopping_threshold"), _FROM_0),
    "lora_r": _FROM_1,
    "lora_alpha": _ABOVE_0,
    "lora_dropout": _BELOW_1,
    "num_train_epochs": _ABOVE_0,
    "warmup_ratio": _SHARE,
    "block_size": (lambda v: v >= 2, "2 or more: of one token nothing is predicted"),
    "validation_split_percentage": (lambda v: 1 <= v <= 50, "between 1 and 50"),
}

# Optimizers that need nothing but torch, on both devices. The others need bitsandbytes, apex, galore and the like,
# which the training image lacks; adamw_torch_fused has no kernel for CPU in torch 2.1 and breaks on XLA.
OPTIMIZERS = ("adamw_torch", "adamw_hf", "adamw_torch_xla", "adafactor", "sgd", "adagrad", "rmsprop")

# Flag -> why a job cannot do it. Without an entry a flag works, or has no effect that anybody could miss.
NOT_HERE = {
    "fp16": "neither device has loss scaling: use bf16, which Trainium is made for",
    "fp16_full_eval": "use bf16_full_eval",
    "deepspeed": "it is for GPUs: use tensor_parallel_size, pipeline_parallel_size or zero_1",
    "fsdp": "it is for GPUs: use tensor_parallel_size, pipeline_parallel_size or zero_1",
    "push_to_hub": "the job ends with an artifact in S3: push that",
    "auto_find_batch_size": "every batch size is a graph of its own: choose one",
    "do_predict": "the trainer does not predict: ask the endpoint, or use a test channel",
    "use_ipex": "the training image has no Intel extension",
    "use_liger_kernel": "its kernels are for GPUs",
    "torchdynamo": "use device cpu's own compilation",
    "use_mps_device": "there is no such device",
    "async_save": "it goes on training before a checkpoint's files are written, and that would count as complete",
}
# What other trainers call it, and flags of run_clm that ours has no use for: name -> hint.
ELSEWHERE = {
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_length", "cutoff_len", "sequence_len"), "block_size"),
    **dict.fromkeys(("micro_batch_size", "batch_size", "train_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("num_epochs", "epochs"), "num_train_epochs"),
    **dict.fromkeys(("lr",), "learning_rate"),
    **dict.fromkeys(("lr_scheduler",), "lr_scheduler_type"),
    **dict.fromkeys(("optimizer",), "optim"),
    **dict.fromkeys(("sample_packing", "pack"), "packing"),
    **dict.fromkeys(("val_size", "val_set_size"), "validation_split_percentage"),
    **dict.fromkeys(("dataset", "dataset_path"), "dataset_name"),
    **dict.fromkeys(("lora", "use_lora", "peft"), "use_peft"),
    **dict.fromkeys(("lora_rank", "r"), "lora_r"),
    **dict.fromkeys(("lora_target", "target_modules", "lora_modules"), "lora_target_modules"),
    **dict.fromkeys(("early_stopping_steps", "patience"), "early_stopping_patience"),
    **dict.fromkeys(("template", "chat_template_name"), "chat_template"),
    **dict.fromkeys(("train_on_inputs", "completion_only_loss", "assistant_only_loss"), "train_on"),
}
NO_USE = {
    **dict.fromkeys(
        ("overwrite_cache", "preprocessing_num_workers", "streaming"), "rows are tokenised as they are read"
    ),
    **dict.fromkeys(("keep_linebreaks",), "line breaks of texts are always kept"),
    **dict.fromkeys(("use_fast_tokenizer",), "the tokenizer is always the fast one"),
    **dict.fromkeys(("trust_remote_code",), "code of a model's repository is not run in the image"),
    **dict.fromkeys(("low_cpu_mem_usage", "torch_dtype"), "the device decides how weights are loaded"),
    **dict.fromkeys(("tokenizer_name", "config_name", "model_type", "config_overrides"), "they come from the model"),
    **dict.fromkeys(("cache_dir",), "set HF_HOME in the job's environment"),
}
# https://docs.github.com/code-security/secret-scanning lists the prefixes.
_SECRET_VALUE = re.compile(
    r"^(hf_[A-Za-z0-9]{16,}|(AKIA|ASIA)[0-9A-Z]{12,}|sk-[A-Za-z0-9-]{16,}|ghp_[A-Za-z0-9]{16,})"
)


def unknown(name: str, settable: list[str]) -> Finding:
    """A flag that the trainer does not have, with what it may be called here."""
    if name in NO_USE:
        return Finding(f"{name} is not a flag of run_clm", NO_USE[name], "remove it")
    other = ELSEWHERE.get(name)
    close = get_close_matches(name, settable, 1)
    hint = f'did you mean "{other or close[0]}"?' if other or close else ""
    starts = [known for known in settable if known.startswith(name)]
    if starts and not other:
        hint = f"names are not shortened: {', '.join(starts[:4])}"
    return Finding(f"{name} is not a flag of run_clm", hint=hint)


def secrets(values: Mapping[str, Scalar]) -> Iterator[Finding]:
    """Values that would be printed and stored with every copy of the request; they are not repeated here."""
    for name, value in values.items():
        if is_credential(name) or (isinstance(value, str) and _SECRET_VALUE.match(value)):
            yield Finding(
                f"{name} is a credential",
                "it would stand in the request, the record and the job's log",
                "revoke it; put the ARN of a secret under [secrets] in the profile, as HF_TOKEN (docs/aws.md)",
            )


def trackers(values: Mapping[str, Scalar], installed: Iterable[str]) -> Iterator[Finding]:
    """Trackers that the stack's training image lacks; `installed` are packages that its row has beside them."""
    known = {"none", "all", *TRACKERS, *installed}
    for name in str(values.get("report_to", "none")).replace(",", " ").split():
        if name not in known:
            yield Finding(
                f'report_to = "{name}" is not in the training image',
                f"it has {' and '.join(TRACKERS)}",
                f"use one of them; or derive an image with `RUN pip install {name}` and add {name}==VERSION to "
                "train_pins of its row in docker-bake.hcl",
            )


def check(values: Mapping[str, Scalar], options: Options, has_validation: bool | None = None) -> list[Finding]:
    """What is wrong with values of known flags and the right types.

    `has_validation`: whether there is data for an evaluation; None where that is not known yet.
    """
    found = [finding for name, value in values.items() for finding in _one(name, value, options.get(name, {}))]
    return found + list(_together(values, options, has_validation))


def _one(name: str, value: Scalar, option: Mapping[str, Any]) -> Iterator[Finding]:
    choices = option.get("choices")
    if choices and value not in ("", "None") and str(value) not in choices:
        close = get_close_matches(str(value), choices, 1)
        hint = f'did you mean "{close[0]}"?' if close else f"one of {', '.join(choices)}"
        yield Finding(f'{name} = "{value}" is not a valid choice', hint=hint)
        return
    if name == "optim" and value not in OPTIMIZERS:
        yield Finding(
            f'optim = "{value}" does not run here',
            "it needs a package or a kernel that the training image lacks",
            f"one of {', '.join(OPTIMIZERS)}",
        )
    if name in NOT_HERE and value not in (False, "", "None", "false"):
        yield Finding(f"{name} has no effect here or cannot work", NOT_HERE[name], "remove it")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        yield Finding(f"{name} = {value}: must be a finite number")
    elif name in RANGES and not RANGES[name][0](value):
        yield Finding(f"{name} = {value}: must be {RANGES[name][1]}")


def _together(values: Mapping[str, Scalar], options: Options, has_validation: bool | None) -> Iterator[Finding]:
    def value(name: str) -> Any:
        return values.get(name, _default(options.get(name, {})))

    def more_than_one(name: str) -> bool:
        size = value(name)
        return isinstance(size, int) and size > 1

    if value("do_train") is False and "do_train" in values:
        yield Finding("do_train = false", "the trainer trains; there is nothing else it could do", "remove it")
    evaluates = value("eval_strategy") not in ("no", None) or values.get("do_eval") is True
    if evaluates and has_validation is False:
        why = "there is no validation data"
        hint = "give [data] validation, or validation_split_percentage"
        yield Finding(f'eval_strategy = "{value("eval_strategy")}" cannot evaluate', why, hint)
    if value("lr_scheduler_type") == "reduce_lr_on_plateau" and value("eval_strategy") in ("no", None):
        yield Finding(
            'lr_scheduler_type = "reduce_lr_on_plateau" needs eval_strategy', "it follows the evaluation loss"
        )
    if value("load_best_model_at_end") is True and values.get("save_strategy", "no") not in ("no", "best"):
        yield from _best(value)
    yield from _lora(values, value, more_than_one)
    if value("early_stopping_patience") and value("eval_strategy") in ("no", None):
        yield Finding(
            "early_stopping_patience needs evaluations",
            hint='set eval_strategy = "steps", eval_steps and validation data',
        )
    if value("label_smoothing_factor") and (
        more_than_one("tensor_parallel_size") or more_than_one("pipeline_parallel_size")
    ):
        why = "transformers smooths over one worker's part of the vocabulary"
        yield Finding("label_smoothing_factor does not work with tensor or pipeline parallelism", why, "remove it")
    if value("packing") is True and more_than_one("pipeline_parallel_size"):
        why = "optimum-neuron gives a pipeline input_ids, attention_mask and labels, and no position_ids"
        yield Finding("packing does not work with pipeline_parallel_size above 1", why, "use tensor_parallel_size")
    if value("group_by_length") is True and value("packing") is True:
        yield Finding(
            "group_by_length and packing exclude each other", "packed rows are full", "remove group_by_length"
        )
    elif value("group_by_length") is True and more_than_one("tensor_parallel_size"):
        why = "every row has one length there, and workers of one model would get rows in different orders"
        yield Finding("group_by_length does not work with tensor_parallel_size above 1", why, "use packing")


def _lora(
    values: Mapping[str, Scalar], value: Callable[[str], Any], more_than_one: Callable[[str], bool]
) -> Iterator[Finding]:
    given = sorted(name for name in values if name.startswith("lora_"))
    if value("use_peft") is not True:
        if given:
            yield Finding(
                f"{', '.join(given)} without use_peft", "all weights would be trained", "set use_peft = true"
            )
        return
    if more_than_one("pipeline_parallel_size"):
        why = "optimum-neuron 0.0.28 raises NotImplementedError"
        yield Finding("use_peft does not work with pipeline_parallel_size above 1", why, "use tensor_parallel_size")
    targets = {word.strip() for word in str(value("lora_target_modules")).split(",")}
    qkv = {"q_proj", "k_proj", "v_proj"}
    if more_than_one("tensor_parallel_size") and targets & qkv and not qkv <= targets:
        yield Finding(
            f'lora_target_modules = "{value("lora_target_modules")}" does not work with tensor_parallel_size above 1',
            "query, key and value become one layer where there are fewer key-value heads than cores",
            "name all of q_proj, k_proj and v_proj, or none",
        )


def _best(value: Callable[[str], Any]) -> Iterator[Finding]:
    """transformers' own conditions, which it raises after the model is loaded (training_args.py)."""
    if value("eval_strategy") != value("save_strategy"):
        yield Finding(
            f'load_best_model_at_end: eval_strategy "{value("eval_strategy")}" is not save_strategy '
            f'"{value("save_strategy")}"',
            "only what is evaluated and saved can be the best",
            "set both to the same",
        )
    elif value("save_strategy") == "steps":
        evaluated, saved = value("eval_steps") or value("logging_steps"), value("save_steps")
        if isinstance(evaluated, int) and isinstance(saved, int) and evaluated > 0 and saved % evaluated:
            yield Finding(f"load_best_model_at_end: save_steps {saved} is no multiple of eval_steps {evaluated}")


def _default(option: Mapping[str, Any]) -> Any:
    """A default as it is listed (as text) in its type; None for None."""
    text, kind = option.get("default"), str(option.get("type", ""))
    if text is None or text == "None":
        return None
    made, problem = parsed(kind, str(text))
    return None if problem else made


def parsed(kind: str, text: str) -> tuple[Scalar, str]:
    """(the value of a command line's word for a flag of type `kind`, what is wrong with it)."""
    low = text.lower()
    if kind.startswith("Optional") and low in ("none", "null"):
        return "None", ""
    if "bool" in kind:
        words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False, "": True}
        return (words[low], "") if low in words else (text, "true or false")
    for word, make, name in (("int", int, "a whole number"), ("float", float, "a number")):
        if word in kind and not any(other in kind for other in ("str", "List", "dict")):
            try:
                return make(text), ""
            except ValueError:
                return text, name
    return text, ""
