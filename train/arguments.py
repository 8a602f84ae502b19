"""The trainer's own arguments, with run_clm's flag names, for transformers' HfArgumentParser.

TrainingArguments come from transformers itself (the device picks the class), so every flag a user knows works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional

from containers.rows import FORMATS

# HfArgumentParser reads the annotations of Python 3.10 dataclasses; "X | None" works there, but its help prints
# Optional[...] nicely, and so does run_clm.
# ruff: noqa: UP006, UP035, UP045


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    model_name_or_path: str = field(metadata={"help": "A model directory or a Hugging Face hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
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
