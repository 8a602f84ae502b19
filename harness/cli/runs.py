"""Verbs that start, go on with, show and end runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import output


def run_ids(incomplete: str) -> list[str]:
    """Shell completion: the runs below the current directory."""
    from harness import record as records

    return [r.id for r in records.all_records() if r.id.startswith(incomplete)]


def run_files(incomplete: str) -> list[str]:
    """Shell completion: ready-made run files, runs, and .toml files here."""
    from harness.paths import PACKAGE

    names = [p.stem for p in sorted((PACKAGE / "runs").glob("*.toml"))]
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
        help="Where: local (this machine, the default), ec2 (this Neuron host), sagemaker (AWS).",
        metavar="NAME",
        autocompletion=lambda: ["local", "ec2", "sagemaker"],
    ),
]
MaxCostFlag = Annotated[
    str,
    typer.Option(
        "--max-cost",
        help="What it may cost at most: refused beforehand, kept by MaxRuntime and expiry.",
        metavar="USD",
    ),
]
RegionFlag = Annotated[str, typer.Option("--region", help="Instead of the profile's.", metavar="REGION")]


def plan(
    run_file: RunFileArg,
    platform: PlatformFlag = "",
    region: RegionFlag = "",
    json: JsonFlag = False,
    what_if: Annotated[
        str,
        typer.Option("--what-if", help="Compare settings: fit, time, cost of each value.", metavar="KEY=A,B,C"),
    ] = "",
    requests: Annotated[bool, typer.Option("--requests", help="Show the requests and derived values only.")] = False,
) -> None:
    """Check a run file: whether it fits, how long it takes, what it costs, and the requests it makes."""
    import json as encoder

    from harness.cli import forecast as shown
    from harness.errors import InvalidInput
    from harness.run import forecast, platforms
    from harness.spec import checks, plan as plans, runfile, stacks

    stack, path = stacks.get(stacks.DEFAULT), runfile.find(run_file)
    run = checks.load(path, stack)
    profile = platforms.choose(platform, region).profile
    if what_if:
        key, variants = forecast.variants(path, run, stack, profile, what_if)
        if json:
            rows = [
                {"value": v.value, "problem": v.problem} | (shown.to_dict(v.forecast) if v.forecast else {})
                for v in variants
            ]
            output.out(encoder.dumps({"key": key, "variants": rows}, indent=2))
        else:
            shown.compare(key, variants)
        return
    made = plans.make(run, stack, profile, f"{run.name}-RUN")
    found = forecast.of(path, run, stack, profile)
    if json:
        output.out(encoder.dumps(encoder.loads(made.to_json()) | {"forecast": shown.to_dict(found)}, indent=2))
    else:
        if not requests:
            output.out(f"{run.name}: fit, time and price (stack {made.stack}, {profile.region})")
            output.out("")
            shown.show(found)
        _show_requests(run.name, made)
    if found.problems:
        raise InvalidInput.of(found.problems)


def _show_requests(name: str, made: Any) -> None:
    from harness.cli.forecast import columns
    from harness.spec import plan as plans

    rows = [(op, next(str(v) for k, v in req.items() if k.endswith("Name"))) for op, req in plans.requests_of(made)]
    output.out(f"{name}: requests, in order (stack {made.stack})")
    parameters = sorted(made.create_training_job["HyperParameters"].items())
    derived = [(d.name, d.value, d.reason) for d in made.derived]
    for title, table, header in (
        ("", rows, ("operation", "name")),
        ("hyperparameters", parameters, ("name", "value")),
        ("derived", derived, ("name", "value", "because")),
    ):
        if title:
            output.out("")
            output.out(title)
        for line in columns(table, header):
            output.out(line)


def run(
    run_file: StartArg,
    platform: PlatformFlag = "",
    region: RegionFlag = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the tuned model's endpoint running.")] = False,
    executor: ExecutorFlag = "",
    max_cost: MaxCostFlag = "",
    json: JsonFlag = False,
) -> None:
    """Train, serve, measure, report, take down."""
    from harness.run import platforms, steps
    from harness.run.report import Meter

    with output.reporter() as reporter:
        started = steps.start_or_continue(run_file, True, platform, region, executor, max_cost)
        reporter.say(f"run {started.record.id}")
        result = None if keep else started.record.read_json("result.json")
        if result is None or "score" not in result:  # of an earlier version: the answers are kept and measured again
            where = platforms.of(started.record).platform
            steps.check_measure(started, reporter)
            with steps.working_on(started.record, "run", reporter) as client:
                with Meter(lambda: platforms.processes(where)) as meter:
                    with meter.phase("train"):
                        steps.train(started, client, reporter)
                    result = steps.measure(started, client, meter, reporter, keep)
                steps.finish(started.record, client, result, meter)
    _show_result(started.record.path, result, json)
    if keep and not json:
        output.out(f"the endpoint stays: harness invoke --run {started.record.id} PROMPT; then: harness down")


def evaluate(
    run_id: RunArg = None,
    by: Annotated[
        Path | None,
        typer.Option("--by", help="Take [evaluate] from this run file instead of the run's own.", metavar="RUNFILE"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the tuned model's endpoint running.")] = False,
    json: JsonFlag = False,
) -> None:
    """Serve, measure and report once more what a run has trained."""
    from harness import record as records
    from harness.errors import InvalidInput
    from harness.run import platforms, steps
    from harness.run.report import Meter
    from harness.spec import checks

    with output.reporter() as reporter:
        asked = steps.resume(records.find(run_id))
        if by is not None:
            asked = steps.evaluated_by(asked, by)
        elif problems := checks.check_measurable(asked.file):
            raise InvalidInput.of(problems)
        where = platforms.of(asked.record).platform
        reporter.say(f"run {asked.record.id}")
        steps.check_measure(asked, reporter)
        with steps.working_on(asked.record, "evaluate", reporter) as client:
            steps.require_trained(client)
            with Meter(lambda: platforms.processes(where)) as meter:
                result = steps.measure(asked, client, meter, reporter, keep, anew=True)
            steps.finish(asked.record, client, result, meter)
    _show_result(asked.record.path, result, json)


def compare(
    run_id: Annotated[
        list[str],
        typer.Argument(help="Two runs or more, by id or its beginning.", metavar="RUN RUN…", autocompletion=run_ids),
    ],
    json: JsonFlag = False,
) -> None:
    """Put runs beside each other: results, time, memory, the settings that differ; also as a page."""
    import json as encoder

    from harness import record as records
    from harness.errors import InvalidInput
    from harness.files import write_text
    from harness.paths import runs_dir
    from harness.run import compare as comparison

    if len(set(run_id)) < 2:
        raise InvalidInput("a comparison needs two runs", hint="harness ps lists them")
    runs = [comparison.read(records.find(one)) for one in dict.fromkeys(run_id)]
    tables = comparison.tables(runs)
    if json:
        shown = {table.title: {row[0]: list(row[1:]) for row in table.rows} for table in tables}
        output.out(encoder.dumps({"runs": [run.id for run in runs], **shown}, indent=2))
        return
    for table in tables:
        if table.rows:
            output.table(table.title, list(table.rows), ("", *(run.id for run in runs)))
    output.out(f"page: {write_text(runs_dir() / 'compare.html', comparison.html(runs))}")


def train(
    run_file: StartArg,
    platform: PlatformFlag = "",
    region: RegionFlag = "",
    executor: ExecutorFlag = "",
    max_cost: MaxCostFlag = "",
) -> None:
    """Run the training job alone; prints the run's id."""
    from harness.run import steps

    with output.reporter() as reporter:
        started = steps.start_or_continue(run_file, False, platform, region, executor, max_cost)
        reporter.say(f"run {started.record.id}")
        with steps.working_on(started.record, "train", reporter) as client:
            steps.train(started, client, reporter)
    output.out(started.record.id)


def schema() -> None:
    """Print the JSON Schema of run files, for editors: first line `#:schema ./run-file.schema.json`."""
    import json as encoder

    from harness.spec.schema import document

    output.out(encoder.dumps(document(), indent=1))


def ps(json: JsonFlag = False) -> None:
    """Show runs and endpoints."""
    import json as encoder

    from harness.run import status
    from harness.run.evaluate import shown_of

    found = status.overview()
    if json:
        output.out(encoder.dumps([run.to_json() for run in found], indent=2))
        return
    rows = []
    for item in found:
        score = "" if item.score is None else shown_of(item.measure)(item.score)
        shown = "; ".join(f"{e.name.removeprefix(item.run + '-')} {e.status} {e.url}" for e in item.endpoints)
        rows.append((item.run, item.platform, item.training, score, item.note or shown, item.cost))
    if rows:
        header = ("run", "platform", "training", "score", "endpoints", "cost")
        costs = any(item.cost for item in found)
        output.table("", [row if costs else row[:-1] for row in rows], header if costs else header[:-1])
    else:
        output.out("no runs here; start one: harness run RUNFILE")


def logs(
    run_id: RunArg = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job or endpoint ends.")] = False,
    endpoint: Annotated[str, typer.Option(help="An endpoint's log instead: base or tuned.", metavar="WHICH")] = "",
) -> None:
    """Print a run's log."""
    from harness import record as records
    from harness.errors import InvalidInput
    from harness.run import status

    if endpoint not in ("", "base", "tuned"):
        raise InvalidInput(f"--endpoint {endpoint}", hint="base or tuned")
    for line in status.log_lines(records.find(run_id), endpoint, follow):
        output.out(line)


def _show_result(folder: Path, result: dict[str, Any], as_json: bool) -> None:
    """The table that ends a run, and where the rest is."""
    import json as encoder

    from harness.run.evaluate import shown_of, unit_of
    from harness.run.lm_eval import table as lm_eval_table

    if as_json:
        output.out(encoder.dumps(result, indent=2))
        return
    score, unparsable = result["score"], result["unparsable"]
    shown, (scale, unit, digits) = shown_of(score["measure"]), unit_of(score["measure"])
    rows = []
    if "trivial" in score:
        rows.append((f"always {result['trivial_answer']!r}"[:60], shown(score["trivial"]), ""))
    for which, name in (("base", "before fine-tuning"), ("tuned", "after fine-tuning")):
        if which in score:
            note = f"{100 * unparsable[which]:.1f} % without a label" if which in unparsable else ""
            rows.append((name, shown(score[which]), note))
    for which, name in (("base", "gain"), ("trivial", "over the trivial answer")):
        if f"over_{which}" in score:
            low, high = (f"{scale * value:+.{digits}f}" for value in score[f"over_{which}_ci95"])
            gain = f"{scale * score[f'over_{which}']:+.{digits}f}"
            rows.append((f"{name},{unit}" if unit else name, gain, f"95 % interval {low} to {high}"))
    title = f"measure {score['measure']} on {score['rows']} held-out examples, through the endpoint"
    output.table(title, rows, ("", "score", ""))
    output.out(f"\n{result['verdict']}")
    if result.get("lm_eval"):
        output.table("\nlm-eval, through the endpoint", *lm_eval_table(result["lm_eval"]))
    seconds = result["seconds"]
    phases = ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in seconds.items() if name != "total")
    output.out(f"{seconds['total']:.0f} s in all ({phases}); peak memory {result['peak_rss_mb']} MB")
    output.out(f"report: {folder / 'report.html'}")
