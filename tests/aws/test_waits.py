"""What a person is told who leaves a job on AWS, and how long the harness waits before it asks for capacity again."""

from __future__ import annotations

import random
import time

import pytest

from harness.errors import Interrupted, Refused
from harness.record import Record
from harness.run import platforms, steps
from harness.run.platforms import Target
from harness.run.steps import Run
from harness.sagemaker.client import RunClient
from harness.spec.profile import Profile

ON_AWS = Profile("123456789012", "eu-west-1", "arn:aws:iam::123456789012:role/r", "bucket")


class Said:
    def say(self, text: str) -> None: ...

    def progress(self, label: str, done: int, total: int) -> None: ...


def interrupted(record: Record) -> tuple[str, str]:
    """What a command says that Ctrl-C ends while it works on the run, and the hint."""
    run = Run(record, None, None)  # type: ignore[arg-type]
    with pytest.raises(Interrupted) as error, steps.working_on(run.record, "train", Said()):
        raise Interrupted(2)
    (problem,) = error.value.problems
    return problem.what, problem.hint


def test_who_leaves_a_job_on_aws_is_told_that_it_is_billed(record: Record) -> None:
    for name, text in platforms.texts(Target("sagemaker", ON_AWS)).items():
        record.write_text(name, text)
    go_on = f"go on: harness train {record.id}"
    assert interrupted(record) == ("interrupted; no training job runs", go_on)
    for status in ("InProgress", "Stopping"):
        record.write_json("job.json", {"name": f"{record.id}-r2", "status": status, "region": "eu-west-1"})
        what, hint = interrupted(record)
        assert what == f"detached; training job {record.id}-r2 goes on in eu-west-1 and is billed"
        assert hint == f"follow it: harness train {record.id}; stop it: harness down {record.id}"
    record.write_json("job.json", {"name": record.id, "status": "Completed", "region": "eu-west-1"})
    assert interrupted(record) == ("interrupted; the model is trained", go_on)


def refused(record: Record, *events: dict[str, str]) -> list[tuple[str, str]]:
    """What follows a refusal that comes after these lines of the ledger, and the hints."""
    run = Run(record, None, None)  # type: ignore[arg-type]
    with pytest.raises(Refused) as error, steps.working_on(run.record, "deploy", Said()):
        for event in events:
            record.note(**{"kind": "endpoint", "name": f"{record.id}-tuned", "region": "eu-west-1", **event})
        raise Refused("no")
    return [(problem.what, problem.hint) for problem in error.value.problems[1:]]


def test_who_is_refused_is_told_what_goes_on_and_of_nothing_that_was_not_made(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunClient, "settle", lambda self: None)  # asks AWS
    for name, text in platforms.texts(Target("sagemaker", ON_AWS)).items():
        record.write_text(name, text)
    made = {"event": "created", "kind": "model"}
    assert refused(record, {"event": "create", "kind": "model"}, made, {"event": "create"}) == []
    what = f"endpoint {record.id}-tuned goes on in eu-west-1 and is billed"
    assert refused(record, {"event": "created"}) == [(what, f"delete it: harness down {record.id}")]
    assert refused(record, {"event": "deleted"}) == []


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
    jobs = RunClient(record, ON_AWS, said.append).jobs
    for refused in (1, 2, 3, 4, 5):
        jobs._wait_for_capacity(refused)
    assert slept == [30, 60, 120, 240, 300], "seconds, at most"
    assert {low for low, _ in drawn} == {0}
    assert said[0] == "no capacity in eu-west-1; attempt 2 of 3 in 30 s"
