"""What this machine can do, and the remedy where it cannot. Nothing is started or installed.

Nothing is asked over the net either, unless it is `look_at_aws`.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from harness import bootstrap
from harness.assets import djl
from harness.aws import session as aws
from harness.aws.session import Aws
from harness.errors import HarnessError, Problem
from harness.executors import neuron_host
from harness.images import engine
from harness.paths import CACHE, IN_CHECKOUT, environment
from harness.run import probes
from harness.spec import profile as profiles, stacks
from harness.spec.runfile import RunFile

SET_UP = "make setup" if IN_CHECKOUT else "harness setup"
RUNS_ON_AWS = "runs on AWS"
MADE_BY_RUN = "runs, of which the first one makes it"
RUNS = "runs"
"""`make demo` and every run on this machine: without it nothing goes."""
TESTS = {"neuron": "make test-neuron"}  # what the environments of tests are for


@dataclass(frozen=True)
class Check:
    """One thing: `needed_for` says what goes only with it; `remedy` is empty where it is there."""

    name: str
    needed_for: str
    ok: bool
    found: str
    why: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, str | bool]:
        return asdict(self)

    @property
    def missing(self) -> bool:
        """Whether nothing goes for want of it."""
        return not self.ok and self.needed_for == RUNS


def look(root: Path = Path("/")) -> Iterator[Check]:
    """Every check, as it is made; `root` is where a Neuron host's devices are looked for."""
    yield from _machine()
    yield from _environments()
    yield _wheel()
    yield _java()
    yield _server()
    yield from _docker()
    yield _asked("AWS profile", "AWS", lambda: f"account {(p := profiles.load()).account}, region {p.region}")
    yield _credentials()
    yield _neuron(root)
    for name, ask in probes.of_neuron_host(neuron_host.look(root)):
        yield _asked(name, "devices neuron", lambda ask=ask: probes.within(ask))  # type: ignore[misc]


def look_at_aws(run: RunFile, seconds: float = probes.TIME_OUT) -> Iterator[Check]:
    """What a run needs of the account; each question is given up after `seconds`. Without an identity only that."""
    if not profiles.is_there():
        yield _missing("AWS profile", RUNS_ON_AWS, Problem("there is none", hint="write one: harness init"))
        return
    profile = profiles.load()
    for name, ask in probes.of_account(Aws(profile), profile, run):
        check = _asked(name, RUNS_ON_AWS, lambda ask=ask: probes.within(ask, seconds))  # type: ignore[misc]
        yield check
        if name == probes.IDENTITY and not check.ok:  # every other answer would be the same refusal
            return


def _machine() -> Iterator[Check]:
    problems = bootstrap.prerequisites([])
    yield from (_missing("machine", RUNS, p) for p in problems)
    if not problems:
        memory, disk = (
            psutil.virtual_memory().total / bootstrap.GIB,
            shutil.disk_usage(bootstrap.existing(CACHE)).free / bootstrap.GIB,
        )
        version = platform.python_version()
        found = f"Python {version}, git, make; {memory:.0f} GiB of memory, {disk:.0f} GiB of disk free"
        yield Check("machine", RUNS, True, found)


def _missing(name: str, needed_for: str, problem: Problem) -> Check:
    return Check(name, needed_for, False, problem.what, problem.why, problem.hint)


def _asked(name: str, needed_for: str, ask: Callable[[], str]) -> Check:
    """What `ask` finds; its refusal is what is missing."""
    try:
        return Check(name, needed_for, True, ask())
    except HarnessError as error:
        first = error.problems[0]
        return _missing(name, needed_for, Problem("; ".join(p.what for p in error.problems), first.why, first.hint))


def _environments() -> Iterator[Check]:
    """Those that runs need; in a checkout also those of its tests."""
    for name in bootstrap.ENVIRONMENTS:
        needed_for = RUNS if name in ("harness", "train", "serve") else TESTS.get(name, "make test-aws")
        if needed_for != RUNS and not IN_CHECKOUT:
            continue
        folder = environment(name).name
        if bootstrap.is_set_up(name):
            yield Check(folder, needed_for, True, f"as locks/{name}.txt says")
        else:
            remedy = f"run: {needed_for if needed_for != RUNS else SET_UP}"
            if not IN_CHECKOUT:
                needed_for, remedy = MADE_BY_RUN, f"{remedy}, or let the first run do it"
            yield Check(folder, needed_for, False, f"not as locks/{name}.txt says", remedy=remedy)


def _wheel() -> Check:
    needed_for = "a small set-up and small images"
    if wheel := bootstrap.find_torch_wheel():
        return Check("torch for CPU", needed_for, True, wheel.name)
    if index := os.environ.get("TORCH_INDEX"):
        return Check("torch for CPU", needed_for, True, f"from {index}")
    why = "PyPI's build brings 7 GB of CUDA libraries"
    return Check(
        "torch for CPU",
        needed_for,
        False,
        "no wheel",
        why,
        "TORCH_INDEX=URL names an index with it, WHEELS=DIR a directory",
    )


def _java() -> Check:
    return _asked("Java", RUNS, lambda: str(djl.java_home()))


def _server() -> Check:
    folder = CACHE / "djl"
    if folder.is_dir() and any(folder.rglob("djl-serving")):
        return Check("DJL Serving", RUNS, True, "jars and front are there")
    needed_for = RUNS if IN_CHECKOUT else MADE_BY_RUN
    return Check("DJL Serving", needed_for, False, "its jars are not there", remedy=f"run: {SET_UP}")


def _docker() -> Iterator[Check]:
    needed_for = "images, executor docker"
    problems = engine.problems(builds=True)
    yield from (_missing("Docker", needed_for, p) for p in problems)
    if not problems:
        yield Check("Docker", needed_for, True, engine.version())


def _credentials() -> Check:
    def ask() -> str:
        section = os.environ.get("AWS_PROFILE", "")
        if profiles.is_there():
            section = profiles.load().aws_profile or section
        return f"from {aws.credentials_from(section)}; not tried"

    return _asked("AWS credentials", "AWS", ask)


def _neuron(root: Path) -> Check:
    host, needed_for = neuron_host.look(root), "devices neuron"
    if problems := neuron_host.problems(host, stacks.DEFAULT, 0):
        return _missing("Neuron", needed_for, problems[0])
    return Check("Neuron", needed_for, True, f"driver {host.driver}, {host.cores} cores")
