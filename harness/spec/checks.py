"""A run file's values, checked against what trainer, handler and SageMaker really take. Every problem, at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from containers import rows
from containers.artifact import ArtifactError, check_model_directory
from containers.contract import RESERVED_ARGUMENTS, is_credential
from harness import assets
from harness.errors import InvalidInput, Problem, did_you_mean
from harness.spec import runfile, service_model
from harness.spec.runfile import RunFile, Scalar
from harness.spec.stacks import Stack, train_options
from serve import options as serve_options

# Set by the plan from [model] and [data], so a run file must not say them a second time.
PLANNED = (
    "model_name_or_path",
    "model_revision",
    "train_file",
    "validation_file",
    "dataset_name",
    "stack",
    "base_model",
)


def load(path: Path, stack: Stack, measured: bool = False) -> RunFile:
    """Read and check a run file and the files it names. Raises InvalidInput with every problem at once.

    `measured`: the run is to end with a measurement, which needs labels and a test channel.
    """
    run, problems = runfile.parse(path)
    if run is not None:
        problems += all_of(run, stack)
        if measured:
            problems += check_measurable(run)
    if run is None or problems:
        raise InvalidInput.of(problems)
    return run


def all_of(run: RunFile, stack: Stack) -> list[Problem]:
    """What is wrong with `run`; empty where nothing is."""
    return check_train(run, stack) + check_serve(run) + check_instances(run) + check_sources(run) + check_files(run)


def check_measurable(run: RunFile) -> list[Problem]:
    """`run` ends with a measurement; say so before anything is trained."""
    if run.data.labels is not None and (run.data.id is not None or run.data.test is not None):
        return []
    why = "it asks the endpoint held-out examples and compares the answers with their labels"
    hint = "add them, or use: harness train, harness deploy, harness invoke"
    return [Problem("`run` needs data.labels and a test channel", why, hint)]


SHOWN_PER_FILE = 5


def check_files(run: RunFile) -> list[Problem]:
    """Every row of the data files: file, line, reason."""
    problems = []
    for name in ("train", "validation", "test"):
        path = Path(getattr(run.data, name) or "")
        if path.is_file():
            found = list(_file_problems(path, name, run.data.labels))
            problems += found[:SHOWN_PER_FILE]
            if len(found) > SHOWN_PER_FILE:
                problems.append(Problem(f"{path}: {len(found) - SHOWN_PER_FILE} more lines like these"))
    return problems


def _file_problems(path: Path, channel: str, labels: dict[str, str] | None) -> Iterator[Problem]:
    words = {word.strip() for word in (labels or {}).values()}
    count = 0
    for number, row in rows.read(path):
        count += 1
        if isinstance(row, str):
            yield Problem(f"{path} line {number}: {row}")
        elif channel == "test" and "completion" not in row:
            yield Problem(f"{path} line {number}: the test channel needs prompt and completion")
        elif channel == "test" and words and row["completion"].strip() not in words:
            told = ", ".join(sorted(words))
            yield Problem(
                f"{path} line {number}: completion {row['completion'][:40]!r} is none of the labels ({told})"
            )
    if count == 0:
        yield Problem(f"{path}: no rows", hint="one JSON object per line")


def check_train(run: RunFile, stack: Stack) -> list[Problem]:
    """Unknown flags, flags that belong to the plan, and values of the wrong type."""
    known = train_options(stack.name)
    settable = [name for name in known if name not in (*RESERVED_ARGUMENTS, *PLANNED)]
    problems = []
    for name, value in run.train.items():
        if is_credential(name):
            why = "it would stand in the request, the record and the job's log"
            hint = "revoke it; put the ARN of a secret under [secrets] in the profile, as HF_TOKEN (docs/aws.md)"
            problems.append(Problem(f"train.{name} is a credential", why, hint))
        elif name in RESERVED_ARGUMENTS:
            problems.append(Problem(f"train.{name} is set by the container", hint="remove it"))
        elif name in PLANNED:
            problems.append(Problem(f"train.{name} comes from [model] and [data]", hint="remove it"))
        elif name not in known:
            hint = did_you_mean(name, settable)
            problems.append(Problem(f"train.{name} is not a flag of run_clm in stack {stack.name}", hint=hint))
        elif not _fits(known[name]["type"], value):
            problems.append(Problem(f"train.{name} = {value!r}: must be {_plain(known[name]['type'])}"))
    return problems + _contradictions(run)


def _fits(kind: str, value: Scalar) -> bool:
    """Whether a TOML scalar can be given for a flag of type `kind` (as listed in train/options)."""
    if value == "":
        return "bool" in kind  # a bare flag
    if isinstance(value, bool):
        return "bool" in kind
    if isinstance(value, int):
        return any(word in kind for word in ("int", "float"))
    if isinstance(value, float):
        return "float" in kind
    return "str" in kind or "List" in kind or "dict" in kind


def _plain(kind: str) -> str:
    for word, name in (("bool", "true or false"), ("int", "a whole number"), ("float", "a number")):
        if word in kind:
            return name
    return "a string"


def _contradictions(run: RunFile) -> list[Problem]:
    problems = []
    block, positions = run.train.get("block_size"), run.serve.get("n_positions")
    if isinstance(block, int) and isinstance(positions, int) and not isinstance(block, bool) and block > positions:
        problems.append(
            Problem(
                f"train.block_size {block} is more than serve.n_positions {positions}",
                "the endpoint would refuse prompts that the model was trained on",
                "raise serve.n_positions or lower train.block_size",
            )
        )
    if run.train.get("bf16") is True and run.train.get("fp16") is True:
        problems.append(Problem("train.bf16 and train.fp16 exclude each other", hint="keep bf16 on Trainium"))
    if run.train.get("load_best_model_at_end") is True and run.train.get("save_strategy", "no") == "no":
        problems.append(Problem("train.load_best_model_at_end needs train.save_strategy"))
    return problems


def check_serve(run: RunFile) -> list[Problem]:
    """Unknown options, wrong types and values out of range."""
    hints = get_type_hints(serve_options.ServeOptions)
    problems = []
    for name, value in run.serve.items():
        if name not in hints:
            hint = did_you_mean(name, serve_options.names())
            problems.append(Problem(f"serve.{name} is not an option of the handler", hint=hint))
        elif isinstance(value, bool) or not isinstance(value, hints[name]):
            problems.append(
                Problem(f"serve.{name} = {value!r}: must be {'a whole number' if hints[name] is int else 'a string'}")
            )
    if not problems:
        try:
            serve_options.ServeOptions(**run.serve)  # type: ignore[arg-type]  # types were checked above
        except serve_options.OptionError as error:
            problems.append(Problem(f"serve.{error}"))
    return problems


def check_instances(run: RunFile) -> list[Problem]:
    problems = []
    for key, shape in (
        ("train_instance", "TrainingInstanceType"),
        ("serve_instance", "ProductionVariantInstanceType"),
    ):
        value, known = getattr(run.compute, key), service_model.enum_values("sagemaker", shape)
        if value not in known:
            neuron = [k for k in known if re.match(r"ml\.(trn|inf2)", k)]
            hint = did_you_mean(value, neuron) or f"with Neuron cores: {', '.join(sorted(neuron))}"
            what = "training" if key == "train_instance" else "inference"
            problems.append(Problem(f'compute.{key} = "{value}" is not a SageMaker {what} instance type', hint=hint))
    return problems


def check_sources(run: RunFile) -> list[Problem]:
    """An id is an asset or has the form of a hub id."""
    problems: list[Problem] = []
    sources = [("data.id", run.data.id, list(assets.DATA_SETS))]
    if run.model.is_directory:
        problems += _model_problems(Path(run.model.id))
    else:
        sources.insert(0, ("model.id", run.model.id, list(assets.MODELS)))
    for key, value, known in sources:
        if value is not None and value not in known and "/" not in value:
            hint = did_you_mean(value, known) or f"assets: {', '.join(known)}; a hub id is owner/name"
            problems.append(Problem(f'{key} = "{value}": no such asset', hint=hint))
    if run.data.id in assets.DATA_SETS:
        missing = [k for k in ("prompt", "labels", "examples") if getattr(run.data, k) is None]
        problems += [Problem(f"data.{k} is missing", f"the asset {run.data.id} needs it") for k in missing]
        wanted = assets.DATA_SETS.get(run.data.id or "")
        if wanted and run.data.labels is not None and set(run.data.labels) != set(wanted.classes):
            problems.append(Problem(f"data.labels must name the classes {', '.join(wanted.classes)}"))
        if run.data.prompt is not None and run.data.prompt.count("{text}") != 1:
            problems.append(Problem("data.prompt must contain {text} once, where the example goes"))
    return problems + [
        Problem(f"data.{name} = {path}: no such file")
        for name in ("train", "validation", "test")
        if (path := getattr(run.data, name)) is not None and not Path(path).is_file()
    ]


def _model_problems(folder: Path) -> list[Problem]:
    try:
        check_model_directory(folder)
    except ArtifactError as error:
        return [Problem(f"model.id: {error}")]
    return []
