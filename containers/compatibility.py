"""Hyperparameters as they come from elsewhere: the fine-tuning lab's for run_clm, and a framework estimator's.

AWS's lab hands its script the flags of transformers' run_clm.py and of optimum-neuron; the SageMaker SDK's framework
estimators write every value as JSON and add keys of their own for the toolkit, which our images do without. Both are
taken as they are: what has no effect here is left out with one line that says why. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

MODEL = "/opt/ml/model"
# name -> why it has no effect. run_clm.py of optimum-neuron 0.0.28 (examples/language-modeling) has them all.
WITHOUT_EFFECT = {
    "use_fast_tokenizer": "the tokenizer is the fast one wherever the model has it",
    "trust_remote_code": "no code of a model is run",
    "torch_dtype": "weights are loaded in fp32; --bf16 says what is computed in",
    "streaming": "data is read whole: rows have to be counted before the first step",
    "preprocessing_num_workers": "rows are made in one process",
    "low_cpu_mem_usage": "with tensor or pipeline parallelism weights stay in their files until they are needed",
    "keep_linebreaks": "line breaks are always kept",
    "overwrite_cache": "nothing is cached",
    "use_auth_token": "give --token, or a secret",
    "overwrite_output_dir": "checkpoints of the same run are resumed, those of another are refused",
}
# Keys of the training toolkit and of tuning jobs, by their beginning: sagemaker-training v4.8.3, params.py.
TOOLKIT = ("sagemaker_", "_tuning_")
TOOLKIT_KEYS = {
    "sagemaker_program": "the image runs its own program",
    "sagemaker_submit_directory": "no code is downloaded",
}


def understood(given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """`given` as our trainer takes it, and one line for each hyperparameter that was left out or changed."""
    values, lines = {key: _decoded(value) for key, value in given.items()}, []
    for key in sorted(values):
        value = values[key]
        if key.startswith(TOOLKIT):
            why = TOOLKIT_KEYS.get(key, "it is for SageMaker's training toolkit, which this image does without")
        elif value == "null":
            why = "null stands for the default"
        elif key in WITHOUT_EFFECT:
            why = WITHOUT_EFFECT[key]
        elif key == "output_dir" and value.rstrip("/") == MODEL:
            why = f"the model goes to {MODEL} and checkpoints to CheckpointConfig's directory in any case"
        elif key == "config_name" and value in ("", values.get("model_name_or_path")):
            why = "the model's own configuration is used"
        elif key == "sequence_parallel_enabled":
            why = "sequence parallelism is on with tensor parallelism"
            if value.lower() in ("false", "0"):
                values.setdefault("disable_sequence_parallel", "true")
                why = "disable_sequence_parallel true stands for it"
        else:
            continue
        lines.append(f"hyperparameter {key} = {value!r} has no effect here: {why}")
        del values[key]
    return values, lines


def _decoded(text: str) -> str:
    """A string that an estimator wrote as JSON: '"llama"' is llama; 2, true and what is no JSON stay as they are.

    https://github.com/aws/sagemaker-python-sdk, Framework._json_encode_hyperparameters
    """
    if not (text.startswith('"') and text.endswith('"') and len(text) > 1):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text
