"""Several runs beside each other: what came of them, what they took, and which settings differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InvalidInput
from harness.record import Record
from harness.run import report
from harness.run.evaluate import shown_of

ABSENT = "-"


@dataclass(frozen=True)
class Measured:
    """A run with its result, its run file flattened to key -> value, and the rows of its metrics."""

    id: str
    result: dict[str, Any]
    settings: dict[str, str]
    metrics: list[dict[str, float]]


@dataclass(frozen=True)
class Table:
    """`rows`: a name and a text for each run, in the order of the runs."""

    title: str
    rows: tuple[tuple[str, ...], ...]


def read(record: Record, outputs: Path | None = None) -> Measured:
    """Raises InvalidInput for a run that has no result yet. `outputs`: where its metrics are."""
    result = record.read_json("result.json")
    if result is None or "score" not in result:
        raise InvalidInput(f"run {record.id} has no result yet", hint=f"harness run {record.id}, or harness evaluate")
    settings = flat(record.read_json("run.json") or {})
    return Measured(record.id, result, settings, report.read_metrics(outputs or record.path / "outputs"))


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted keys; what is not set is left out."""
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}{name}.").items()}
    return {} if value is None else {prefix[:-1]: value if isinstance(value, str) else json.dumps(value)}


def tables(runs: Sequence[Measured]) -> list[Table]:
    """What is compared. Only settings and versions that are not the same in all of them are shown."""
    return [
        Table("result", tuple(_row(name, runs, ask) for name, ask in RESULT.items())),
        Table("time and memory", (*_seconds(runs), *(_row(name, runs, ask) for name, ask in COST.items()))),
        Table("settings that differ", _differing([run.settings for run in runs])),
        Table("versions that differ", _differing([flat(run.result.get("versions", {})) for run in runs])),
    ]


def _score(which: str) -> Callable[[dict[str, Any]], str]:
    def ask(result: dict[str, Any]) -> str:
        score = result["score"]
        return shown_of(score["measure"])(score[which]) if which in score else ABSENT

    return ask


RESULT: dict[str, Callable[[dict[str, Any]], str]] = {
    "measure": lambda result: str(result["score"]["measure"]),
    "examples": lambda result: str(result["score"]["rows"]),
    "always the most frequent answer": _score("trivial"),
    "before fine-tuning": _score("base"),
    "after fine-tuning": _score("tuned"),
    "training loss": lambda result: _number(result.get("training", {}).get("train_loss"), 4),
    "evaluation loss": lambda result: _number(result.get("training", {}).get("eval_loss"), 4),
    "steps": lambda result: _number(result.get("training", {}).get("steps"), 0),
}
COST: dict[str, Callable[[dict[str, Any]], str]] = {
    "training itself, s": lambda result: _number(result.get("training", {}).get("seconds"), 0),
    "training, tokens/s": lambda result: _number(result.get("tokens_per_second"), 0),
    "request to the tuned model, s: median": lambda result: _latency(result, "p50"),
    "request to the tuned model, s: 95th percentile": lambda result: _latency(result, "p95"),
    "on AWS": lambda result: str(result.get("cost") or ABSENT),
    "peak memory, MB": lambda result: _number(result.get("peak_rss_mb"), 0),
}


def _latency(result: dict[str, Any], which: str) -> str:
    return _number(result.get("latency", {}).get("tuned", {}).get(which), 2)


def _number(value: Any, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _row(name: str, runs: Sequence[Measured], ask: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
    return (name, *(ask(run.result) for run in runs))


def _seconds(runs: Sequence[Measured]) -> tuple[tuple[str, ...], ...]:
    phases = dict.fromkeys(phase for run in runs for phase in run.result.get("seconds", {}))
    return tuple(
        (f"{phase.replace('_', ' ')}, s", *(_number(run.result.get("seconds", {}).get(phase), 0) for run in runs))
        for phase in phases
    )


def _differing(each: Sequence[dict[str, str]]) -> tuple[tuple[str, ...], ...]:
    names = dict.fromkeys(name for one in each for name in one)
    rows = ((name, *(one.get(name, ABSENT) for one in each)) for name in names)
    return tuple(row for row in rows if len(set(row[1:])) > 1)


def examples(runs: Sequence[Measured]) -> list[tuple[str, ...]]:
    """(prompt, what is right, each run's tuned answer) of the prompts that all of them show."""
    answers = [{row["prompt"]: row for row in run.result.get("prompts", [])} for run in runs]
    shared = [prompt for prompt in answers[0] if all(prompt in one for one in answers)]
    return [(p, answers[0][p]["right"], *(one[p]["tuned"].strip() for one in answers)) for p in shared]


def html(runs: Sequence[Measured]) -> str:
    """The page: one file, readable on a phone. Every text is escaped by the template engine."""
    return str(
        report.template("compare.html.j2").render(
            runs=[run.id for run in runs],
            verdicts=[run.result.get("verdict", "") for run in runs],
            tables=tables(runs),
            curves=report.loss_curves({run.id: run.metrics for run in runs}),
            examples=examples(runs),
        )
    )
