"""Verbs about where things run: this machine, and the profile of an AWS account."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import output
from harness.cli.runs import JsonFlag, RegionFlag


def init(
    account: Annotated[str, typer.Option(help="Twelve digits; asked from AWS if left out.")] = "",
    region: RegionFlag = "",
    role_arn: Annotated[str, typer.Option(help="The role that SageMaker runs containers as.")] = "",
    bucket: Annotated[str, typer.Option(help="For models, data and artifacts.")] = "",
    file: Annotated[Path | None, typer.Option(help="Instead of the usual place.")] = None,
    create: Annotated[bool, typer.Option("--create", help="Make bucket and role if missing.")] = False,
) -> None:
    """Write the profile: where requests go and as whom. Then ask AWS whether it fits."""
    from harness.sagemaker import account as accounts
    from harness.spec import profile as profiles

    wanted = {"account": account, "region": region, "role_arn": role_arn, "bucket": bucket}
    with output.reporter() as reporter:
        profile = accounts.propose(file, wanted)
        where = profiles.save(profile, file)
        reporter.say(f"written: {where}")
        accounts.finish(profile, create, reporter.say)
    output.out(str(where))


def doctor(
    run_file: Annotated[
        Path | None,
        typer.Argument(help="Whose instances quotas are asked for; tinyllama-imdb if left out.", metavar="[RUNFILE]"),
    ] = None,
    aws: Annotated[bool, typer.Option("--aws", help="Ask the account, too; nothing is made there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Say what this machine has, with --aws also the account; what is missing for what, and the remedy."""
    import json as encoder

    from harness import doctor as doctors
    from harness.errors import InvalidInput, MissingPrerequisite
    from harness.spec import runfile

    if run_file is not None and not aws:
        raise InvalidInput("a run file has no effect without --aws", hint="harness doctor --aws RUNFILE")
    found = list(doctors.look())
    if aws:
        found += doctors.look_at_aws(runfile.load(runfile.find(run_file or Path("tinyllama-imdb"))))
    if json:
        output.out(encoder.dumps([check.to_json() for check in found], indent=2))
    else:
        for check in found:
            state = "ok" if check.ok else "missing" if check.missing else "not here"
            output.out(f"{state:9}{check.name}: {check.found}")
            for word, text in (("for", check.needed_for), ("why", check.why), ("remedy", check.remedy)):
                if text and not check.ok:
                    output.out(f"         {word + ':':8}{text}")
    if any(check.missing or (check.needed_for == doctors.RUNS_ON_AWS and not check.ok) for check in found):
        raise typer.Exit(MissingPrerequisite.exit_code)


def setup() -> None:
    """Make the environments of trainer and handler and fetch the local server's jars; `run` does so when needed."""
    from harness.run import platforms

    with output.reporter() as reporter:
        platforms.set_up("process", reporter.say)
    output.out("set up")
