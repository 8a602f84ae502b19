"""What runs there are, where they stand and what they have logged: from their records and from SageMaker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from harness import record as records
from harness.errors import HarnessError, NotFound
from harness.local import control
from harness.record import Record
from harness.run import forecast, platforms, spending
from harness.sagemaker.client import RunClient

ENDED = ("Completed", "Failed", "Stopped")
NOT_STARTED = "not started"


@dataclass(frozen=True)
class EndpointStatus:
    name: str
    status: str
    url: str


@dataclass(frozen=True)
class RunStatus:
    """`training` is DescribeTrainingJob's status, or Interrupted where the local SageMaker of a job is not up.

    `note` says why the platform could not be asked; then the rest is as it was when it last answered.
    """

    run: str
    platform: str
    training: str
    endpoints: tuple[EndpointStatus, ...]
    score: float | None
    """Of the tuned model, by the run file's measure: 0 to 1, of measure scorer on its own scale."""
    measure: str
    note: str = ""
    cost: str = ""
    """On AWS: of its job, and of what is alive so far and per hour; from the price table, not from the bill."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def overview() -> list[RunStatus]:
    """Every run below the current directory, newest first."""
    return [of(record) for record in records.all_records()]


def of(record: Record) -> RunStatus:
    """One run. A damaged record is shown with its damage; it hides no other."""
    try:
        return _of(record)
    except HarnessError as error:
        return RunStatus(record.id, "", "unknown", (), None, "", error.problems[0].what)


def _of(record: Record) -> RunStatus:
    job = record.read_json("job.json") or {}
    target, note = platforms.of(record), ""
    training = _recorded(job)
    endpoints: tuple[EndpointStatus, ...] = ()
    try:
        with platforms.opened(record, lambda _: None, start=False) as client:
            training = _training(client, job)
            endpoints = tuple(EndpointStatus(e.name, e.status, client.address(e)) for e in client.endpoints())
    except NotFound:
        # The local SageMaker is not up: nothing runs here, and its files say how what has run has ended.
        training = _when_last_up(target.platform, job)
    except HarnessError as error:
        note = error.problems[0].what
    result = record.read_json("result.json") or {}
    score, measure = result.get("score", {}).get("tuned"), result.get("score", {}).get("measure", "")
    cost = ""
    if target.platform == "sagemaker":
        alive = {e.name for e in endpoints} | ({str(job.get("name"))} if training not in ENDED else set())
        cost = spending.costs(record, alive, datetime.now(UTC), forecast.prices())
    return RunStatus(record.id, target.platform, training, endpoints, score, measure, note, cost)


def _recorded(job: dict[str, Any]) -> str:
    """The status in the record: the secondary one while the job runs."""
    status = str(job.get("status", NOT_STARTED))
    return str(job["secondary_status"]) if status == "InProgress" else status


def _when_last_up(platform: str, job: dict[str, Any]) -> str:
    """What a job has come to whose local SageMaker is not up."""
    if not job:
        return NOT_STARTED
    found = control.job_on_disk(platforms.state_of(platform), job["region"], job["name"]) or {}
    status = str(found.get("TrainingJobStatus", job["status"]))
    return status if status in ENDED else "Interrupted"


def _training(client: RunClient, job: dict[str, Any]) -> str:
    if not job:
        return NOT_STARTED
    found = client.resources.describe("training-job", job["name"], job["region"])
    if found is None:
        return "deleted"
    return _recorded({"status": found["TrainingJobStatus"], "secondary_status": found["SecondaryStatus"]})


def log_lines(record: Record, endpoint: str = "", follow: bool = False) -> Iterator[str]:
    """The lines so far; with `follow` also those to come, until the job or endpoint has ended.

    `endpoint` is base or tuned, or empty for the training job. Raises NotFound where there is no log yet.
    """
    kept = record.endpoint_log(f"{record.id}-{endpoint}") if endpoint else record.log
    if not _runs(record, endpoint) and kept.is_file():
        yield from kept.read_text(encoding="utf-8", errors="replace").splitlines()
        return
    told = False
    with platforms.opened(record, lambda _: None) as client:
        streams = client.log_streams(endpoint)
        while True:
            going_on = follow and _runs(record, endpoint)  # asked first: what was written before the end still comes
            for line in streams.new():
                told = True
                yield line
            if not going_on:
                break
            time.sleep(client.resources.poll)
    if not told:
        raise NotFound(f"run {record.id} has no log of {f'endpoint {endpoint}' if endpoint else 'training'} yet")


def _runs(record: Record, endpoint: str) -> bool:
    now = of(record)
    if endpoint:
        return any(e.name.endswith(endpoint) and e.status in ("Creating", "InService") for e in now.endpoints)
    return now.training in ("Starting", "Pending", "Downloading", "Training", "Uploading", "Stopping")
