"""What both engines read from a model directory beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serve.options import OptionError

# Settings of a generation_config that change which tokens are chosen, with the value that changes nothing
# (transformers 4.45, GenerationConfig). A request has its own temperature, top_k and top_p.
NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (),
    "guidance_scale": (1.0, 1),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}


def generation_config(model_dir: Path) -> dict[str, Any]:
    """generation_config.json's values; {} where there is none.

    Raises OptionError for settings that would change every answer and that neither engine applies.
    """
    path = model_dir / "generation_config.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    wrong = [f"{k}={values[k]}" for k, same in NOT_APPLIED.items() if values.get(k) not in (None, [], {}, *same)]
    if wrong:
        raise OptionError(
            f"generation_config.json sets {', '.join(wrong)}, which this server does not apply: remove it from the "
            "model's generation_config.json"
        )
    return values


def end_tokens(model_dir: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: generation_config.json's, else config.json's, else the tokenizer's."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    for ends in (
        generation_config(model_dir).get("eos_token_id"),
        config.get("eos_token_id"),
        getattr(tokenizer, "eos_token_id", None),
    ):
        if ends is not None and ends != []:
            return frozenset(ends if isinstance(ends, list) else [ends])
    return frozenset()


def repetition_penalty(model_dir: Path) -> float:
    """What generation_config.json asks for where a request gives none; 1.0 is none."""
    return float(generation_config(model_dir).get("repetition_penalty") or 1.0)
