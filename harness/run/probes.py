"""What `harness doctor --aws` asks an account, and what it looks for on a Neuron host: each within a time."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import psutil

from harness.aws.session import Aws
from harness.errors import InvalidInput, MissingPrerequisite, Problem
from harness.estimate import hardware, spend
from harness.executors.neuron_host import Host
from harness.sagemaker import preflight
from harness.spec import stacks
from harness.spec.profile import Profile
from harness.spec.runfile import RunFile

IDENTITY = "AWS identity"
TIME_OUT = 20.0  # seconds: longer than two of the client's connection time-outs, shorter than anybody's patience
# "the request must reach AWS within five minutes of the time stamp in the request"
# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
CLOCK = 300.0
TOOLS = ("neuron-ls", "neuron-top")
TOOLS_IN = "opt/aws/neuron/bin"  # where aws-neuronx-tools puts them
SMALLEST_HOST = 14.0  # GiB that a 16 GiB inf2.xlarge, the smallest host with a second-generation core, has at least

Probe = tuple[str, Callable[[], str]]
"""A name, and a question: what was found, or HarnessError with what is missing and the remedy."""


def within(ask: Callable[[], str], seconds: float = TIME_OUT) -> str:
    """What `ask` answers. Raises its HarnessError, or MissingPrerequisite where no answer comes in time."""
    answers: queue.Queue[str | BaseException] = queue.Queue()

    def run() -> None:
        try:
            answers.put(ask())
        except BaseException as error:  # noqa: BLE001 (raised again below, by whoever waits)
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()  # a daemon: one that hangs must not hold the program
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        hint = "is the network up? a proxy needs HTTPS_PROXY"
        raise MissingPrerequisite(f"no answer within {seconds:.0f} s", hint=hint) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def of_account(aws: Aws, profile: Profile, run: RunFile, stack: str = stacks.DEFAULT) -> Iterator[Probe]:
    """Everything that a run needs of the account; nothing is made or changed."""
    yield IDENTITY, lambda: preflight.identity(aws, profile)
    yield "AWS clock", lambda: clock(aws.call("sts", "get_caller_identity"), datetime.now(UTC))
    yield "AWS region", lambda: region(run, profile)
    yield "AWS role", lambda: _none(preflight.check_role(aws, profile), profile.role_arn)
    yield "AWS expiry", lambda: expiry(aws, profile)
    yield from of_region(aws, profile, "")
    if profile.serving is not profile:
        yield from of_region(aws, profile.serving, f" in {profile.serving.region}")
    yield "ECR images", lambda: _none(preflight.check_images(aws, profile, stack), f"both images of stack {stack}")
    wanted = f"{run.compute.train_instance} for jobs, {run.compute.serve_instance} for endpoints"
    yield "quotas", lambda: _none(preflight.check_quotas(aws, profile, run), wanted)


def of_region(aws: Aws, there: Profile, suffix: str) -> Iterator[Probe]:
    """What belongs to one region: bucket, key, network."""
    yield f"AWS bucket{suffix}", lambda: _none(preflight.check_bucket(aws, there), there.bucket)
    if there.kms_key:
        yield f"AWS key{suffix}", lambda: _none(preflight.check_key(aws, there), there.kms_key)
    if there.subnets:
        yield f"AWS network{suffix}", lambda: _none(preflight.check_network(aws, there), ", ".join(there.subnets))


def _none(problems: list[Problem], found: str) -> str:
    if problems:
        raise InvalidInput.of(problems)
    return found


def clock(answer: dict[str, Any], now: datetime) -> str:
    """How far this machine's clock is from AWS's: what is signed with another time is refused."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if "date" not in headers:
        raise MissingPrerequisite("the answer had no time", "a proxy has taken its Date header away")
    off = (now - parsedate_to_datetime(headers["date"])).total_seconds()
    if abs(off) > CLOCK:
        what = f"this machine's clock is {abs(off):.0f} s {'fast' if off > 0 else 'slow'}"
        raise InvalidInput(
            what, f"AWS refuses requests that are signed more than {CLOCK:.0f} s off", "set it: chrony"
        )
    return f"{abs(off):.0f} s off"


def region(run: RunFile, profile: Profile) -> str:
    """Whether the run file's instances are sold where the profile puts them, as far as is known here."""
    problems = []
    pairs = ((run.compute.train_instance, profile.region), (run.compute.serve_instance, profile.serving.region))
    for instance, where in pairs:
        known = hardware.find(instance)
        if known is not None and known.regions and where not in known.regions:
            hint = f"known to be in {', '.join(known.regions)}"
            problems.append(Problem(f"{instance} is not known to be in {where}", hint=hint))
    return _none(problems, ", ".join(dict.fromkeys(where for _, where in pairs)))


def expiry(aws: Aws, profile: Profile) -> str:
    """Whether something ends an endpoint: the role that its schedule uses."""
    if not profile.expiry_role_arn:
        hint = "harness init --create makes it once the profile names it; see docs/aws.md, Time to live"
        raise MissingPrerequisite("the profile has no expiry_role_arn", spend.NOTHING_STOPS_IT, hint)
    return _none(preflight.check_expiry_role(aws, profile), profile.expiry_role_arn)


def of_neuron_host(host: Host) -> Iterator[Probe]:
    """What a Neuron host has besides devices and driver; nothing on a machine that is none."""
    if host.neuron:
        yield "Neuron tools", lambda: tools(host.root)
        yield "host memory", lambda: memory(psutil.virtual_memory().total, psutil.virtual_memory().available)


def tools(root: Path) -> str:
    """neuron-ls and neuron-top: not needed to run, needed to see why something does not."""
    found = {name: shutil.which(name, path=str(root / TOOLS_IN)) or _on_path(name, root) for name in TOOLS}
    if missing := [name for name, where in found.items() if not where]:
        hint = "install aws-neuronx-tools"
        raise MissingPrerequisite(f"not there: {', '.join(missing)}", f"looked in /{TOOLS_IN} and PATH", hint)
    return ", ".join(found)


def _on_path(name: str, root: Path) -> str | None:
    return shutil.which(name) if root == Path("/") else None


def memory(total: float, available: float) -> str:
    """Loading and compiling want host memory; the smallest hosts have 16 GiB."""
    gib = 2**30
    if total / gib < SMALLEST_HOST:
        why = "even an inf2.xlarge has 16; compiling a model needs more than serving it"
        raise MissingPrerequisite(f"{total / gib:.0f} GiB of memory", why, "harness plan says what a run needs")
    return f"{total / gib:.0f} GiB, {available / gib:.0f} GiB of it free"
