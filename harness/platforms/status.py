"""What runs there are and where they stand: from their records, the processes that live, and what SageMaker says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from harness import executors, record as records
from harness.errors import HarnessError
from harness.executors.spec import Handle
from harness.platforms import targets
from harness.platforms.direct import Direct
from harness.platforms.platform import ON_THIS_MACHINE
from harness.record import Record


@dataclass(frozen=True)
class EndpointStatus:
    name: str
    status: str
    url: str


@dataclass(frozen=True)
class RunStatus:
    """`training` is DescribeTrainingJob's status, or Lost where the record says InProgress and nothing runs.

    `note` says why the platform could not be asked; then the rest is as it was when it last answered.
    """

    run: str
    platform: str
    training: str
    endpoints: tuple[EndpointStatus, ...]
    accuracy: float | None
    note: str = ""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def overview() -> list[RunStatus]:
    """Every run below the current directory, newest first."""
    return [of(record) for record in records.all_records()]


def of(record: Record) -> RunStatus:
    """One run."""
    job = record.read_json("job.json") or {}
    target, note = targets.of(record), ""
    endpoints: tuple[EndpointStatus, ...] = ()
    if target.platform in ON_THIS_MACHINE:
        training, endpoints = _training_here(job), tuple(_endpoints_here(record))
    else:
        training = _word(job)
        try:
            with targets.opened(record, lambda _: None, start=False) as platform:
                training = _training_there(platform, job)
                endpoints = tuple(EndpointStatus(e.name, e.status, platform.address(e)) for e in platform.endpoints())
        except HarnessError as error:
            note = error.problems[0].what
    result = record.read_json("result.json") or {}
    accuracy = result.get("accuracy", {}).get("tuned")
    return RunStatus(record.id, target.platform, training, endpoints, accuracy, note)


def _word(job: dict[str, Any]) -> str:
    status = str(job.get("status", "not started"))
    return str(job["secondary_status"]) if status == "InProgress" else status


def _training_here(job: dict[str, Any]) -> str:
    if job.get("status") == "InProgress" and job.get("handle"):
        handle = Handle(**job["handle"])
        if not executors.of(handle).alive(handle):
            return "Lost"
    return _word(job)


def _endpoints_here(record: Record) -> Iterator[EndpointStatus]:
    for e in Direct(record, lambda _: None).endpoints():
        status = e.status if executors.of(e.handle).alive(e.handle) else "Lost"
        yield EndpointStatus(e.name, status, f"http://127.0.0.1:{e.port}/invocations")


def _training_there(platform: Any, job: dict[str, Any]) -> str:
    if not job:
        return "not started"
    found = platform.resources.describe("training-job", job["name"], job["region"])
    if found is None:
        return "deleted"
    return _word({"status": found["TrainingJobStatus"], "secondary_status": found["SecondaryStatus"]})
