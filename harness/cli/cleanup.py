"""Verbs that delete: what a run left running, and the sweep by name."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from harness.cli import output
from harness.cli.runs import RunArg


def age(text: str) -> float:
    """Seconds of "90s", "30m", "2h" or "3d". Raises InvalidInput."""
    from harness.errors import InvalidInput

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match:
        raise InvalidInput(f"{text!r} is not a duration", hint="for example 90s, 30m, 2h, 3d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def down(
    run_id: RunArg = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run below this directory.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", help="Runs that began before that, for example 2h.", metavar="TIME")
    ] = "",
    expired: Annotated[bool, typer.Option("--expired", help="Endpoints whose time to live is over.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Its data, checkpoints and artifacts in the bucket, too.")
    ] = False,
) -> None:
    """Delete what a run left running: jobs, endpoints, their configurations and models."""
    from harness import record as records
    from harness.errors import HarnessError, InvalidInput
    from harness.run import cleanup, steps

    if sum((run_id is not None, everything, bool(older_than), expired)) > 1:
        raise InvalidInput("give one of RUN, --all, --older-than and --expired")
    if forget and expired:
        raise InvalidInput("--forget deletes what a run was for; --expired is for endpoints alone")
    names: list[str] = []
    errors: list[HarnessError] = []
    with output.reporter() as reporter:
        if everything or older_than or expired:
            chosen = cleanup.begun_before(age(older_than) if older_than else 0.0)
        else:
            chosen = [records.find(run_id)]
        for record in chosen:
            try:
                with steps.working_on(record, "down", reporter) as client:
                    names += cleanup.expire(client, reporter.say) if expired else client.down()
                    if forget:
                        client.forget()
            except HarnessError as error:  # the others are still taken down
                if len(chosen) == 1 or error.exit_code >= 128:
                    raise
                errors.append(error)
    output.out(f"deleted: {', '.join(names)}" if names else "nothing to delete")
    if errors:
        raise type(errors[0]).of([problem for error in errors for problem in error.problems])


def sweep(
    prefix: Annotated[str, typer.Argument(help="Names that begin so.", metavar="PREFIX")],
    region: Annotated[list[str] | None, typer.Option("--region", help="May be given more than once.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """List jobs, endpoints and models by name, whoever made them; delete them if you say so."""
    from harness.aws.session import Aws
    from harness.errors import InvalidInput
    from harness.run import cleanup
    from harness.sagemaker import preflight
    from harness.spec import profile as profiles

    if len(prefix) < 3:
        raise InvalidInput("PREFIX needs at least three characters", "a shorter one fits what others have made")
    profile = profiles.load()
    aws = Aws(profile)
    who = preflight.identity(aws, profile)
    regions = region or list(dict.fromkeys([profile.region, profile.serving.region]))
    found = cleanup.sweep_list(aws, prefix, regions)
    if not found:
        output.out(f"nothing begins with {prefix} in {', '.join(regions)}")
        return
    output.table(f"as {who}:", [(m.kind, m.name, m.region) for m in found], ("kind", "name", "region"))
    if yes or typer.confirm(f"stop and delete these {len(found)}?", err=True):
        with output.reporter() as reporter:
            cleanup.sweep(aws, found, 5.0, reporter.say)
