"""The command line: parsing only; every verb calls one function per step.

Imports are inside the verbs, so that `harness --help` loads neither pydantic nor boto3.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import output
from harness.errors import HarnessError

app = typer.Typer(
    help="Fine-tune LLMs on AWS Trainium, serve them on Inferentia2; the same requests run on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,  # Rich's help takes 0.3 s to import
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunFileArg = Annotated[Path, typer.Argument(help="A run file, or the name of a ready-made one.", metavar="RUNFILE")]
RunArg = Annotated[
    str | None, typer.Argument(help="A run's id or its beginning; the newest if left out.", metavar="[RUN]")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]


@app.command()
def plan(run_file: RunFileArg, json: JsonFlag = False) -> None:
    """Check a run file and show the requests it makes, with the reason of every derived value."""
    from harness import plan as plans, runfile
    from harness.platforms import steps

    run = runfile.load(run_file)
    made = steps.make_plan(run, f"{run.name}-RUN")
    if json:
        output.out(made.to_json())
        return
    rows = [
        (operation, next(str(v) for k, v in request.items() if k.endswith("Name")))
        for operation, request in plans.requests_of(made)
    ]
    output.table(f"{run.name}: requests, in order (stack {made.stack})", rows, ("operation", "name"))
    output.out("")
    hyperparameters = made.create_training_job["HyperParameters"]
    output.table("hyperparameters", sorted(hyperparameters.items()), ("name", "value"))
    output.out("")
    output.table("derived", [(d.name, d.value, d.reason) for d in made.derived], ("name", "value", "because"))


@app.command()
def train(run_file: RunFileArg) -> None:
    """Run the training job of a run file; the artifact is in the record."""
    from harness.platforms import steps

    reporter = output.ConsoleReporter()
    record, run, made = steps.new_run(run_file)
    reporter.say(f"run {record.id}")
    steps.train(record, run, made, reporter)
    output.out(record.id)


@app.command()
def deploy(
    run_id: RunArg = None,
    base: Annotated[bool, typer.Option("--base", help="The model before fine-tuning.")] = False,
) -> None:
    """Start an endpoint with a run's artifact and leave it running."""
    from harness import record as records
    from harness.errors import NotFound
    from harness.platforms import steps

    record = records.find(run_id)
    _, made = steps.open_run(record)
    deployment = made.base if base else made.tuned
    if deployment is None:
        raise NotFound(f"run {record.id} has no base model to deploy", "it does not compare before and after")
    endpoint = steps.deploy(record, deployment, output.ConsoleReporter())
    output.out(endpoint.name)


@app.command()
def invoke(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    run_id: Annotated[str | None, typer.Option("--run", help="A run's id; the newest if left out.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 64,
) -> None:
    """Ask a running endpoint."""
    from harness import invoke as asking, record as records
    from harness.errors import NotFound
    from harness.platforms.local import Local

    record = records.find(run_id)
    platform = Local(record, output.ConsoleReporter().say)
    endpoint = next((e for e in platform.endpoints() if e.status == "InService"), None)
    if endpoint is None:
        raise NotFound(f"run {record.id} has no endpoint", hint=f"start one: harness deploy {record.id}")
    answer = platform.invoke(endpoint, asking.request(prompt, max_new_tokens=max_new_tokens))
    output.out(asking.texts(answer)[0])


@app.command()
def run(run_file: RunFileArg, json: JsonFlag = False) -> None:
    """The whole chain: train, deploy, measure what was learned, report, take everything down."""
    from harness.cli.result import show
    from harness.platforms import steps
    from harness.platforms.meter import Meter

    reporter = output.ConsoleReporter()
    record, run_, made = steps.new_run(run_file, measured=True)
    reporter.say(f"run {record.id}")
    with Meter() as meter:
        with meter.phase("train"):
            steps.train(record, run_, made, reporter)
        result = steps.measure(record, run_, made, meter, reporter)
    steps.finish(record, result, meter)
    show(record, result, json)


@app.command()
def down(run_id: RunArg = None) -> None:
    """Delete what a run left running."""
    from harness import record as records
    from harness.platforms.local import Local

    record = records.find(run_id)
    names = Local(record, output.ConsoleReporter().say).down()
    output.out(f"deleted: {', '.join(names)}" if names else "nothing to delete")


def main() -> None:
    """Run the command line; a HarnessError becomes its lines and its exit code, never a traceback."""
    try:
        app(standalone_mode=True)
    except HarnessError as error:
        output.problems(error.problems)
        sys.exit(error.exit_code)
