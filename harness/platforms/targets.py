"""Which platform a run is on: chosen when it starts, kept in its record, opened by every later verb."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness import profile as profiles
from harness.errors import InvalidInput, did_you_mean
from harness.platforms.platform import NAMES, Platform
from harness.profile import LOCAL, Profile
from harness.record import Record

if TYPE_CHECKING:
    from harness.aws import Aws

FILE = "platform.json"


@dataclass(frozen=True)
class Target:
    """A platform and the profile whose names are in the plan. `direct` is what runs where nothing is said."""

    platform: str
    profile: Profile


DIRECT = Target("direct", LOCAL)


def choose(platform: str, region: str = "") -> Target:
    """The target of a new run. Raises what reading the profile raises, before anything is made."""
    if platform in ("", "direct"):
        return DIRECT
    if platform not in NAMES:
        hint = did_you_mean(platform, NAMES) or f"known: {', '.join(NAMES)}"
        raise InvalidInput(f"no platform {platform!r}", hint=hint)
    if platform == "local":
        from harness.platforms import localserver

        return Target("local", localserver.PROFILE)
    if platform == "ec2":
        from harness.platforms import ec2

        return Target("ec2", ec2.profile(region))
    return Target(platform, profiles.load(region=region))


@contextmanager
def runtime(platform: str, region: str = "") -> Iterator[Aws]:
    """The client of a platform's account, for endpoints of whatever run. A local SageMaker has to be up."""
    from harness.aws import Aws

    if platform == "sagemaker":
        yield Aws(choose(platform, region).profile.serving)
        return
    if platform not in NAMES:
        raise InvalidInput(f"no platform {platform!r}", hint=did_you_mean(platform, NAMES))
    from harness.platforms import localserver

    with localserver.up(lambda _: None, start=False) as server:
        yield Aws(replace(localserver.PROFILE, endpoint_url=server.url))


def files(target: Target) -> dict[str, str]:
    """What a new record says of its target; nothing for a direct call."""
    if target == DIRECT:
        return {}
    raw = {"platform": target.platform, "profile": target.profile.to_json()}
    return {FILE: json.dumps(raw, indent=2) + "\n"}


def of(record: Record) -> Target:
    """The target of a run."""
    raw: Any = record.read_json(FILE)
    return Target(raw["platform"], profiles.from_json(raw["profile"])) if raw else DIRECT


@contextmanager
def opened(record: Record, say: Callable[[str], None], start: bool = True, executor: str = "") -> Iterator[Platform]:
    """The run's platform. A local SageMaker is started if none is up and `start`, stopped when nothing is left."""
    target = of(record)
    if executor and target.platform not in ("direct", "local"):
        what = f"run {record.id} is on platform {target.platform}, which has no executor to choose"
        raise InvalidInput(what, hint="leave --executor and the variable EXECUTOR out")
    if target.platform == "sagemaker":
        from harness.platforms.sagemaker import SageMaker

        yield SageMaker(record, target.profile, say)
    elif target.platform == "ec2":
        from harness.platforms.ec2 import Ec2

        yield Ec2(record, target.profile, say)
    elif target.platform == "local":
        from harness.platforms import localserver
        from harness.platforms.sagemaker import SageMaker

        with localserver.up(say, start, executor) as server:
            profile = replace(target.profile, endpoint_url=server.url)
            yield SageMaker(record, profile, say, lambda: localserver.images_of(server))
    else:
        from harness.platforms.direct import Direct

        yield Direct(record, say, executor)
