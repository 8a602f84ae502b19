"""A run file's values, checked against what trainer, handler and SageMaker really take. Every problem, at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from containers import hyperparameters, model_dir, rows
from containers.contract import RESERVED_ARGUMENTS
from containers.model_dir import Finding
from harness import assets
from harness.errors import InvalidInput, Problem, did_you_mean
from harness.spec import fit, heldout, runfile
from harness.spec.runfile import RunFile, Scalar
from harness.spec.stacks import Stack, known_models, train_options
from serve import options as serve_options

# Set by the plan from [model] and [data], so a run file must not say them a second time.
PLANNED = (
    "model_name_or_path",
    "model_revision",
    "train_file",
    "validation_file",
    "dataset_name",
    "data_format",
    "data_columns",
    "validation_split_seed",
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
    found = check_train(run, stack) + check_serve(run)
    return found + fit.problems(run, stack, fit.config_of(run)) + check_sources(run, stack) + check_files(run)


def check_measurable(run: RunFile) -> list[Problem]:
    """`run` ends with a measurement; say so before anything is trained."""
    problems = []
    if not run.has_test:
        why = "it asks the endpoint held-out examples and compares the answers with what is right"
        hint = "add data.test, or use: harness train, harness deploy, harness invoke"
        problems.append(Problem("`run` needs a test channel", why, hint))
    if run.measure in ("label", "label_likelihood") and run.data.labels is None:
        problems.append(Problem(f'evaluate.measure = "{run.measure}" needs data.labels'))
    if run.evaluate.scorer is not None and not Path(run.evaluate.scorer).is_file():
        problems.append(Problem(f"evaluate.scorer: there is no file {run.evaluate.scorer}"))
    if run.evaluate.lm_eval_path is not None and not Path(run.evaluate.lm_eval_path).is_dir():
        problems.append(Problem(f"evaluate.lm_eval_path: there is no directory {run.evaluate.lm_eval_path}"))
    return problems


SHOWN_PER_FILE = 5


def check_files(run: RunFile) -> list[Problem]:
    """Every row of the data files: file, line, reason."""
    problems = []
    for name in ("train", "validation", "test"):
        sources = [Path(source) for source in _sources(run, name) if not source.startswith("s3://")]
        found: dict[Path, list[Problem]] = {}
        reading = rows.Reading(run.data.columns or {}, run.data.format)
        for path, problem in _row_problems(sources, name, run, reading):
            found.setdefault(path, []).append(problem)
        for path, of_file in found.items():
            problems += of_file[:SHOWN_PER_FILE]
            if len(of_file) > SHOWN_PER_FILE:
                problems.append(Problem(f"{path}: {len(of_file) - SHOWN_PER_FILE} more lines like these"))
        if reading.format in ("messages", "sharegpt") and not _has_template(run):
            hint = 'set data.chat_template, for example "chatml"'
            problems.append(Problem(f"data.{name} holds chats, and the model has no chat template", hint=hint))
    return problems


def _has_template(run: RunFile) -> bool:
    """Of a hub id nothing is known here; the job says it."""
    given = run.data.chat_template or run.train.get("chat_template")
    return bool(given) or not run.model.is_directory or model_dir.has_chat_template(Path(run.model.id))


def _sources(run: RunFile, channel: str) -> list[str]:
    """What a channel's data is given as: files, directories, prefixes in S3."""
    given = getattr(run.data, channel)
    return [] if given is None else [given] if isinstance(given, str) else list(given)


OF_PROMPTS = ("label_likelihood", "perplexity")  # measures of texts that are put together here, without a template


def _held_out_problem(row: rows.Row, run: RunFile) -> str | None:
    """Why a row cannot be measured as the run file says."""
    found, words = heldout.of(row), {word.strip() for word in (run.data.labels or {}).values()}
    if isinstance(found, str):
        return found
    if found.messages and run.measure in OF_PROMPTS:
        return f'evaluate.measure = "{run.measure}" needs prompt and completion, not a chat'
    if words and found.answer.strip() not in words:
        return f"completion {found.answer[:40]!r} is none of the labels ({', '.join(sorted(words))})"
    return None


def _row_problems(
    sources: list[Path], channel: str, run: RunFile, reading: rows.Reading
) -> Iterator[tuple[Path, Problem]]:
    try:
        for row in rows.read(sources, reading):
            where = f"{row.file} {row.where}".rstrip()
            if isinstance(row, rows.Bad):
                yield row.file, Problem(f"{where}: {row.what}", hint=row.hint)
            elif channel == "test" and (problem := _held_out_problem(row, run)):
                yield row.file, Problem(f"{where}: {problem}")
    except rows.RowsError as error:
        yield Path(), Problem(f"data.{channel} = {error}", hint=error.hint)


def check_train(run: RunFile, stack: Stack) -> list[Problem]:
    """Unknown flags, flags that belong to the plan, and values of the wrong type."""
    known = train_options(stack.name)
    problems = [_train_problem(finding) for finding in hyperparameters.secrets(run.train)]
    secret = {problem.what.removeprefix("train.").partition(" ")[0] for problem in problems}
    settable = [name for name in known if name not in (*RESERVED_ARGUMENTS, *PLANNED)]
    right = {}
    for name, value in run.train.items():
        if name in secret:
            continue
        if name in RESERVED_ARGUMENTS:
            problems.append(Problem(f"train.{name} is set by the container", hint="remove it"))
        elif name in PLANNED:
            problems.append(Problem(f"train.{name} comes from [model] and [data]", hint="remove it"))
        elif name not in known:
            problems.append(_train_problem(hyperparameters.unknown(name, settable)))
        elif name in DATA and getattr(run.data, name) is not None:
            problems.append(Problem(f"train.{name} is in [data], too", hint="remove one of them"))
        elif not _fits(known[name]["type"], value):
            problems.append(Problem(f"train.{name} = {value!r}: must be {_plain(known[name]['type'])}"))
        else:
            right[name] = value
    found = hyperparameters.check(right, known, _has_validation(run))
    found += hyperparameters.trackers(right, stack.train_pins)
    return problems + [_train_problem(finding) for finding in found] + _contradictions(run)


# Flags of the trainer that [data] has as well.
DATA = ("train_on", "too_long", "chat_template", "validation_split_percentage")


def _train_problem(finding: Finding) -> Problem:
    return Problem(f"train.{finding.what}", finding.why, finding.hint)


def _has_validation(run: RunFile) -> bool | None:
    """Whether there is data for an evaluation; a hub data set may have a split for it."""
    given = (
        run.data.validation or run.data.validation_split_percentage or run.train.get("validation_split_percentage")
    )
    if given or run.data.id in assets.DATA_SETS:
        return True
    return None if run.data.id is not None else False


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
        elif type(value) is not hints[name]:
            kind = {int: "a whole number", bool: "true or false", str: "a string"}[hints[name]]
            problems.append(Problem(f"serve.{name} = {value!r}: must be {kind}"))
    if not problems:
        try:
            serve_options.ServeOptions(**run.serve)  # type: ignore[arg-type]  # types were checked above
        except serve_options.OptionError as error:
            problems.append(Problem(f"serve.{error}"))
    return problems


def check_sources(run: RunFile, stack: Stack) -> list[Problem]:
    """An id is an asset or has the form of a hub id."""
    problems: list[Problem] = []
    sources = [("data.id", run.data.id, list(assets.DATA_SETS))]
    if run.model.is_directory:
        folder = Path(run.model.id)
        problems += [
            Problem(f"model.id: {found.what}", found.why, found.hint)
            for found in model_dir.check(folder, known_models(stack.name))
        ]
        problems += [_train_problem(found) for found in model_dir.fits(folder, run.train)]
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
    return problems
