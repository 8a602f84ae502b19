"""Verbs about an AWS account: the profile, and the sweep by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import output
from harness.cli.runs import RegionFlag


def init(
    account: Annotated[str, typer.Option(help="Twelve digits; asked from AWS if left out.")] = "",
    region: RegionFlag = "",
    role_arn: Annotated[str, typer.Option(help="The role that SageMaker runs containers as.")] = "",
    bucket: Annotated[str, typer.Option(help="For models, data and artifacts.")] = "",
    file: Annotated[Path | None, typer.Option(help="Instead of the usual place.")] = None,
    create: Annotated[bool, typer.Option("--create", help="Make bucket and role if missing.")] = False,
) -> None:
    """Write the profile: where requests go and as whom. Then ask AWS whether it fits."""
    from harness import profile as profiles
    from harness.platforms import setup

    wanted = {"account": account, "region": region, "role_arn": role_arn, "bucket": bucket}
    with output.reporter() as reporter:
        profile = setup.propose(file, wanted)
        where = profiles.save(profile, file)
        reporter.say(f"written: {where}")
        setup.finish(profile, create, reporter.say)
    output.out(str(where))


def sweep(
    prefix: Annotated[str, typer.Argument(help="Names that begin so.", metavar="PREFIX")],
    region: Annotated[list[str] | None, typer.Option("--region", help="May be given more than once.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """List jobs, endpoints and models by name, whoever made them; delete them if you say so."""
    from harness import profile as profiles
    from harness.aws import Aws
    from harness.errors import InvalidInput
    from harness.platforms import ending, preflight

    if len(prefix) < 3:
        raise InvalidInput("PREFIX needs at least three characters", "a shorter one fits what others have made")
    profile = profiles.load()
    aws = Aws(profile)
    who = preflight.identity(aws, profile)
    regions = region or list(dict.fromkeys([profile.region, profile.serving.region]))
    found = ending.sweep_list(aws, prefix, regions)
    if not found:
        output.out(f"nothing begins with {prefix} in {', '.join(regions)}")
        return
    output.table(f"as {who}:", [(m.kind, m.name, m.region) for m in found], ("kind", "name", "region"))
    if yes or typer.confirm(f"stop and delete these {len(found)}?", err=True):
        with output.reporter() as reporter:
            ending.sweep(aws, found, 5.0, reporter.say)
