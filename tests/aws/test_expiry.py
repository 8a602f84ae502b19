"""An endpoint ends by itself: the schedule that does it, also when whoever deployed it is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.aws.session import Aws
from harness.errors import EndpointFailed
from harness.estimate import spend
from harness.local.control import Server
from harness.record import Record
from harness.sagemaker import account, preflight, resources
from harness.sagemaker.client import RunClient
from harness.sagemaker.expiry import KIND
from harness.spec.profile import LOCAL, Profile
from tests.aws.test_platform import deployment, fault, run
from tests.conftest import ROOT
from tests.emulator.requests import IMAGE, Requests

__all__ = ["run"]  # a fixture
DEPLOY_AND_WAIT = """
import json, sys, time
from pathlib import Path
from harness.local import control
from harness.record import Record
from harness.sagemaker.client import RunClient
from harness.spec.plan import Deployment
from harness.spec.profile import LOCAL
state, folder, image, ttl = sys.argv[1:]
record = Record(Path(folder).name, Path(folder))
images = {"train_image": image, "serve_image": image}
client = RunClient(record, control.find(Path(state)).answering(LOCAL), lambda text: None, lambda: images)
wanted = Deployment(*json.loads(sys.stdin.read()))
print(client.deploy(wanted, lambda: None, ttl=float(ttl)).name, flush=True)
time.sleep(600)
"""


def schedules(requests: Requests, name: str) -> list[str]:
    found = requests.client("scheduler").list_schedules(NamePrefix=name)["Schedules"]
    return [schedule["Name"] for schedule in found]


def until(there: Callable[[], bool], within: float = 40) -> None:
    deadline = time.monotonic() + within
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def of_kind(run: RunClient, event: str) -> list[str]:
    return [line["name"] for line in run.record.ledger() if line["event"] == event and line["kind"] == KIND]


@pytest.mark.emulator
@pytest.mark.left_behind("endpoint", "KILL", "its schedule, when its time is over")
def test_killed_after_deploy_the_endpoint_is_gone_at_its_expiry(
    run: RunClient, requests: Requests, server: Server
) -> None:
    wanted = deployment(run, requests)
    parts = json.dumps([wanted.create_model, wanted.create_endpoint_config, wanted.create_endpoint])
    command = [sys.executable, "-c", DEPLOY_AND_WAIT, str(server.state), str(run.record.path), IMAGE, "6"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as harness:
        assert harness.stdin is not None and harness.stdout is not None
        harness.stdin.write(parts)
        harness.stdin.close()
        name = harness.stdout.readline().strip()
        harness.send_signal(signal.SIGKILL)
    assert name == wanted.endpoint_name
    until(lambda: resources.describe(run.aws, "endpoint", name, "us-west-2") is None)
    until(lambda: schedules(requests, name) == [])
    expired = next(line for line in run.record.ledger() if line["event"] == "created" and line["kind"] == KIND)
    assert datetime.now(UTC) >= datetime.fromisoformat(expired["expires"]), "not before its time"
    assert run.down() == [name], "its configuration and its model, which cost nothing, were left"
    assert run.resources.made() == []


@pytest.mark.emulator
@pytest.mark.left_behind("schedule", "success", "the command; itself, when it has fired")
def test_a_schedule_goes_with_its_endpoint_and_a_new_endpoint_has_a_new_one(
    run: RunClient, requests: Requests
) -> None:
    wanted = deployment(run, requests)
    endpoint = run.deploy(wanted, lambda: None, ttl=3600)
    shown = requests.client("scheduler").get_schedule(Name=endpoint.name)
    assert shown["Target"]["Arn"] == spend.DELETE_ENDPOINT
    assert shown["Target"]["RoleArn"] == LOCAL.expiry_role_arn
    assert json.loads(shown["Target"]["Input"]) == {"EndpointName": endpoint.name}
    assert run.expires(endpoint) == shown["ScheduleExpression"][3:-1] + "Z", "tag and schedule say one time"
    run.delete(endpoint)
    assert schedules(requests, endpoint.name) == []
    # What a killed `down` leaves: the endpoint is gone, its schedule is not; it must not end the next one.
    run.hosting.expiry.set(endpoint.name, datetime.now(UTC) + timedelta(seconds=1), "us-west-2")
    run.deploy(wanted, lambda: None, ttl=3600)
    time.sleep(2)
    assert next(run.endpoints()).status == "InService"
    run.down()
    assert schedules(requests, endpoint.name) == []
    assert len(of_kind(run, "created")) == 3
    assert run.resources.made() == []


@pytest.mark.emulator
def test_an_endpoint_whose_time_is_over_before_anybody_saw_it_in_service(run: RunClient, requests: Requests) -> None:
    run.hosting.poll = 4  # longer than it lives
    with pytest.raises(EndpointFailed) as raised:
        run.deploy(deployment(run, requests), lambda: None, ttl=1)
    (problem,) = raised.value.problems
    assert "it was to end at" in problem.why
    assert "--ttl" in problem.hint
    assert run.resources.made() == []


@pytest.mark.emulator
def test_an_endpoint_that_somebody_else_deletes_is_told_as_that(run: RunClient, requests: Requests) -> None:
    run.hosting.poll = 4
    wanted = deployment(run, requests)
    deleted: list[str] = []

    def delete_it() -> None:
        if not deleted:
            until(lambda: next(run.endpoints()).status == "InService")
            requests.sm.delete_endpoint(EndpointName=wanted.endpoint_name)
            deleted.append(wanted.endpoint_name)

    with pytest.raises(EndpointFailed) as raised:
        run.deploy(wanted, delete_it, ttl=3600)
    assert raised.value.problems[0].why == "somebody has deleted it"
    assert run.resources.made() == []


@pytest.mark.emulator
@pytest.mark.left_behind("schedule", "KILL", "the next command")
def test_a_schedule_whose_endpoint_was_never_made_is_settled(run: RunClient, requests: Requests) -> None:
    name = deployment(run, requests).endpoint_name
    run.hosting.expiry.set(name, datetime.now(UTC) + timedelta(hours=1), "us-west-2")
    assert schedules(requests, name) == [name]
    run.settle()
    assert schedules(requests, name) == []
    assert run.resources.made() == []


@pytest.mark.emulator
def test_without_the_permission_deploy_says_that_nothing_stops_the_bill(
    run: RunClient, requests: Requests, server: Server
) -> None:
    said: list[str] = []
    run.hosting.expiry.say = said.append
    fault(server, kind="access-denied", operation="CreateSchedule", name=f"{run.record.id}*", times=1)
    endpoint = run.deploy(deployment(run, requests), lambda: None)
    assert endpoint.status == "InService"
    assert len(said) == 1
    assert said[0].startswith("nothing will stop the bill by itself")
    assert "not authorized" in said[0]
    assert schedules(requests, endpoint.name) == []
    run.down()


def test_without_a_role_it_says_so_and_asks_nobody(record: Record, profile: Profile) -> None:
    said: list[str] = []
    on_aws = replace(profile, endpoint_url="", expiry_role_arn="")
    client = RunClient(record, on_aws, said.append)
    assert client.hosting.expiry.set("x-tuned", datetime.now(UTC), "us-west-2") is False
    assert "nothing will stop the bill by itself" in said[0]
    assert "expiry_role_arn" in said[0]
    assert list(record.ledger()) == []


def test_init_makes_the_role_that_deletes_endpoints_and_nothing_else(profile: Profile, aws: Aws) -> None:
    arn = profile.role_arn.replace("neuron-harness", "neuron-harness-expiry")
    wanted = replace(profile, expiry_role_arn=arn)
    assert [p.what for p in preflight.check_expiry_role(aws, wanted)] == [
        f"there is no role {arn}, which deletes endpoints at their expiry"
    ]
    said: list[str] = []
    account.create(aws, wanted, said.append)
    assert said == [f"made role {arn}"]
    assert preflight.check_expiry_role(aws, wanted) == []
    found: Any = aws.call("iam", "get_role_policy", RoleName="neuron-harness-expiry", PolicyName="neuron-harness")
    (statement,) = found["PolicyDocument"]["Statement"]
    assert statement["Action"] == "sagemaker:DeleteEndpoint"
    # SageMaker's own role is no substitute: Scheduler may not assume it.
    (problem,) = preflight.check_expiry_role(aws, replace(profile, expiry_role_arn=profile.role_arn))
    assert "cannot assume" in problem.what


def test_a_ledgers_folder_is_enough(tmp_path: Path) -> None:
    """The name of a schedule is the endpoint's: nothing else has to be remembered."""
    request = spend.schedule_request("x" * 63, datetime(2026, 11, 26, tzinfo=UTC), "arn:aws:iam::123456789012:role/r")
    assert request["Name"] == "x" * 63
