"""Verbs that show what runs said, and that end them."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import output
from harness.cli.runs import RunArg

if TYPE_CHECKING:
    from harness.record import Record


def logs(
    run_id: RunArg = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job or endpoint ends.")] = False,
    endpoint: Annotated[str, typer.Option(help="An endpoint's log instead: base or tuned.", metavar="WHICH")] = "",
) -> None:
    """Print a run's log."""
    from harness import record as records
    from harness.errors import NotFound
    from harness.platforms import targets

    record = records.find(run_id)
    if targets.of(record).platform in ("local", "sagemaker"):
        _remote_logs(record, follow, endpoint)
        return
    path = record.path / "logs" / f"{record.id}-{endpoint}.log" if endpoint else record.log
    if not path.exists():
        raise NotFound(f"run {record.id} has no log of {'endpoint ' + endpoint if endpoint else 'training'} yet")
    output.tail(path, lambda: follow and _alive(record, endpoint))


def _remote_logs(record: Record, follow: bool, endpoint: str) -> None:
    from harness.platforms import targets

    with targets.opened(record, lambda _: None) as platform:
        streams = platform.log_streams(endpoint)  # type: ignore[attr-defined]  # these two platforms have it
        while True:
            going_on = follow and _alive(record, endpoint)  # asked first: what was written before the end still comes
            for line in streams.new():
                output.out(line)
            if not going_on:
                return
            time.sleep(platform.resources.poll)  # type: ignore[attr-defined]


def _alive(record: Record, endpoint: str) -> bool:
    from harness.platforms import status

    now = status.of(record)
    if endpoint:
        return any(e.name.endswith(endpoint) and e.status in ("Creating", "InService") for e in now.endpoints)
    return now.training in ("Starting", "Pending", "Downloading", "Training", "Uploading", "Stopping")


def age(text: str) -> float:
    """Seconds of "90s", "30m", "2h" or "3d". Raises InvalidInput."""
    from harness.errors import InvalidInput

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match:
        raise InvalidInput(f"--older-than {text!r} is no time", hint="for example 90s, 30m, 2h, 3d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def down(
    run_id: RunArg = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run below this directory.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", help="Runs that began before that, for example 2h.", metavar="TIME")
    ] = "",
    expired: Annotated[bool, typer.Option("--expired", help="Endpoints whose time to live is over.")] = False,
) -> None:
    """Delete what a run left running: jobs, endpoints, their configurations and models."""
    from harness import record as records
    from harness.errors import HarnessError, InvalidInput
    from harness.platforms import ending, steps

    if sum((run_id is not None, everything, bool(older_than), expired)) > 1:
        raise InvalidInput("give one of RUN, --all, --older-than and --expired")
    names: list[str] = []
    problems = []
    with output.reporter() as reporter:
        if everything or older_than or expired:
            chosen = ending.begun_before(age(older_than) if older_than else 0.0)
        else:
            chosen = [records.find(run_id)]
        for record in chosen:
            try:
                with steps.working_on(steps.resume(record), "down", reporter) as platform:
                    names += ending.expire(platform, reporter.say) if expired else platform.down()
            except HarnessError as error:  # the others are still taken down
                if len(chosen) == 1 or error.exit_code >= 128:
                    raise
                problems += error.problems
    output.out(f"deleted: {', '.join(names)}" if names else "nothing to delete")
    if problems:
        raise HarnessError.of(problems)
