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
