"""Schedules that end endpoints: what is answered, what is refused, what survives."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from harness.estimate import spend
from harness.local import control
from tests.emulator.conftest import client, start
from tests.emulator.requests import Requests

pytestmark = pytest.mark.emulator
ROLE = "arn:aws:iam::000000000000:role/local-expiry"


def request(name: str, seconds: float = 3600, **changes: Any) -> dict[str, Any]:
    made = spend.schedule_request(name, datetime.now(UTC) + timedelta(seconds=seconds), ROLE)
    return made | changes


def test_a_schedule_is_made_shown_listed_and_deleted(aws: Requests) -> None:
    scheduler = aws.client("scheduler")
    arn = scheduler.create_schedule(**request("one"))["ScheduleArn"]
    assert arn == "arn:aws:scheduler:us-west-2:000000000000:schedule/default/one"
    shown = scheduler.get_schedule(Name="one")
    assert shown["Target"] == request("one")["Target"]
    assert (shown["State"], shown["ActionAfterCompletion"], shown["GroupName"]) == ("ENABLED", "DELETE", "default")
    assert abs((datetime.now(UTC) - shown["CreationDate"]).total_seconds()) < 60
    assert [s["Name"] for s in scheduler.list_schedules(NamePrefix="one")["Schedules"]] == ["one"]
    with pytest.raises(scheduler.exceptions.ConflictException):
        scheduler.create_schedule(**request("one"))
    scheduler.delete_schedule(Name="one")
    for call in (scheduler.get_schedule, scheduler.delete_schedule):
        with pytest.raises(scheduler.exceptions.ResourceNotFoundException):
            call(Name="one")


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"ScheduleExpression": "rate(1 hour)"}, "NotImplemented", "rate(1 hour)"),
        ({"ScheduleExpression": "at(2026-13-40T00:00:00)"}, "ValidationException", "Schedule Expression"),
        ({"ScheduleExpressionTimezone": "Europe/Vienna"}, "NotImplemented", "time zone"),
        ({"FlexibleTimeWindow": {"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 5}}, "NotImplemented", "window"),
        ({"GroupName": "mine"}, "NotImplemented", "group"),
        ({"StartDate": datetime(2026, 1, 1, tzinfo=UTC)}, "NotImplemented", "StartDate"),
        ({"Target": {"Arn": "arn:aws:lambda:us-west-2:000000000000:function:f", "RoleArn": ROLE}}, "", "lambda"),
        ({"Target": {"Arn": spend.DELETE_ENDPOINT, "RoleArn": ROLE, "Input": "{}"}}, "", "DeleteEndpoint"),
        (
            {"Target": {"Arn": spend.DELETE_ENDPOINT, "RoleArn": ROLE.replace("local-", "no-"), "Input": "{}"}},
            "ValidationException",
            "assume the role",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(aws: Requests, changes: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(ClientError) as error:
        aws.client("scheduler").create_schedule(**request("refused", **changes))
    assert said in str(error.value)
    assert code in error.value.response["Error"]["Code"]
    assert aws.client("scheduler").list_schedules(NamePrefix="refused")["Schedules"] == []


def test_other_operations_of_the_service_are_refused_by_name(aws: Requests) -> None:
    with pytest.raises(ClientError, match="not implemented"):
        aws.client("scheduler").create_schedule_group(Name="mine")


def test_a_schedule_for_an_endpoint_that_is_not_there_ends_without_effect(aws: Requests) -> None:
    scheduler = aws.client("scheduler")
    scheduler.create_schedule(**request("nobody", seconds=-1))
    deadline = time.monotonic() + 20
    while scheduler.list_schedules(NamePrefix="nobody")["Schedules"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_expiry_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    """It is over while nobody is up: the endpoint is started again by the next server, and deleted by it."""
    state = tmp_path / "state"
    before = Requests(start(state), client)
    assert before.deploy("ends")["EndpointStatus"] == "InService"
    before.client("scheduler").create_schedule(**request("ends", seconds=3))
    before.close()
    assert control.down(state)
    time.sleep(3)
    after = Requests(start(state), client)
    try:
        deadline = time.monotonic() + 40
        while after.sm.list_endpoints()["Endpoints"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert after.client("scheduler").list_schedules()["Schedules"] == []
    finally:
        after.close()
        control.down(state)
