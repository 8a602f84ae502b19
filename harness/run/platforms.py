"""Where a run is carried out: chosen when it starts, kept in its record, opened by every later verb.

Every platform is the same client with another endpoint. `local` is a local SageMaker on this machine, `ec2` one on a
Trainium or Inferentia host, whose containers get the host's NeuronCores, `sagemaker` is AWS. A local SageMaker is
started if none is up, and stopped when nothing needs it any more.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO, Any

from harness import bootstrap, executors
from harness.assets import djl
from harness.aws import session
from harness.errors import Busy, InvalidInput, NotFound, did_you_mean
from harness.images import build as images
from harness.interrupts import shielded
from harness.local import control
from harness.local.control import ON_DEMAND, Server
from harness.paths import CACHE, local_state
from harness.record import Record
from harness.run import host_checks
from harness.sagemaker import preflight
from harness.sagemaker.client import RunClient
from harness.spec import profile as profiles, stacks
from harness.spec.plan import Plan
from harness.spec.profile import LOCAL, Profile
from harness.spec.runfile import RunFile

NAMES = ("local", "ec2", "sagemaker")
FILE = "platform.json"
Say = Callable[[str], None]
NOT_UP, START_IT = "the local SageMaker is not up", "harness local up, or repeat the verb that started it"
# No images are built for executor `process`; these names stand where a digest stands on AWS.
PROCESS_IMAGES = {
    "train_image": f"{LOCAL.image('neuron-train')}:process",
    "serve_image": f"{LOCAL.image('neuron-serve')}:process",
}


@dataclass(frozen=True)
class Target:
    """A platform, the profile whose names are in the plan, and on `local` the executor of its containers."""

    platform: str
    profile: Profile
    executor: str = ""


DEFAULT = Target("local", LOCAL, executors.NAMES[0])


def choose(platform: str = "", region: str = "", executor: str = "") -> Target:
    """The target of a new run. Raises InvalidInput for a flag that has no effect on the platform.

    Raises also what reading the profile raises; all of it before anything is made.
    """
    platform = platform or DEFAULT.platform
    if platform not in NAMES:
        hint = did_you_mean(platform, NAMES) or f"known: {', '.join(NAMES)}"
        raise InvalidInput(f"no platform {platform!r}", hint=hint)
    executors.check_name(executor)
    if executor and platform != "local":
        why = f"platform {platform} has one way to run containers"
        raise InvalidInput("--executor is for platform local", why, "leave out --executor and the variable EXECUTOR")
    if platform == "local":
        if region:
            raise InvalidInput("--region has no effect on platform local", hint="leave it out")
        return replace(DEFAULT, executor=executor or executors.NAMES[0])
    if platform == "ec2":
        return Target("ec2", _host_profile(region), host_checks.EXECUTOR)
    return Target(platform, profiles.load(region=region))


def _host_profile(region: str) -> Profile:
    """The AWS profile where one was written, for everything on this host; else local names and directories."""
    if not region and not profiles.is_there():
        return LOCAL
    return replace(profiles.load(region=region), serve_region="", serve_bucket="", objects_in_s3=True)


def texts(target: Target) -> dict[str, str]:
    """What a new record says of its target, by file name."""
    raw = {"platform": target.platform, "profile": target.profile.to_json(), "executor": target.executor}
    return {FILE: json.dumps(raw, indent=2) + "\n"}


def of(record: Record) -> Target:
    """The target of a run. Raises InvalidInput where its record is damaged."""
    raw: Any = record.read_json(FILE)
    if raw is None:
        return DEFAULT
    try:
        return Target(raw["platform"], profiles.from_json(raw["profile"]), raw.get("executor", ""))
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{FILE}: {type(error).__name__}: {error}"
        raise InvalidInput(f"the record of run {record.id} cannot be read", why) from None


def with_executor(record: Record, executor: str) -> Target:
    """The run's target; `executor`, if one is named, is the run's from now on. Raises InvalidInput."""
    target = of(record)
    executors.check_name(executor)
    if not executor or executor == target.executor:
        return target
    if target.platform != "local":
        what = f"run {record.id} is on platform {target.platform}, which has no executor to choose"
        raise InvalidInput(what, hint="leave out --executor and the variable EXECUTOR")
    target = replace(target, executor=executor)
    for name, text in texts(target).items():
        record.write_text(name, text)
    return target


@contextmanager
def opened(record: Record, say: Say, start: bool = True, executor: str = "") -> Iterator[RunClient]:
    """The run's client. A local SageMaker is started if none is up and `start`, stopped when nothing needs it.

    Raises NotFound where none is up and `start` is false.
    """
    target = with_executor(record, executor)
    if target.platform == "sagemaker":
        yield RunClient(record, target.profile, say)
        return
    with up(state_of(target.platform), target.profile, say, start, target.executor) as server:
        yield RunClient(record, server.answering(target.profile), say, lambda: images_of(target.executor))


@contextmanager
def runtime(platform: str, region: str = "") -> Iterator[session.Aws]:
    """The clients of a platform's account, for endpoints of whatever run. A local SageMaker has to be up."""
    target = choose(platform, region)
    if platform == "sagemaker":
        yield session.Aws(target.profile.serving)
        return
    with up(state_of(platform), target.profile, lambda _: None, start=False) as server:
        yield session.Aws(server.answering(target.profile))


def check(client: RunClient, run: RunFile, plan: Plan) -> None:
    """Everything that can be known before anything costs time or money; all problems at once.

    Raises MissingPrerequisite, InvalidInput, Busy or Refused.
    """
    target = of(client.record)
    if target.platform == "ec2":
        host_checks.check(client, run, plan)
        return
    if target.platform == "local":
        set_up(target.executor, client.say)
        client.images(plan.stack)  # before the account's questions: without images there is nothing to run
    preflight.check(client.aws, client.profile, run, client.say, plan.stack)
    client.images(plan.stack)


def set_up(executor: str, say: Say) -> None:
    """What the executor needs on this machine: made where it is missing, which takes a minute the first time."""
    if executor == "process":
        bootstrap.ensure(("train", "serve"), say)
        djl.ensure(CACHE, say)
    for role in ("train", "serve"):
        executors.named(executor).check_environment(role)


def state_of(platform: str) -> Path:
    """The local SageMaker's state: a Neuron host may serve runs on its CPU and on its cores, with two servers."""
    state = local_state()
    return state if platform == "local" else state.with_name(f"{state.name}-{platform}")


@contextmanager
def up(state: Path, profile: Profile, say: Say, start: bool = True, executor: str = "process") -> Iterator[Server]:
    """The local SageMaker of `state`, with this executor.

    One that a command has started is stopped by the last command that leaves it with nothing running; one that
    `harness local up` has started stays. One with another executor, or whose objects are elsewhere, is replaced.
    Raises NotFound where none is up and `start` is false, Busy where the one to be replaced runs something.
    """
    state = state.absolute()
    if not start and not state.is_dir():
        raise NotFound(NOT_UP, hint=START_IT)
    with _users_lock(state) as lock:
        server = control.find(state)
        if server is not None and start and (wrong := _differs(server, profile, executor)):
            if not _stop_if_idle(state, server, lock):
                raise Busy(f"the local SageMaker that is up {wrong}", hint="harness local down, then repeat this")
            server = None
            fcntl.flock(lock, fcntl.LOCK_SH)
        if server is None and not start:
            raise NotFound(NOT_UP, hint=START_IT)
        try:
            if server is None:
                server = _started(state, profile, executor)
                say(f"started a local SageMaker on {server.url}")
            yield server
        finally:
            # Ctrl-C while it started is raised when it is up. And a verb that only looks may be the last one.
            up_now = server or control.find(state)
            if up_now is not None and _stop_if_idle(state, up_now, lock):
                say("stopped the local SageMaker")


def _differs(server: Server, profile: Profile, executor: str) -> str:
    """What of a server that is up does not fit; empty where all does."""
    if server.executor != executor:
        return f"runs containers with executor {server.executor}, not {executor}"
    if server.objects_in_s3 != profile.objects_in_s3:
        return f"keeps its objects {'in S3' if server.objects_in_s3 else 'on this host'}, and this run does not"
    return ""


@contextmanager
def _users_lock(state: Path) -> Iterator[IO[str]]:
    """Held shared by every command that uses the server, so that none stops it under another."""
    control.private(state)
    with (state / "users.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)  # waits while another command stops the server
        yield handle


def _started(state: Path, profile: Profile, executor: str) -> Server:
    with shielded():
        state.mkdir(parents=True, exist_ok=True)
        (state / ON_DEMAND).touch()
        # Every call after this one needs it: half a second; the server's own imports take a whole one.
        reader = Thread(target=session.read_models, daemon=True)
        reader.start()
        server, _ = control.up(state, None, profile.region, executor, objects_in_s3=profile.objects_in_s3)
        reader.join()  # clients must not be made by two threads at once
        return server


def processes(platform: str) -> list[int]:
    """Ids of the server and of its containers' first processes; none where it is not up."""
    server = control.find(state_of(platform)) if platform != "sagemaker" else None
    health = control.health(server) if server is not None else None
    return [server.pid, *health.get("containers", [])] if server is not None and health is not None else []


def images_of(executor: str) -> dict[str, str]:
    """What the plan's images stand for. Raises MissingPrerequisite where they are not built."""
    if executor == "process":
        return PROCESS_IMAGES
    return images.on_this_machine(stacks.DEFAULT, stand_in=executor == "docker")


def _stop_if_idle(state: Path, server: Server, lock: IO[str]) -> bool:
    """Stop a server that was started on demand and that nothing needs; whether it was stopped."""
    if not (state / ON_DEMAND).exists():
        return False
    with shielded():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # another command uses it
        health = control.health(server)
        if health is None or health["busy"] or not control.down(state):
            return False
        (state / ON_DEMAND).unlink(missing_ok=True)
        return True
