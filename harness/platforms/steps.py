"""The steps of a run on any platform, in order: plan, upload, train, deploy, measure, report, down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from containers import rows as data
from harness import checks, evaluate, invoke, plan as plans, record as records, report, runfile, stacks
from harness.errors import Interrupted, InvalidInput, Problem, Refused
from harness.estimate import cpu
from harness.evaluate import HeldOut, Score
from harness.plan import Deployment, Plan
from harness.platforms import targets
from harness.platforms.meter import Meter
from harness.platforms.platform import Platform
from harness.platforms.targets import DIRECT, Target
from harness.record import Record
from harness.reporter import Reporter
from harness.runfile import RunFile

ASK_BATCH = 16  # prompts a request: a batch that two cores answer in well under a second
SHOWN_PROMPTS = 5


@dataclass(frozen=True)
class Run:
    """A run that is being worked on: its record, its file and its plan."""

    record: Record
    file: RunFile
    plan: Plan


def start(path: Path, measured: bool = False, target: Target = DIRECT) -> Run:
    """Check the run file, make the plan, and only then a record."""
    path = runfile.find(path)
    stack = stacks.get(stacks.DEFAULT)
    file = checks.load(path, stack, measured)
    plan = plans.make(file, stack, target.profile, records.new_id(file.name))
    files = {
        "run.json": file.model_dump_json(indent=2) + "\n",
        "plan.json": plan.to_json() + "\n",
        **targets.files(target),
    }
    return Run(records.create(plan.run_id, path, files), file, plan)


def start_or_continue(argument: Path, measured: bool = False, platform: str = "", region: str = "") -> Run:
    """A run file starts a run on `platform`; the id of a run goes on with it where it was started."""
    if argument.parent == Path() and not argument.is_file():
        for record in records.all_records():
            if record.id == argument.name:
                run = resume(record)
                if platform and platform != targets.of(record).platform:
                    raise InvalidInput(f"run {record.id} is on platform {targets.of(record).platform}")
                if measured and (problems := checks.check_measurable(run.file)):
                    raise InvalidInput.of(problems)
                return run
    return start(argument, measured, targets.choose(platform, region))


def resume(record: Record) -> Run:
    """A run from its record."""
    file = RunFile.model_validate_json((record.path / "run.json").read_text(encoding="utf-8"))
    return Run(record, file, plans.from_json((record.path / "plan.json").read_text(encoding="utf-8")))


@contextmanager
def working_on(run: Run, verb: str, reporter: Reporter, executor: str = "") -> Iterator[Platform]:
    """Hold the run, settle what a crash has left, and say how to go on after an interruption.

    `executor` is one of executors.NAMES, or what the run had, or `process`; by direct call only.
    """
    with run.record.held(verb), targets.opened(run.record, reporter.say, executor=executor) as platform:
        try:
            platform.settle()
            yield platform
        except Interrupted as error:
            what, hint = platform.where()
            raise Interrupted(error.signum, what, hint or f"go on: harness {verb} {run.record.id}") from None
        except Refused as error:
            what, hint = platform.where()
            if hint:  # a job goes on, whatever we may not ask any more
                error.problems.append(Problem(what, hint=hint))
            raise


def train(run: Run, platform: Platform, reporter: Reporter) -> None:
    """Upload what the job needs, then run it to its end; nothing is done that is done already."""
    platform.check(run.file, run.plan)
    platform.upload(run.file, run.plan)
    if platform.here:
        _say_estimate(platform, run.file, reporter)
    follow = _LogFollower(run.record.log, reporter)
    artifact = platform.train(
        run.plan, lambda status, text: reporter.say(f"{status}: {text}" if text else status), follow
    )
    follow()
    reporter.say(f"artifact: {artifact}")


def _say_estimate(platform: Platform, run: RunFile, reporter: Reporter) -> None:
    """Of the one model whose speed here was measured; of another nothing is known before it is read."""
    file = platform.channels(run).get("train")
    if file is None or run.model.id != cpu.MEASURED:
        return
    found = [row.values for row in data.read(file) if isinstance(row, data.Row)]
    characters = sum(len(str(text)) for values in found for text in values.values())
    steps = run.train.get("max_steps", -1)
    if isinstance(steps, int) and steps > 0:
        each = int(run.train.get("per_device_train_batch_size", 8))
        seen = steps * each * int(run.train.get("gradient_accumulation_steps", 1)) / max(len(found), 1)
    else:
        seen = float(run.train.get("num_train_epochs", 3.0))
    reporter.say(cpu.training(characters * seen).text)


class _LogFollower:
    """Called now and then: reports the steps that the trainer has logged since."""

    def __init__(self, log: Path, reporter: Reporter) -> None:
        self.log, self.reporter = log, reporter
        self.position = log.stat().st_size if log.exists() else 0  # a resumed job appends

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


def deploy(
    platform: Platform, deployment: Deployment, reporter: Reporter, port: int | None = None, ttl: float | None = None
) -> Any:
    """One endpoint, InService. `ttl`: seconds until `down --expired` takes it down, instead of the profile's."""
    reporter.say(f"endpoint {deployment.endpoint_name}: Creating")
    endpoint = platform.deploy(deployment, lambda: None, port, ttl)
    reporter.say(f"endpoint {endpoint.name}: InService on {platform.address(endpoint)}")
    return endpoint


def measure(run: Run, platform: Platform, meter: Meter, reporter: Reporter, keep: bool) -> dict[str, Any]:
    """Base and tuned model over the test rows, each through its own endpoint; no row is asked twice.

    `keep` leaves the tuned model's endpoint running.
    """
    assert run.file.data.labels is not None
    reading = data.Reading(run.file.data.columns or {}, run.file.data.format)
    rows = evaluate.read_rows(platform.channels(run.file)["test"], reading)
    labels = evaluate.labels_of(run.file.data.labels)
    scores: dict[str, Score] = {}
    for which, deployment in (("base", run.plan.base), ("tuned", run.plan.tuned)):
        if deployment is None:
            continue
        stays = keep and which == "tuned"
        answers = run.record.read_json(f"answers-{which}.json")
        if answers is None or stays:
            with meter.phase(f"deploy_{which}"):
                endpoint = deploy(platform, deployment, reporter)
            try:
                if answers is None:
                    with meter.phase(f"evaluate_{which}"):
                        answers = _ask_all(platform, endpoint, rows, which, reporter)
                    run.record.write_json(f"answers-{which}.json", answers)
            except BaseException:
                stays = False
                raise
            finally:
                if not stays:
                    with meter.phase(f"delete_{which}"):
                        platform.delete(endpoint)
        else:
            _delete_left(platform, deployment)
        scores[which] = evaluate.score(rows, labels, answers)
    return _result(run.record, rows, scores)


def _delete_left(platform: Platform, deployment: Deployment) -> None:
    """The endpoint of a model that is measured already: a run was killed before it could delete it."""
    for endpoint in list(platform.endpoints()):
        if endpoint.name == deployment.endpoint_name:
            platform.delete(endpoint)


def _ask_all(platform: Platform, endpoint: Any, rows: list[HeldOut], which: str, reporter: Reporter) -> list[str]:
    answers: list[str] = []
    for start_at in range(0, len(rows), ASK_BATCH):
        prompts = [row.prompt for row in rows[start_at : start_at + ASK_BATCH]]
        body = invoke.request(prompts, max_new_tokens=evaluate.MAX_NEW_TOKENS)
        answers += invoke.texts(platform.invoke(endpoint, body))
        reporter.progress(f"asking the {which} model", len(answers), len(rows))
    return answers


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


def finish(record: Record, platform: Platform, result: dict[str, Any], meter: Meter) -> None:
    """result.json and report.html."""
    outputs = platform.outputs()
    manifest = _manifest(outputs)
    result |= {
        "seconds": {name: round(value, 2) for name, value in meter.seconds.items()},
        "peak_rss_mb": round(meter.peak_rss_mb),
        "versions": manifest.get("versions", {}),
        "training": manifest.get("metrics", {}),
        "dtype": manifest.get("dtype", ""),
    }
    record.write_json("result.json", result)
    record.write_text("report.html", report.html(result, report.read_metrics(outputs)))


def _manifest(folder: Path) -> dict[str, Any]:
    from containers.artifact import ArtifactError, read_manifest

    try:
        return asdict(read_manifest(folder))
    except ArtifactError:
        return {}
