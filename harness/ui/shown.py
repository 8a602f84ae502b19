"""What the pages show, as plain values: no NiceGUI here, so that it is tested without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.estimate import outlook as outlooks
from harness.estimate.memory import Footprint
from harness.estimate.outlook import Outlook
from harness.paths import PACKAGE
from harness.record import Record
from harness.run import forecast, platforms
from harness.run.evaluate import shown_of
from harness.run.report import COLOURS, template
from harness.run.status import ENDED, NOT_STARTED, RunStatus
from harness.spec import checks, runfile, stacks

STEP = re.compile(r"step=(\d+)/(\d+) loss=(\S+)")
ALIVE = ("Creating", "InService", "Updating")
LOG_LINES = 400  # of a log: what a reader scrolls through; `harness logs` has all of it


@dataclass(frozen=True)
class Curve:
    """Training losses as logged, and how far the job is."""

    points: tuple[tuple[int, float], ...]
    step: int = 0
    steps: int = 0

    @property
    def told(self) -> str:
        """The picture in words, for a screen reader."""
        if not self.points:
            return "no training loss has been logged yet"
        (first, begin), (last, end) = self.points[0], self.points[-1]
        return f"training loss {begin:.3f} at step {first}, {end:.3f} at step {last} of {self.steps}"


def curve(lines: Iterable[str]) -> Curve:
    """Of a training log. A resumed job logs steps again: the later value counts."""
    points: dict[int, float] = {}
    step = steps = 0
    for line in lines:
        if match := STEP.search(line):
            step, steps = int(match[1]), int(match[2])
            points = {s: loss for s, loss in points.items() if s < step} | {step: float(match[3])}
    return Curve(tuple(sorted(points.items())), step, steps)


@dataclass(frozen=True)
class View:
    """What is read from one run's record: its curve, the end of its log, and its result."""

    curve: Curve
    log: tuple[str, ...]
    scores: tuple[tuple[str, str], ...]
    verdict: str
    held_by: str
    """The verb of the command that works on it; empty where none does."""


def view(record: Record) -> View:
    """Read it all. Raises InvalidInput where the record is damaged."""
    try:
        lines = record.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    result, holder = record.read_json("result.json") or {}, record.holder()
    return View(
        curve(lines),
        tuple(lines[-LOG_LINES:]),
        tuple(_scores(result)),
        str(result.get("verdict", "")),
        holder.verb if holder is not None else "",
    )


def _scores(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of what was measured; nothing before that."""
    if "score" not in result:
        return
    score = result["score"]
    names = {"base": "before fine-tuning", "tuned": "after fine-tuning"}
    for which, name in ({"trivial": f"always {result.get('trivial_answer', '')!r}"} | names).items():
        if which in score:
            yield name, shown_of(score["measure"])(score[which])


def state_line(status: RunStatus, found: View) -> str:
    """Where a run stands, in one line."""
    steps = f", step {found.curve.step} of {found.curve.steps}" if found.curve.steps else ""
    works = f"; harness {found.held_by} works on it" if found.held_by else ""
    endpoints = "".join(f"; endpoint {e.name.rpartition('-')[2]} {e.status}" for e in status.endpoints)
    return f"{status.platform}: training {status.training}{steps}{endpoints}{works}{_noted(status)}"


def _noted(status: RunStatus) -> str:
    return f" ({status.note})" if status.note else ""


def row(status: RunStatus) -> dict[str, str]:
    """A run's row in the table of runs."""
    return {
        "run": status.run,
        "platform": status.platform,
        "training": status.training + _noted(status),
        "score": "" if status.score is None else shown_of(status.measure)(status.score),
        "endpoints": ", ".join(f"{e.name.rpartition('-')[2]} {e.status}" for e in status.endpoints),
        "cost": status.cost,
    }


@dataclass(frozen=True)
class Actions:
    """Which verbs make sense now."""

    stop: bool
    go_on: bool
    deploy_tuned: bool
    deploy_base: bool
    chat: bool
    take_down: bool


def actions(status: RunStatus, found: View) -> Actions:
    """A run that a command holds can be stopped; everything else waits until it lets go."""
    free, trained = not found.held_by, status.training == "Completed"
    alive = {e.name.rpartition("-")[2]: e.status for e in status.endpoints if e.status in ALIVE}
    works = status.training not in (*ENDED, NOT_STARTED, "unknown", "deleted", "Interrupted")
    return Actions(
        stop=not free,
        go_on=free and not found.scores and status.training != "unknown",
        deploy_tuned=free and trained and "tuned" not in alive,
        deploy_base=free and trained and "base" not in alive,
        chat="InService" in alive.values(),
        take_down=free and bool(alive or works),
    )


@dataclass(frozen=True)
class Part:
    """One part of a memory bar: `share` of the capacity, or of the whole where that is more."""

    name: str
    amount: str
    share: float
    colour: str
    reason: str


@dataclass(frozen=True)
class Bar:
    """What one NeuronCore or host holds. `full`: where its capacity lies on the bar, 0 to 1."""

    name: str
    verdict: str
    total: str
    capacity: str
    full: float
    parts: tuple[Part, ...]

    @property
    def told(self) -> str:
        """The picture in words, for a screen reader."""
        return f"{self.name}: about {self.total} of {self.capacity}, {self.verdict}"


def bars(found: Outlook) -> list[Bar]:
    """Training and serving, a core and the host of each, where they are known."""
    out = []
    for name, side in (("training", found.train), ("serving", found.serve)):
        for what, part in (("one NeuronCore", side.core), ("the host", side.host)):
            if part is not None:
                out.append(_bar(f"{name} on {side.instance}, {what}", part))
    return out


def _bar(name: str, part: Footprint) -> Bar:
    whole = max(part.total.expected, part.capacity)
    terms = sorted(part.terms, key=lambda term: -term.span.expected)
    parts = (
        Part(t.name, outlooks.gib(t.span.expected), t.span.expected / whole, COLOURS[i % len(COLOURS)], t.reason)
        for i, t in enumerate(terms)
    )
    total, capacity = outlooks.gib(part.total.expected), outlooks.gib(part.capacity)
    return Bar(name, part.verdict, total, capacity, part.capacity / whole, tuple(parts))


def run_files() -> list[str]:
    """What can be started: ready-made names, then run files in the current directory."""
    ready = sorted(path.stem for path in (PACKAGE / "runs").glob("*.toml"))
    own = sorted(path.name for path in Path.cwd().glob("*.toml") if _is_run_file(path))
    return ready + own


def _is_run_file(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    return "[model]" in text and "[data]" in text


def plain_prompts(record: Record) -> bool:
    """Whether the run was trained on prompts as they are; of chat data the endpoint applies the chat template."""
    data: dict[str, Any] = (record.read_json("run.json") or {}).get("data", {})
    return data.get("format") not in ("messages", "sharegpt") and not data.get("chat_template")


def plan_html(file: str, platform: str) -> str:
    """Memory bars with their parts, time, price, and what the rules say; escaped by the template engine.

    Raises what checking a run file and reading the profile raise.
    """
    stack, path = stacks.get(stacks.DEFAULT), runfile.find(Path(file))
    run = checks.load(path, stack)
    found = forecast.of(path, run, stack, platforms.choose(platform).profile)
    known = found.outlook
    lines = plan_lines(known) if known is not None else [found.unknown]
    page = template("ui/plan.html.j2").render(
        problems=found.problems, lines=lines, bars=bars(known) if known is not None else []
    )
    return str(page)


def plan_lines(found: Outlook) -> list[str]:
    """Time and price, a line each."""
    steps = "an unknown number of steps" if found.work.steps is None else f"{found.work.steps:,} steps"
    job, start = found.job_time, found.start_time
    lines = [
        f"{steps}; job {job.low / 60:.0f} to {job.high / 60:.0f} min on {found.train.instance}",
        f"endpoint ready after {start.low / 60:.0f} to {start.high / 60:.0f} min on {found.serve.instance}",
        f"on AWS: {forecast.cost_text(found)}",
    ]
    if found.endpoint_per_hour is not None:
        lines.append(f"an endpoint that stays costs {found.endpoint_per_hour} USD an hour")
    return lines
