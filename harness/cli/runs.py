"""Verbs that start, go on with, show and end runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import output

if TYPE_CHECKING:
    pass


def run_ids(incomplete: str) -> list[str]:
    """Shell completion: the runs below the current directory."""
    from harness import record as records

    return [r.id for r in records.all_records() if r.id.startswith(incomplete)]


def run_files(incomplete: str) -> list[str]:
    """Shell completion: ready-made run files, runs, and .toml files here."""
    from harness.paths import ROOT

    names = [p.stem for p in sorted((ROOT / "harness" / "runs").glob("*.toml"))]
    names += [str(p) for p in sorted(Path().glob("*.toml"))]
    return [n for n in names if n.startswith(incomplete)] + run_ids(incomplete)


START_HELP = "A run file, the name of a ready-made one, or the id of a run to go on with."
StartArg = Annotated[Path, typer.Argument(help=START_HELP, metavar="RUNFILE|RUN", autocompletion=run_files)]
RunFileArg = Annotated[
    Path,
    typer.Argument(help="A run file, or the name of a ready-made one.", metavar="RUNFILE", autocompletion=run_files),
]
RunArg = Annotated[
    str | None,
    typer.Argument(
        help="A run's id or its beginning; the newest if left out.", metavar="[RUN]", autocompletion=run_ids
    ),
]
ExecutorFlag = Annotated[
    str,
    typer.Option(
        "--executor",
        envvar="EXECUTOR",
        help="process (needs nothing else), or docker (needs an engine and: harness build --stand-in).",
        metavar="NAME",
        autocompletion=lambda: ["process", "docker"],
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
PlatformFlag = Annotated[
    str,
    typer.Option(
        "--platform",
        help="Where: local (the API on this machine), ec2 (this Neuron host), sagemaker. Without it: by direct call.",
        metavar="NAME",
        autocompletion=lambda incomplete: [n for n in ("local", "ec2", "sagemaker") if n.startswith(incomplete)],
    ),
]
RegionFlag = Annotated[str, typer.Option("--region", help="Instead of the profile's.", metavar="REGION")]


def plan(run_file: RunFileArg, platform: PlatformFlag = "", region: RegionFlag = "", json: JsonFlag = False) -> None:
    """Check a run file and show its requests."""
    from harness import checks, plan as plans, runfile, stacks
    from harness.platforms import targets

    stack = stacks.get(stacks.DEFAULT)
    run = checks.load(runfile.find(run_file), stack)
    made = plans.make(run, stack, targets.choose(platform, region).profile, f"{run.name}-RUN")
    if json:
        output.out(made.to_json())
        return
    rows = [(op, next(str(v) for k, v in req.items() if k.endswith("Name"))) for op, req in plans.requests_of(made)]
    output.table(f"{run.name}: requests, in order (stack {made.stack})", rows, ("operation", "name"))
    output.out("")
    output.table("hyperparameters", sorted(made.create_training_job["HyperParameters"].items()), ("name", "value"))
    output.out("")
    output.table("derived", [(d.name, d.value, d.reason) for d in made.derived], ("name", "value", "because"))


def run(
    run_file: StartArg,
    platform: PlatformFlag = "",
    region: RegionFlag = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the tuned model's endpoint running.")] = False,
    executor: ExecutorFlag = "",
    json: JsonFlag = False,
) -> None:
    """Train, serve, measure, report, take down."""
    from harness import executors
    from harness.cli.result import show
    from harness.platforms import steps
    from harness.platforms.meter import Meter

    executors.check_name(executor)
    with output.reporter() as reporter:
        started = steps.start_or_continue(run_file, True, platform, region)
        reporter.say(f"run {started.record.id}")
        with steps.working_on(started, "run", reporter, executor) as there:
            result = None if keep else started.record.read_json("result.json")
            if result is None:
                with Meter() as meter:
                    with meter.phase("train"):
                        steps.train(started, there, reporter)
                    result = steps.measure(started, there, meter, reporter, keep)
                steps.finish(started.record, there, result, meter)
    show(started.record, result, json)
    if keep and not json:
        output.out(f"the endpoint stays: harness invoke --run {started.record.id} PROMPT; then: harness down")


def train(
    run_file: StartArg, platform: PlatformFlag = "", region: RegionFlag = "", executor: ExecutorFlag = ""
) -> None:
    """Run the training job alone; prints the run's id."""
    from harness import executors
    from harness.platforms import steps

    executors.check_name(executor)
    with output.reporter() as reporter:
        started = steps.start_or_continue(run_file, False, platform, region)
        reporter.say(f"run {started.record.id}")
        with steps.working_on(started, "train", reporter, executor) as there:
            steps.train(started, there, reporter)
    output.out(started.record.id)


def ps(json: JsonFlag = False) -> None:
    """Show runs and endpoints."""
    import json as encoder

    from harness.platforms import status

    found = status.overview()
    if json:
        output.out(encoder.dumps([run.to_json() for run in found], indent=2))
        return
    rows = []
    for item in found:
        accuracy = "" if item.accuracy is None else f"{100 * item.accuracy:.1f} %"
        shown = "; ".join(f"{e.name.removeprefix(item.run + '-')} {e.status} {e.url}" for e in item.endpoints)
        rows.append((item.run, item.platform, item.training, accuracy, item.note or shown))
    if rows:
        output.table("", rows, ("run", "platform", "training", "accuracy", "endpoints"))
    else:
        output.out("no runs here; start one: harness run RUNFILE")
