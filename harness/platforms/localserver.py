"""Platform `local`: the local SageMaker that a command talks to; started if none is up, ended when idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread

from harness import images, stacks
from harness.aws import Aws
from harness.emulator import control
from harness.emulator.control import Server
from harness.errors import Busy, HarnessError, NotFound
from harness.interrupts import shielded
from harness.platforms import resources
from harness.platforms.direct import PROCESS_IMAGES as IMAGES
from harness.platforms.resources import RUNNING_JOB
from harness.profile import LOCAL

Say = Callable[[str], None]
__all__ = ["IMAGES", "PROFILE", "images_of", "up"]
PROFILE = LOCAL  # its bucket and role are what a local SageMaker is born with
STARTED = "started-by-a-run"  # in its state directory: no `harness local up` asked for this one


def state() -> Path:
    """The same directory as `harness local` uses where nothing else is said."""
    return Path(control.DEFAULT_STATE).absolute()


@contextmanager
def up(say: Say, start: bool = True, executor: str = "") -> Iterator[Server]:
    """The local SageMaker; `executor` is what one that has to be started runs containers with, `process` if empty.

    One that a run has started is ended by whichever command leaves it with nothing running; one that
    `harness local up` has started stays. Raises NotFound where none is up and `start` is false, Busy where one with
    another executor is.
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
            # Every call after this one needs it: a third of a second; the server's own imports take a whole one.
            Thread(target=import_module, args=("boto3",), daemon=True).start()
            server, _ = control.up(state(), None, PROFILE.region, executor)
        say(f"started a local SageMaker on {server.url}")
    elif executor not in ("", server.executor):
        what = f"the local SageMaker that is up has executor {server.executor}, not {executor}"
        raise Busy(what, hint="harness local down, then repeat this; or leave --executor out")
    try:
        yield server
    finally:
        if start and (state() / STARTED).exists():
            _end_if_idle(server.url, say)


def images_of(server: Server) -> dict[str, str]:
    """What the plan's images stand for there. Raises MissingPrerequisite where they are not built."""
    return images.on_this_machine(stacks.DEFAULT) if server.executor == "docker" else IMAGES


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
