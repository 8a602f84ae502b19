"""What runs there are and where they stand, from their records and the processes that live."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from harness import executors, record as records
from harness.executors.spec import Handle
from harness.platforms.local import Local
from harness.record import Record


@dataclass(frozen=True)
class EndpointStatus:
    name: str
    status: str
    url: str


@dataclass(frozen=True)
class RunStatus:
    """`training` is DescribeTrainingJob's status, or Lost where the record says InProgress and nothing runs."""

    run: str
    training: str
    endpoints: tuple[EndpointStatus, ...]
    accuracy: float | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def overview() -> list[RunStatus]:
    """Every run below the current directory, newest first."""
    return [of(record) for record in records.all_records()]


def of(record: Record) -> RunStatus:
    """One run."""
    job = record.read_json("job.json") or {}
    training = job.get("status", "not started")
    if training == "InProgress":
        training = str(job["secondary_status"])
        handle = Handle(**job["handle"]) if job.get("handle") else None
        if handle is not None and not executors.of(handle).alive(handle):
            training = "Lost"
    endpoints = tuple(
        EndpointStatus(
            e.name,
            e.status if executors.of(e.handle).alive(e.handle) else "Lost",
            f"http://127.0.0.1:{e.port}/invocations",
        )
        for e in Local(record, lambda _: None).endpoints()
    )
    result = record.read_json("result.json") or {}
    return RunStatus(record.id, training, endpoints, result.get("accuracy", {}).get("tuned"))
