"""What a person is told who leaves a job on AWS, and how long the harness waits before it asks for capacity again."""

from __future__ import annotations

import random
import time

import pytest

from harness.record import Record
from harness.sagemaker.client import SageMaker
from harness.spec.profile import Profile

ON_AWS = Profile("123456789012", "eu-west-1", "arn:aws:iam::123456789012:role/r", "bucket")


def test_who_leaves_a_job_on_aws_is_told_that_it_is_paid_for(record: Record) -> None:
    platform = SageMaker(record, ON_AWS, lambda _: None)
    assert platform.where() == ("interrupted; no training job runs", "")
    for status in ("InProgress", "Stopping"):
        record.write_json("job.json", {"name": f"{record.id}-r2", "status": status})
        what, hint = platform.where()
        assert what == f"detached; training job {record.id}-r2 goes on in eu-west-1 and is paid for"
        assert hint == f"follow it: harness train {record.id}; stop it: harness down {record.id}"
    record.write_json("job.json", {"name": record.id, "status": "Completed"})
    assert platform.where() == ("interrupted; the model is trained", "")


def test_waits_for_capacity_are_drawn_at_random_below_limits_that_grow(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    slept: list[float] = []
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(time, "sleep", slept.append)
    jobs = SageMaker(record, ON_AWS, said.append).jobs
    for refused in (1, 2, 3, 4, 5):
        jobs._wait_for_capacity(refused)
    assert slept == [30, 60, 120, 240, 300], "seconds, at most"
    assert {low for low, _ in drawn} == {0}
    assert said[0] == "no capacity in eu-west-1; attempt 2 of 3 in 30 s"
