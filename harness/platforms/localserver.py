"""Platform `local`: the local SageMaker that a command talks to; started if none is up, ended when idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.aws import Aws
from harness.emulator import control
from harness.errors import HarnessError, NotFound
from harness.interrupts import shielded
from harness.platforms import resources
from harness.platforms.direct import PROCESS_IMAGES as IMAGES
from harness.platforms.resources import RUNNING_JOB
from harness.profile import LOCAL

Say = Callable[[str], None]
__all__ = ["IMAGES", "PROFILE", "up"]
PROFILE = LOCAL  # its bucket and role are what a local SageMaker is born with
STARTED = "started-by-a-run"  # in its state directory: no `harness local up` asked for this one


def state() -> Path:
    """The same directory as `harness local` uses where nothing else is said."""
    return Path(control.DEFAULT_STATE).absolute()


@contextmanager
def up(say: Say, start: bool = True) -> Iterator[str]:
    """The address of the local SageMaker.

    One that a run has started is ended by whichever command leaves it with nothing running; one that
    `harness local up` has started stays. Raises NotFound where none is up and `start` is false.
    """
    server = control.find(state())
    if server is None:
        if not start:
            raise NotFound(
                "the local SageMaker is not up", hint="harness local up, or repeat the verb that started it"
            )
        with shielded():
            state().mkdir(parents=True, exist_ok=True)
            (state() / STARTED).touch()
            server, _ = control.up(state(), None, PROFILE.region, "process")
        say(f"started a local SageMaker on {server.url}")
    try:
        yield server.url
    finally:
        if start and (state() / STARTED).exists():
            _end_if_idle(server.url, say)


def _end_if_idle(url: str, say: Say) -> None:
    with shielded():
        try:
            idle = not list(_running(url))
        except HarnessError:
            idle = False  # it does not answer; the next command finds out why
        if idle and control.down(state()):
            (state() / STARTED).unlink(missing_ok=True)
            say("ended the local SageMaker")


def _running(url: str) -> Iterator[str]:
    """What would be lost: jobs and endpoints."""
    aws = Aws(replace(PROFILE, endpoint_url=url))
    for status in RUNNING_JOB:
        for job in aws.pages("sagemaker", "list_training_jobs", "TrainingJobSummaries", StatusEquals=status):
            yield str(job["TrainingJobName"])
    yield from resources.named(aws, "endpoint", "", PROFILE.region)
