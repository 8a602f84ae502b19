"""The run file: TOML that says what is trained and served; never where, or in whose account.

Every key is known or refused with a suggestion, and every problem of a file is reported at once.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from containers.rows import format_problem
from harness.errors import InvalidInput, NotFound, Problem, did_you_mean
from harness.paths import PACKAGE

Scalar = bool | int | float | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Model(_Strict):
    """[model]: which model is fine-tuned."""

    id: str
    """An asset, a directory (starting with "." or "/"), or a Hugging Face hub id (owner/name)."""
    revision: str = "main"
    """Branch, tag or commit on the hub; only with a hub id."""

    @property
    def is_directory(self) -> bool:
        return self.id.startswith((".", "/"))


class Examples(_Strict):
    """How many examples each channel gets. None of them is in two channels."""

    train: Annotated[int, Field(ge=1)]
    validation: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=2)]


class Data(_Strict):
    """[data]: the examples, and how they are put to the model."""

    id: str | None = None
    """An asset or a hub data set (owner/name); or else the files below."""
    train: str | list[str] | None = None
    """Files or directories of rows (containers/rows.py), relative to the run file, or a prefix in S3."""
    validation: str | list[str] | None = None
    """The same, for the evaluation loss."""
    test: str | None = None
    """The same, never trained on: asked through the endpoint and compared with its completions."""
    prompt: str | None = None
    """Template of an asset's rows, for example "Headline: {text}\\nSarcastic?"."""
    labels: dict[str, str] | None = None
    """Word that the model is to answer for each class; makes the test channel a classification."""
    examples: Examples | None = None
    """Sizes of an asset's channels."""
    seed: int = 0
    """Which examples an asset's channels get, and which ones validation_split_percentage takes."""
    format: Literal["messages", "sharegpt", "prompt_completion", "alpaca", "text"] | None = None
    """The rows' format; without it the first row tells."""
    columns: dict[str, str] | None = None
    """Columns by other names: { prompt = "question", completion = "answer" }."""
    train_on: Literal["completions", "all"] | None = None
    """What the loss is taken on; without it completions and turns of the assistant."""
    too_long: Literal["drop", "truncate"] | None = None
    """What becomes of examples longer than block_size; without it they are dropped, counted and printed."""
    chat_template: str | None = None
    """Instead of the model's own: chatml, or a file."""
    validation_split_percentage: Annotated[int, Field(ge=1, le=50)] | None = None
    """Take this part of the training data for validation, where there is none."""

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.id is None) == (self.train is None):
            raise ValueError("give either id or train")
        if self.id is not None and (self.validation or self.test):
            raise ValueError("validation and test are files; they go with train, not with id")
        if self.train == [] or self.validation == []:
            raise ValueError("an empty list names no files")
        if self.validation is not None and self.validation_split_percentage is not None:
            raise ValueError("give either validation or validation_split_percentage")
        if problem := format_problem(self.format, self.columns or {}):
            raise ValueError(problem)
        if self.labels is not None and len(set(self.labels.values())) < 2:
            raise ValueError("labels needs at least two different words")
        return self


class Compute(_Strict):
    """[compute]: instance types and the times after which a job is given up."""

    train_instance: str = "ml.trn1.2xlarge"
    train_instance_count: Annotated[int, Field(ge=1, le=64)] = 1
    serve_instance: str = "ml.inf2.xlarge"
    volume_gb: Annotated[int, Field(ge=1, le=512)] = 200
    max_runtime_seconds: Annotated[int, Field(ge=60, le=28 * 24 * 3600)] = 7200
    max_pending_seconds: Annotated[int, Field(ge=1800, le=28 * 24 * 3600)] = 3600
    """How long the job may wait for an instance, at no cost. An hour: then another region is the better idea."""
    spot: bool = False
    """Train on spare instances: cheaper, and taken away at times; the job goes on from its checkpoint on others."""
    startup_seconds: Annotated[int, Field(ge=60, le=3600)] = 1800


class Evaluate(_Strict):
    """[evaluate]: how the answers to the test channel are measured, through the endpoint."""

    measure: (
        Literal[
            "label",
            "label_likelihood",
            "exact_match",
            "rouge_l",
            "chrf",
            "perplexity",
            "regex",
            "json",
            "scorer",
        ]
        | None
    ) = None
    """Without it "label" where data.labels is given, else "exact_match" (docs/your-data.md has them all)."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Tokens of an answer at most: 4 for labels, else 64."""
    pattern: str | None = None
    """Of measure "regex": what an answer has to contain."""
    scorer: str | None = None
    """Of measure "scorer": a Python file with score(prompt, completion, answer), relative to the run file."""
    lm_eval: Annotated[list[str], Field(min_length=1)] | None = None
    """Tasks of EleutherAI's lm-eval that base and tuned model answer as well, through the endpoint."""
    lm_eval_path: str | None = None
    """A directory with tasks of one's own, relative to the run file."""

    @model_validator(mode="after")
    def _what_the_measure_needs(self) -> Evaluate:
        for key, measure in (("pattern", "regex"), ("scorer", "scorer")):
            if (getattr(self, key) is not None) != (self.measure == measure):
                raise ValueError(f'{key} goes with measure = "{measure}"')
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from None
        if self.lm_eval_path is not None and self.lm_eval is None:
            raise ValueError("lm_eval_path goes with lm_eval, the tasks' names")
        if wrong := [name for name in self.lm_eval or () if not re.fullmatch(r"[A-Za-z0-9_.-]+", name)]:
            raise ValueError(f"lm_eval: {wrong[0]!r} is not the name of a task")
        return self


class RunFile(_Strict):
    """One run file, validated."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9](-?[a-zA-Z0-9]){0,30}$")]
    model: Model
    data: Data
    train: dict[str, Scalar] = {}
    """run_clm's flags by their own names."""
    serve: dict[str, Scalar] = {}
    """serve/options.py by their own names."""
    compute: Compute = Compute()
    evaluate: Evaluate = Evaluate()

    @property
    def has_test(self) -> bool:
        """Whether there are held-out examples with answers: data.test, or an asset's own."""
        return self.data.test is not None or (self.data.id is not None and self.data.examples is not None)

    @property
    def measure(self) -> str:
        """How `run` measures what was learned."""
        return self.evaluate.measure or ("label" if self.data.labels is not None else "exact_match")


def parse(path: Path) -> tuple[RunFile | None, list[Problem]]:
    """The run file at `path`, and what does not fit its schema.

    With problems the run file is what remains without the offending optional keys, so that the caller can look for
    further problems in the rest; it is None where too much is missing. Raises InvalidInput if it is not TOML.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not TOML", str(error), "see harness/runs/ for run files that work") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8", str(error)) from None
    except RecursionError:
        raise InvalidInput(f"{path}: nested too deep") from None
    problems: list[Problem] = []
    left_out: set[tuple[int | str, ...]] = set()
    for _ in range(3):  # leaving a key out can bring a problem of its table to light
        try:
            return _absolute(RunFile.model_validate(raw), path.parent.absolute()), problems
        except ValidationError as error:
            new = [e for e in error.errors() if e["loc"] not in left_out]
            problems += [_problem(path, e) for e in new]
            if not new:
                break
            left_out |= {e["loc"] for e in new}
            raw = _without(raw, [e["loc"] for e in new if e["type"] != "missing"])
    return None, problems


def load(path: Path) -> RunFile:
    """Read a run file. Raises InvalidInput with every way in which it does not fit the schema."""
    run, problems = parse(path)
    if run is None or problems:
        raise InvalidInput.of(problems)
    return run


def _without(raw: dict[str, Any], locations: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy of `raw` without the keys at `locations`."""
    out = copy.deepcopy(raw)
    for location in locations:
        parent: Any = out
        for part in location[:-1]:
            if not isinstance(parent, dict) or part not in parent:
                break  # the rest of the location names a type, not a key
            if not isinstance(parent[part], dict):
                parent.pop(part)
                break
            parent = parent[part]
        else:
            if isinstance(parent, dict) and location:
                parent.pop(location[-1], None)
    return out


TEMPLATE_NAMES = ("chatml",)  # those of train/render.py; a test compares


def _path(folder: Path, value: str) -> str:
    return value if value.startswith("s3://") else str(folder / value)


def _absolute(run: RunFile, folder: Path) -> RunFile:
    """Paths in a run file are relative to it; from here on they are absolute."""
    files: dict[str, Any] = {}
    for key in ("train", "validation", "test", "chat_template"):
        value = getattr(run.data, key)
        if isinstance(value, list):
            files[key] = [_path(folder, v) for v in value]
        elif value is not None and not (key == "chat_template" and value in TEMPLATE_NAMES):
            files[key] = _path(folder, value)
    model = {"id": str((folder / run.model.id).resolve())} if run.model.is_directory else {}
    update: dict[str, Any] = {"data": run.data.model_copy(update=files)}
    update["model"] = run.model.model_copy(update=model)
    own = {
        key: str(folder / v) for key in ("scorer", "lm_eval_path") if (v := getattr(run.evaluate, key)) is not None
    }
    update["evaluate"] = run.evaluate.model_copy(update=own)
    return run.model_copy(update=update)


def find(path: Path) -> Path:
    """`path` itself, or the ready-made run file of that name."""
    if path.is_file():
        return path
    ready = PACKAGE / "runs"
    named = ready / f"{path.name.removesuffix('.toml')}.toml"
    if named.is_file() and path.parent == Path():
        return named
    known = sorted(p.stem for p in ready.glob("*.toml"))
    hint = did_you_mean(path.stem, known) or f"ready-made: {', '.join(known)}"
    raise NotFound(f"no run file {path}", hint=hint)


_TABLES: dict[str, type[BaseModel]] = {"model": Model, "data": Data, "compute": Compute, "examples": Examples}
_TABLES["evaluate"] = Evaluate


def _problem(path: Path, error: Any) -> Problem:
    """pydantic's finding as one of ours: file, key, reason, suggestion."""
    location = [str(part) for part in error["loc"] if not re.fullmatch(r"bool|int|float|str|\w+\[.*\]", str(part))]
    key = ".".join(location) or "the file"
    where = f"{path}: {key}"
    if error["type"] == "extra_forbidden":
        owner = _TABLES.get(location[-2], RunFile) if len(location) > 1 else RunFile
        return Problem(f"{where} is not known", hint=did_you_mean(location[-1], list(owner.model_fields)))
    if error["type"] == "missing":
        return Problem(f"{where} is missing")
    if error["type"] == "string_pattern_mismatch":
        what = f'{where} = "{error["input"]}"'
        return Problem(what, "SageMaker's names have letters, digits and single hyphens; at most 31 here")
    if error["type"] == "value_error":
        return Problem(f"{where}: {error['msg'].removeprefix('Value error, ')}")
    shown = json.dumps(error["input"], default=str, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    reason = error["msg"]
    return Problem(f"{where} = {shown}" if location else where, reason[0].lower() + reason[1:])
