"""The trainer's own arguments, with run_clm's flag names, for transformers' HfArgumentParser.

TrainingArguments come from transformers itself (the device picks the class), so every flag a user knows works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

# HfArgumentParser reads the annotations of Python 3.10 dataclasses; "X | None" works there, but its help prints
# Optional[...] nicely, and so does run_clm.
# ruff: noqa: UP045


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    model_name_or_path: str = field(metadata={"help": "A model directory or a Hugging Face hub id."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    token: Optional[str] = field(default=None, metadata={"help": "Hub token, for gated models."})


@dataclass
class DataArguments:
    """Which data, and how it becomes rows of one fixed length."""

    train_file: Optional[str] = field(default=None, metadata={"help": "A .jsonl file: prompt/completion or text."})
    validation_file: Optional[str] = field(default=None, metadata={"help": "The same, for the evaluation loss."})
    dataset_name: Optional[str] = field(default=None, metadata={"help": "A hub data set instead of a file."})
    dataset_config_name: Optional[str] = field(default=None, metadata={"help": "Its configuration."})
    block_size: int = field(default=512, metadata={"help": "Tokens per row; every row is padded to it."})
    max_train_samples: Optional[int] = field(default=None, metadata={"help": "Use only the first N rows."})
    max_eval_samples: Optional[int] = field(default=None, metadata={"help": "The same for the evaluation."})


@dataclass
class RunArguments:
    """Where things go, and on what the job runs; the container fills these in."""

    export_dir: str = field(metadata={"help": "The finished artifact (/opt/ml/model)."})
    metrics_dir: str = field(metadata={"help": "metrics.jsonl (/opt/ml/output/data)."})
    device: str = field(default="neuron", metadata={"help": "cpu or neuron; never chosen on failure."})
    stack: str = field(default="", metadata={"help": "Name of the image pair, for the manifest."})
    base_model: str = field(default="", metadata={"help": "What the user called the model, for the manifest."})
