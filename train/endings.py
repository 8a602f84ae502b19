"""Training and serving agree on where an answer ends: what generation_config.json of the artifact has to say.

generate() stops at the end tokens of generation_config.json, not at the tokenizer's. A model trained to end with
another token than that answers to the length limit. And transformers refuses to save a generation_config whose
sampling values have no effect, which would lose the model at the end of a job.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any


def prepare(model: Any, tokenizer: Any, ends: Iterable[int]) -> list[str]:
    """Put the model's generation_config right, before the first step; a line for each change.

    `ends`: the tokens that training puts at the end of answers, the tokenizer's own first.
    """
    config = model.generation_config
    notes = list(_sampling(config))
    before = [i for i in _ids(config.eos_token_id) if i < model.config.vocab_size]
    after = [*before, *(i for i in ends if i not in before)]
    if after != _ids(config.eos_token_id):
        config.eos_token_id = after if len(after) > 1 else after[0]
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in after)
        notes.append(f"end tokens are now {names}: training ends answers with them")
    if model.config.eos_token_id is None:
        # transformers-neuronx and DJL read config.json where there is no generation_config.json.
        model.config.eos_token_id = config.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else _ids(after)[0]
    return notes


def _ids(value: Any) -> list[int]:
    return [] if value is None else [int(i) for i in value] if isinstance(value, (list, tuple)) else [int(value)]


def _sampling(config: Any) -> Iterable[str]:
    """Values that only sampling uses, without do_sample: the authors meant sampling, so that is what is set.

    Llama-2-chat has temperature 0.9 and top_p 0.6 without it: https://github.com/huggingface/transformers/issues/29988
    """
    problem = _strict(config)
    if not problem:
        return
    if not config.do_sample:
        config.do_sample = True
        problem = _strict(config)
        if not problem:
            yield "generation_config.json has sampling values without do_sample: do_sample is now true"
            return
    yield f"generation_config.json cannot be saved ({problem.splitlines()[0]}): its sampling values are left out"
    config.do_sample = False
    for name, value in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 50), ("typical_p", 1.0), ("min_p", None)):
        setattr(config, name, value)


def _strict(config: Any) -> str:
    """Why transformers would refuse to save it; empty where it would not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            config.validate()
        except (ValueError, UserWarning) as error:
            return str(error) or type(error).__name__
    return ""
