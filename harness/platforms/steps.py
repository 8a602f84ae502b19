"""The steps of a run on platform `local`, in order: plan, upload, train, deploy, measure, report, down."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import evaluate, invoke, plan as plans, record as records, report, runfile, stacks
from harness.emulator.hosting import Endpoint
from harness.errors import InvalidInput, NotFound
from harness.estimate import cpu
from harness.evaluate import HeldOut, Score
from harness.plan import Deployment, Plan
from harness.platforms.local import Local
from harness.platforms.meter import Meter
from harness.profile import LOCAL
from harness.record import Record
from harness.reporter import Reporter
from harness.runfile import RunFile

ASK_BATCH = 16  # prompts a request: a batch that two cores answer in well under a second
SHOWN_PROMPTS = 5


def new_run(path: Path, measured: bool = False) -> tuple[Record, RunFile, Plan]:
    """Check the run file, make the plan, and only then a record."""
    run = runfile.load(path)
    if measured:
        check_measurable(run)
    plan = make_plan(run, records.new_id(run.name))
    record = records.create(plan.run_id, runfile.find(path))
    record.write_text("run.json", run.model_dump_json(indent=2) + "\n")
    record.write_text("plan.json", plan.to_json() + "\n")
    return record, run, plan


def check_measurable(run: RunFile) -> None:
    """`run` ends with a measurement; say so before anything is trained."""
    if run.data.labels is None or (run.data.id is None and run.data.test is None):
        why = "it asks the endpoint held-out examples and compares the answers with their labels"
        hint = "add them, or use: harness train, harness deploy, harness invoke"
        raise InvalidInput("`run` needs data.labels and a test channel", why, hint)


def make_plan(run: RunFile, run_id: str) -> Plan:
    """The plan of `run` for the local profile."""
    return plans.make(run, stacks.get(stacks.DEFAULT), LOCAL, run_id)


def open_run(record: Record) -> tuple[RunFile, Plan]:
    """The run file and plan of an existing record."""
    plan_file = record.path / "plan.json"
    if not plan_file.exists():
        raise NotFound(f"run {record.id} has no plan", "its start was interrupted", "delete it and start anew")
    run = RunFile.model_validate_json((record.path / "run.json").read_text(encoding="utf-8"))
    return run, plans.from_json(plan_file.read_text(encoding="utf-8"))


def train(record: Record, run: RunFile, plan: Plan, reporter: Reporter) -> None:
    """Upload what the job needs, then run it to its end."""
    platform = Local(record, reporter.say)
    platform.upload(run, plan)
    _say_estimate(platform, run, reporter)
    follow = _LogFollower(record.log, reporter)
    job = platform.train(plan, lambda status, text: reporter.say(f"{status}: {text}" if text else status), follow)
    follow()
    reporter.say(f"artifact: {job.model_artifacts}")


def _say_estimate(platform: Local, run: RunFile, reporter: Reporter) -> None:
    file = platform.channels(run).get("train")
    if file is None:
        return
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    characters = sum(len(str(text)) for row in rows for text in row.values())
    steps = run.train.get("max_steps", -1)
    if isinstance(steps, int) and steps > 0:
        each = int(run.train.get("per_device_train_batch_size", 8))
        seen = steps * each * int(run.train.get("gradient_accumulation_steps", 1)) / max(len(rows), 1)
    else:
        seen = float(run.train.get("num_train_epochs", 3.0))
    reporter.say(cpu.training(characters * seen).text)


class _LogFollower:
    """Called now and then: reports the steps that the trainer has logged since."""

    def __init__(self, log: Path, reporter: Reporter) -> None:
        self.log, self.reporter, self.position = log, reporter, 0

    def __call__(self) -> None:
        if not self.log.exists():
            return
        with self.log.open("rb") as handle:
            handle.seek(self.position)
            text = handle.read()
        complete = text[: text.rfind(b"\n") + 1]
        self.position += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            if line.startswith(("device ", "train:", "validation:")):
                self.reporter.say(line)
            match = re.match(r"step=(\d+)/(\d+) loss=(\S+)", line)
            if match:
                self.reporter.progress(f"training, loss {match[3]}", int(match[1]), int(match[2]))


def deploy(record: Record, deployment: Deployment, reporter: Reporter) -> Endpoint:
    """One endpoint, InService."""
    platform = Local(record, reporter.say)
    reporter.say(f"endpoint {deployment.endpoint_name}: Creating")
    endpoint = platform.deploy(deployment, lambda: None)
    reporter.say(f"endpoint {endpoint.name}: InService on 127.0.0.1:{endpoint.port}")
    return endpoint


def measure(record: Record, run: RunFile, plan: Plan, meter: Meter, reporter: Reporter) -> dict[str, Any]:
    """Base and tuned model over the test rows, each through its own endpoint; the result, also as files."""
    platform = Local(record, reporter.say)
    assert run.data.labels is not None
    rows = evaluate.read_rows(platform.channels(run)["test"])
    labels = evaluate.labels_of(run.data.labels)
    scores: dict[str, Score] = {}
    for which, deployment in (("base", plan.base), ("tuned", plan.tuned)):
        if deployment is None:
            continue
        with meter.phase(f"deploy_{which}"):
            endpoint = deploy(record, deployment, reporter)
        try:
            with meter.phase(f"evaluate_{which}"):
                scores[which] = _score(platform, endpoint, rows, labels, which, reporter)
        finally:
            with meter.phase(f"delete_{which}"):
                platform.delete(endpoint)
    return _result(record, rows, scores)


def _score(
    platform: Local,
    endpoint: Endpoint,
    rows: list[HeldOut],
    labels: list[str],
    which: str,
    reporter: Reporter,
) -> Score:
    def ask(prompts: list[str]) -> list[str]:
        body = invoke.request(prompts, max_new_tokens=evaluate.MAX_NEW_TOKENS)
        return invoke.texts(platform.invoke(endpoint, body))

    def on_done(done: int) -> None:
        reporter.progress(f"asking the {which} model", done, len(rows))

    return evaluate.score(rows, labels, ask, ASK_BATCH, on_done)


def _result(record: Record, rows: list[HeldOut], scores: dict[str, Score]) -> dict[str, Any]:
    tuned, base = scores["tuned"], scores.get("base")
    shown = [
        {
            "prompt": row.prompt,
            "right": row.answer.strip(),
            "base": base.answers[i] if base else "",
            "tuned": tuned.answers[i],
        }
        for i, row in enumerate(rows[:SHOWN_PROMPTS])
    ]
    result: dict[str, Any] = {
        "run": record.id,
        "accuracy": {"tuned": tuned.accuracy, "majority": evaluate.majority(rows), "rows": len(rows)},
        "unparsable": {name: s.unparsable_share for name, s in scores.items()},
        "prompts": shown,
    }
    if base is not None:
        low, high = evaluate.gain_ci95(base, tuned)
        result["accuracy"] |= {
            "base": base.accuracy,
            "gain": tuned.accuracy - base.accuracy,
            "gain_ci95": [low, high],
        }
    return result


def finish(record: Record, result: dict[str, Any], meter: Meter) -> None:
    """result.json and report.html."""
    manifest = _manifest(record)
    result |= {
        "seconds": {name: round(value, 2) for name, value in meter.seconds.items()},
        "peak_rss_mb": round(meter.peak_rss_mb),
        "versions": manifest.get("versions", {}),
        "training": manifest.get("metrics", {}),
        "dtype": manifest.get("dtype", ""),
    }
    record.write_json("result.json", result)
    record.write_text(
        "report.html", report.html(result, report.read_metrics(record.path / "job" / "output" / "data"))
    )


def _manifest(record: Record) -> dict[str, Any]:
    from containers.artifact import ArtifactError, read_manifest

    try:
        return asdict(read_manifest(record.path / "job" / "model"))
    except ArtifactError:
        return {}
