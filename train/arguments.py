"""The trainer's own arguments, with run_clm's flag names, for transformers' HfArgumentParser.

TrainingArguments come from transformers itself (the device picks the class), so every flag a user knows works.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import MISSING, dataclass, field
from typing import Any, List, Optional, get_args, get_type_hints

from containers import hyperparameters
from containers.rows import FORMATS

# HfArgumentParser reads the annotations of Python 3.10 dataclasses; "X | None" works there, but its help prints
# Optional[...] nicely, and so does run_clm.
# ruff: noqa: UP006, UP035, UP045


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    model_name_or_path: str = field(metadata={"help": "A model directory or a Hugging Face hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    allow_missing_weights: bool = field(
        default=False, metadata={"help": "Train although weights are in none of the model's files: they are random."}
    )
    token: Optional[str] = field(default=None, metadata={"help": "Hub token, for gated models."})


@dataclass
class DataArguments:
    """Which data, and how it becomes rows of one fixed length. Formats and files: containers/rows.py."""

    train_file: Optional[List[str]] = field(default=None, metadata={"help": "Files or directories of rows."})
    validation_file: Optional[List[str]] = field(
        default=None, metadata={"help": "The same, for the evaluation loss."}
    )
    dataset_name: Optional[str] = field(default=None, metadata={"help": "A hub data set instead of files."})
    dataset_config_name: Optional[str] = field(default=None, metadata={"help": "Its configuration."})
    block_size: int = field(default=512, metadata={"help": "Tokens per row; every row is padded to it."})
    max_train_samples: Optional[int] = field(default=None, metadata={"help": "Use only the first N rows."})
    max_eval_samples: Optional[int] = field(default=None, metadata={"help": "The same for the evaluation."})
    data_format: Optional[str] = field(
        default=None, metadata={"help": "Format of the rows; without it by the first row.", "choices": list(FORMATS)}
    )
    data_columns: Optional[str] = field(
        default=None, metadata={"help": 'Columns by other names, as JSON: {"prompt": "question"}.'}
    )
    train_on: str = field(
        default="completions",
        metadata={
            "help": "completions: loss on completions and turns of the assistant; all: on everything.",
            "choices": ["completions", "all"],
        },
    )
    chat_template: Optional[str] = field(
        default=None, metadata={"help": "Instead of the model's own: chatml, a file, or the template itself."}
    )
    too_long: str = field(
        default="drop",
        metadata={
            "help": "Examples longer than block_size (texts are split): drop, or truncate at their end.",
            "choices": ["drop", "truncate"],
        },
    )
    packing: bool = field(default=False, metadata={"help": "Several whole examples in a row, kept apart."})
    validation_split_percentage: Optional[int] = field(
        default=None, metadata={"help": "Take this part of the training data for validation, where there is none."}
    )
    validation_split_seed: int = field(default=0, metadata={"help": "Which examples it takes."})


@dataclass
class LoraArguments:
    """LoRA by PEFT; the names are those of TRL's scripts."""

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapters' sum is scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: str = field(
        default="all-linear", metadata={"help": "all-linear, or names of layers with commas: q_proj,k_proj,v_proj."}
    )


@dataclass
class RunArguments:
    """Where things go, and on what the job runs; the container fills these in."""

    export_dir: str = field(metadata={"help": "The finished artifact (/opt/ml/model)."})
    metrics_dir: str = field(metadata={"help": "metrics.jsonl (/opt/ml/output/data)."})
    device: str = field(default="neuron", metadata={"help": "cpu or neuron; never chosen on failure."})
    stack: str = field(default="", metadata={"help": "Name of the image pair, for the manifest."})
    base_model: str = field(default="", metadata={"help": "What the user called the model, for the manifest."})
    hang_timeout: float = field(
        default=3600, metadata={"help": "Seconds without a step after which the job ends; 0 is never."}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "End after so many evaluations in a row without a better one; 0 is never."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much an evaluation has to be better to count."}
    )


class ArgumentError(ValueError):
    """The command line cannot be run; every problem, one a line."""


def parse(argv: list[str], groups: tuple[Any, ...]) -> tuple[Any, ...]:
    """The command line as data classes. Raises ArgumentError with everything that is wrong with it.

    As argparse, but: all problems at once, names are never shortened (`--num_train` would be num_train_epochs), and a
    value may begin with a dash in both `--learning_rate -1e-5` and `--learning_rate=-1e-5`.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(groups)
    options = _options(groups)
    words, problems = _words(argv, options)
    values: dict[str, Any] = {}
    for name, given in words.items():
        if "List" in options[name]["type"] and len(given) != 1:
            continue
        values[name], problem = hyperparameters.parsed(options[name]["type"], given[0] if given else "")
        if problem:
            problems.append(f"{name} = {given[0]!r} is not {problem}")
            del values[name]
    problems += [
        f"{field_.name} is missing: {field_.metadata['help']}"
        for group in groups
        for field_ in dataclasses.fields(group)
        if field_.init
        and field_.default is MISSING
        and field_.default_factory is MISSING
        and field_.name not in words
    ]
    has_validation = bool({"validation_file", "dataset_name", "validation_split_percentage"} & set(words))
    problems += [str(finding) for finding in hyperparameters.check(values, options, has_validation)]
    problems += _twice(words)
    if problems:
        raise ArgumentError("\n".join(problems))
    line = [
        word
        for name, given in words.items()
        for word in ([f"--{name}={given[0]}"] if len(given) == 1 else [f"--{name}", *given])
    ]
    return tuple(parser.parse_args_into_dataclasses(line))


def _options(groups: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    """Type, default and choices of every flag, as train/options has them for the harness."""
    out: dict[str, dict[str, Any]] = {}
    for group in groups:
        kinds = get_type_hints(group)
        for field_ in dataclasses.fields(group):
            if not field_.init:
                continue
            default = None if field_.default is MISSING else getattr(field_.default, "value", field_.default)
            kind = kinds[field_.name]
            out[field_.name] = {
                "type": getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind).replace("typing.", ""),
                "default": str(default),
            }
            parts = [p for p in (kind, *get_args(kind)) if isinstance(p, type) and issubclass(p, enum.Enum)]
            if choices := field_.metadata.get("choices") or [m.value for part in parts for m in part]:
                out[field_.name]["choices"] = [str(choice) for choice in choices]
    return out


def _words(argv: list[str], options: dict[str, dict[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """(flag -> its words, what is wrong with the line)."""
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    current: list[str] | None = None
    for word in argv:
        if not word.startswith("--"):
            if current is None:
                problems.append(f"{word}: a flag expected, --name value")
            else:
                current.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        current = [value] if equals else []
        if name in found:
            problems.append(f"{name} is given twice")
        elif name in options:
            found[name] = current
        else:
            problems.append(str(hyperparameters.unknown(name, list(options))))
    for name in list(found):
        several = "List" in options[name]["type"]
        if (len(found[name]) > 1 and not several) or (not found[name] and "bool" not in options[name]["type"]):
            count = len(found[name])
            problems.append(f"{name} needs {'a value' if not count else f'one value, not {count}'}")
            del found[name]
    return found, problems


def _twice(words: dict[str, list[str]]) -> list[str]:
    """Sources of data of which only one can be meant."""
    out = []
    if "train_file" in words and "dataset_name" in words:
        out.append("train_file and dataset_name are both given: leave one of them out")
    if "validation_file" in words and "validation_split_percentage" in words:
        out.append("validation_file and validation_split_percentage are both given: leave one of them out")
    return out
