"""What a run makes in SageMaker: an intent in the ledger before each create, tags looked at before each delete."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.aws.errors import is_missing, is_taken
from harness.aws.session import Aws
from harness.errors import Busy, HarnessError, Refused
from harness.record import Record
from harness.spec.plan import EXPIRES_TAG, RUN_TAG

RUNNING_JOB = ("InProgress", "Stopping")
MOVING_ENDPOINT = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


@dataclass(frozen=True)
class Kind:
    """One kind of resource: how the API calls it."""

    noun: str  # create_<noun>, describe_<noun>, delete_<noun>, list_<noun>s
    operation: str
    name: str  # the member that names it
    arn: str
    summaries: str


KINDS = {
    "training-job": Kind(
        "training_job", "CreateTrainingJob", "TrainingJobName", "TrainingJobArn", "TrainingJobSummaries"
    ),
    "model": Kind("model", "CreateModel", "ModelName", "ModelArn", "Models"),
    "endpoint-config": Kind(
        "endpoint_config", "CreateEndpointConfig", "EndpointConfigName", "EndpointConfigArn", "EndpointConfigs"
    ),
    "endpoint": Kind("endpoint", "CreateEndpoint", "EndpointName", "EndpointArn", "Endpoints"),
}
# An endpoint goes before its configuration and its model: SageMaker forbids to delete a configuration in use.
DELETION = ("endpoint", "endpoint-config", "model")


@dataclass(frozen=True, order=True)
class Made:
    """One line of the ledger: something that a run has made, or meant to make when it was killed."""

    kind: str
    name: str
    region: str


class Resources:
    """Creates, finds and deletes the resources of one run."""

    def __init__(self, aws: Aws, record: Record, poll: float) -> None:
        self.aws, self.record, self.poll = aws, record, poll

    def describe(self, kind: str, name: str, region: str) -> dict[str, Any] | None:
        """Describe<Kind>, or None where there is no such thing."""
        return describe(self.aws, kind, name, region)

    def create(self, kind: str, request: dict[str, Any], region: str) -> None:
        """The resolved request and a line in the ledger, then the call. What is there already and ours is kept."""
        how = KINDS[kind]
        name = request[how.name]
        self.record.write_json(f"requests/{how.operation}-{name}.json", request)
        self.record.note("create", kind=kind, operation=how.operation, name=name, region=region)
        try:
            answer = self.aws.call("sagemaker", f"create_{how.noun}", region, **request)
        except Refused as error:
            if not is_taken(error):
                raise
            found = self.describe(kind, name, region)
            if found is None:
                raise
            if not self.is_ours(kind, found, region):
                why = f"it is there in {region} and has no tag {RUN_TAG} = {self.record.id}"
                raise Busy(f"{kind} {name} is not this run's", why, "start another run") from None
            answer = found
        self.record.note("created", kind=kind, name=name, region=region, arn=answer[how.arn])

    def is_ours(self, kind: str, found: dict[str, Any], region: str) -> bool:
        """Whether it carries this run's tag."""
        return tags_of(self.aws, found[KINDS[kind].arn], region).get(RUN_TAG) == self.record.id

    def made(self, ever: bool = False) -> list[Made]:
        """What the ledger says was made and not deleted, in this order; `ever`: or deleted."""
        return made(self.record, ever)

    def delete(self, kind: str, name: str, region: str, say: Callable[[str], None] = lambda text: None) -> bool:
        """Delete what is ours; False where there was nothing. Raises Busy where it is there and not ours."""
        found = self.describe(kind, name, region)
        if found is not None:
            if not self.is_ours(kind, found, region):
                say(f"{kind} {name} in {region} has no tag {RUN_TAG} = {self.record.id}: not touched")
                return False
            if kind == "endpoint":
                delete_endpoint(self.aws, name, region, self.poll, say)
            else:
                self._delete(kind, name, region)
        if found is not None or Made(kind, name, region) in self.made():
            self.record.note("deleted", kind=kind, name=name, region=region)
        return found is not None

    def _delete(self, kind: str, name: str, region: str) -> None:
        how = KINDS[kind]
        try:
            self.aws.call("sagemaker", f"delete_{how.noun}", region, **{how.name: name})
        except Refused:
            if self.describe(kind, name, region) is not None:  # else somebody was faster
                raise

    def stop_job(self, name: str, region: str, say: Callable[[str], None]) -> bool:
        """StopTrainingJob and wait: its checkpoint and model are uploaded first. False where it had ended."""
        found = self.describe("training-job", name, region)
        if found is None or found["TrainingJobStatus"] not in RUNNING_JOB:
            return False
        if not self.is_ours("training-job", found, region):
            say(f"training job {name} in {region} has no tag {RUN_TAG} = {self.record.id}: not touched")
            return False
        stop_job(self.aws, name, region, self.poll, say)
        self.record.note("stopped", kind="training-job", name=name, region=region)
        return True


def made(record: Record, ever: bool = False) -> list[Made]:
    """What a record's ledger says was made and not deleted; `ever`: or deleted."""
    found: dict[Made, None] = {}
    for line in record.ledger():
        if line["event"] in ("create", "deleted") and {"kind", "name", "region"} <= line.keys():
            item = Made(line["kind"], line["name"], line["region"])
            if line["event"] == "create":
                found[item] = None
            elif not ever:
                found.pop(item, None)
    return list(found)


def describe(aws: Aws, kind: str, name: str, region: str) -> dict[str, Any] | None:
    """Describe<Kind>, or None where there is no such thing."""
    how = KINDS[kind]
    try:
        found: dict[str, Any] = aws.call("sagemaker", f"describe_{how.noun}", region, **{how.name: name})
    except HarnessError as error:
        if is_missing(error):
            return None
        raise
    return found


def tags_of(aws: Aws, arn: str, region: str) -> dict[str, str]:
    """A resource's tags."""
    return {t["Key"]: t["Value"] for t in aws.pages("sagemaker", "list_tags", "Tags", region, ResourceArn=arn)}


def expiry_of(aws: Aws, name: str, region: str) -> str:
    """An endpoint's expiry tag, such as "2026-01-01T08:00:00Z"; empty where it has none."""
    found = describe(aws, "endpoint", name, region)
    return tags_of(aws, found["EndpointArn"], region).get(EXPIRES_TAG, "") if found else ""


def named(aws: Aws, kind: str, part: str, region: str) -> list[str]:
    """The names of that kind which contain `part`; all where it is empty."""
    how = KINDS[kind]
    only = {"NameContains": part} if part else {}
    summaries = aws.pages("sagemaker", f"list_{how.noun}s", how.summaries, region, **only)
    return [summary[how.name] for summary in summaries]


def stop_job(aws: Aws, name: str, region: str, poll: float, say: Callable[[str], None]) -> None:
    """StopTrainingJob, then wait until it has ended: up to two minutes for the container, then the uploads."""
    say(f"training job {name}: stopping, with time for its checkpoint")
    try:
        aws.call("sagemaker", "stop_training_job", region, TrainingJobName=name)
    except Refused:
        # It ended in this moment, or is Stopping already: then the wait below sees it.
        now = describe(aws, "training-job", name, region)
        if now is not None and now["TrainingJobStatus"] == "InProgress":
            raise
    while (now := describe(aws, "training-job", name, region)) and now["TrainingJobStatus"] in RUNNING_JOB:
        time.sleep(poll)


def delete_endpoint(aws: Aws, name: str, region: str, poll: float, say: Callable[[str], None]) -> None:
    """DeleteEndpoint, then wait until it is gone. One that is moving cannot be deleted and is waited for first."""
    told = False
    while (now := describe(aws, "endpoint", name, region)) is not None:
        status = now["EndpointStatus"]
        if status != "Deleting":
            try:
                aws.call("sagemaker", "delete_endpoint", region, EndpointName=name)
            except Refused as error:
                moving = error.code == "ValidationException" and status in MOVING_ENDPOINT
                if not moving and describe(aws, "endpoint", name, region) is not None:
                    raise
                if moving and not told:
                    say(f"endpoint {name} is {status}; it is deleted as soon as SageMaker allows it")
                    told = True
        time.sleep(poll)
