"""Whether a run's model, sizes and instances fit each other and the stack: pure checks, on every platform.

What a NeuronCore or the library would say after twenty minutes and some dollars. The model's side of it is
containers.families, which the trainer and the handler ask again at their start (for a hub id nobody else can).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from containers import families
from harness.errors import Problem, did_you_mean
from harness.spec import service_model
from harness.spec.instances import CORES as INSTANCE_CORES
from harness.spec.runfile import RunFile
from harness.spec.stacks import Stack
from serve.options import ServeOptions

# Instance families of the stacks' images. Training: AWS's images for Trainium 1 (Neuron SDK 2.20); serving:
# Inferentia 2 and Trainium 1, whose graphs are interchangeable.
TRAIN_FAMILIES, SERVE_FAMILIES = ("ml.trn1.", "ml.trn1n."), ("ml.inf2.", "ml.trn1.", "ml.trn1n.")
# Cores that may share a model, by chip: the runtime's collectives know no other numbers (Neuron SDK 2.20,
# transformers-neuronx-developer-guide.rst; AWS's samples use 12 on inf2.24xlarge and 16 on trn1.32xlarge, too).
SERVE_DEGREES = {"inf2": (1, 2, 4, 8, 12, 24), "trn1": (1, 2, 8, 16, 32), "trn1n": (1, 2, 8, 16, 32)}


def problems(run: RunFile, stack: Stack, config: Mapping[str, Any] | None = None) -> list[Problem]:
    """Everything that does not fit, at once. `config` is the model's config.json, None where it is not at hand."""
    return [
        *instance_problems(run),
        *core_problems(run),
        *serving_core_problems(run),
        *(model_problems(run, stack, config) if config is not None else []),
    ]


def config_of(run: RunFile) -> dict[str, Any] | None:
    """config.json of the run's model directory; None for a hub id, and where there is none that can be read."""
    if not run.model.is_directory:
        return None
    try:
        found = json.loads((Path(run.model.id) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def instance_problems(run: RunFile) -> list[Problem]:
    """Instances that SageMaker does not have, or that the stack's images do not run on."""
    found = []
    for key, shape, allowed, what in (
        ("train_instance", "TrainingInstanceType", TRAIN_FAMILIES, "training"),
        ("serve_instance", "ProductionVariantInstanceType", SERVE_FAMILIES, "inference"),
    ):
        value, known = getattr(run.compute, key), service_model.enum_values("sagemaker", shape)
        fitting = [name for name in INSTANCE_CORES if name.startswith(allowed)]
        hint = did_you_mean(value, fitting) or f"with Neuron cores for it: {', '.join(fitting)}"
        if value not in known:
            found.append(Problem(f'compute.{key} = "{value}" is not a SageMaker {what} instance type', hint=hint))
        elif value not in fitting:
            why = f"the stack's image for {what} is for {', '.join(f'{name}*' for name in allowed)}"
            found.append(Problem(f'compute.{key} = "{value}"', why, hint))
    return found


def core_problems(run: RunFile) -> list[Problem]:
    """Tensor and pipeline parallelism of training against the cores of the instance and of the job."""
    cores = INSTANCE_CORES.get(run.compute.train_instance)
    tensor, pipeline = (_size(run, f"{kind}_parallel_size") for kind in ("tensor", "pipeline"))
    if cores is None or tensor * pipeline == 1:
        return []
    found = []
    where = f"{run.compute.train_instance} has {cores} NeuronCores"
    if tensor > cores or cores % tensor:
        fits = ", ".join(str(n) for n in range(1, cores + 1) if cores % n == 0)
        hint = f"use one of {fits}, or a larger instance"
        found.append(
            Problem(f"train.tensor_parallel_size is {tensor}, and {where}", "it stays within one host", hint)
        )
    elif (cores * run.compute.train_instance_count) % (tensor * pipeline):
        all_cores = cores * run.compute.train_instance_count
        what = f"train.tensor_parallel_size x pipeline_parallel_size is {tensor * pipeline}"
        found.append(Problem(what, f"the job's {all_cores} NeuronCores are no multiple of it", "lower one of them"))
    elif tensor == 4 and (cores * run.compute.train_instance_count // (tensor * pipeline)) % 8:
        why = "neuronx-distributed 0.9.0 makes groups of 4 cores for 8 data-parallel workers at a time"
        found.append(Problem(f"train.tensor_parallel_size is 4, and {where}", why, "use 2 or 8"))
    return found


def serving_core_problems(run: RunFile) -> list[Problem]:
    """serve.tp_degree against the instance's cores, and against what the runtime's collectives know."""
    options, cores = _options(run), INSTANCE_CORES.get(run.compute.serve_instance)
    if options is None or cores is None:
        return []
    chip = run.compute.serve_instance.split(".")[1]
    fits = [n for n in SERVE_DEGREES.get(chip, ()) if n <= cores and cores % n == 0]
    if not fits or options.tp_degree in fits:
        return []
    what = f"serve.tp_degree is {options.tp_degree}, and {run.compute.serve_instance} has {cores} NeuronCores"
    why = "the cores are shared out evenly, and collectives run over certain numbers of them only"
    return [Problem(what, why, f"use one of {', '.join(map(str, fits))}")]


def model_problems(run: RunFile, stack: Stack, config: Mapping[str, Any]) -> list[Problem]:
    """The model against the stack, the sizes and the lengths of rows."""
    size, options = families.Dimensions.of(config), _options(run)
    tensor, pipeline = (_size(run, f"{kind}_parallel_size") for kind in ("tensor", "pipeline"))
    block = run.train.get("block_size", 512)
    block = block if isinstance(block, int) else 512
    sequence = tensor > 1 and run.train.get("disable_sequence_parallel") is not True
    lora = run.train.get("use_peft") is True
    texts = families.training_problems(size.model_type, tensor=tensor, pipeline=pipeline, lora=lora, stack=stack.name)
    texts += families.tensor_problems(size, tensor, sequence, block)
    texts += families.pipeline_problems(size, pipeline)
    texts += families.position_problems(size, block)
    found = [Problem(f"[train] {text}") for text in texts]
    if options is not None:
        serving = families.serving_problems(
            config, tp_degree=options.tp_degree, n_positions=options.n_positions, stack=stack.name
        )
        found += [Problem(f"[serve] {text}") for text in serving]
    return found


def _size(run: RunFile, name: str) -> int:
    value = run.train.get(name, 1)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 1


def _options(run: RunFile) -> ServeOptions | None:
    """The serving options; None where a value is wrong, which harness.spec.checks says."""
    try:
        return ServeOptions(**run.serve)  # type: ignore[arg-type]  # checked by harness.spec.checks
    except (TypeError, ValueError):
        return None
