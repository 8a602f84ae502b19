"""EventBridge Scheduler, as far as an endpoint's expiry needs it: schedules that delete an endpoint once, at a time.

moto has the operations but fires nothing, and its schedules do not survive the server; an expiry has to do both.
https://docs.aws.amazon.com/scheduler/latest/APIReference/API_CreateSchedule.html
"""

from __future__ import annotations

import json
import re
import threading
import traceback
from datetime import UTC, datetime
from typing import Any

from harness.errors import InvalidInput
from harness.estimate.spend import DELETE_ENDPOINT
from harness.local.api import hosting
from harness.local.api.errors import ApiError, invalid, not_implemented, only
from harness.local.api.records import page
from harness.local.service import Service, now
from harness.spec import service_model

Request = dict[str, Any]
Response = dict[str, Any]

EVERY = 0.5  # seconds between two looks; Scheduler's own precision is a minute
MEMBERS = {"Name", "GroupName", "Description", "ScheduleExpression", "ScheduleExpressionTimezone", "State"}
MEMBERS |= {"FlexibleTimeWindow", "Target", "ActionAfterCompletion", "ClientToken"}
TARGET = {"Arn", "RoleArn", "Input", "RetryPolicy"}
PATH = re.compile(r"/schedules(?:/([^/]+))?")
SUMMARY = ("Arn", "Name", "GroupName", "State", "CreationDate", "LastModificationDate")
RETRY = {"MaximumEventAgeInSeconds": 86400, "MaximumRetryAttempts": 185}  # API_RetryPolicy's own defaults


def create(service: Service, region: str, request: Request) -> Response:
    """CreateSchedule, of one kind: at(...) in UTC, with SageMaker's DeleteEndpoint as universal target."""
    only("CreateSchedule", request, MEMBERS)
    target = request["Target"]
    only("Target", target, TARGET)
    if target["Arn"] != DELETE_ENDPOINT:
        raise not_implemented(f"a schedule with target {target['Arn']}")
    if request.get("GroupName", "default") != "default":
        raise not_implemented("a schedule in a group")
    if request["FlexibleTimeWindow"]["Mode"] != "OFF" or request.get("ScheduleExpressionTimezone", "UTC") != "UTC":
        raise not_implemented("a schedule with a flexible window or another time zone than UTC")
    if not service.role_exists(target["RoleArn"]):
        raise invalid("The execution role you provide must allow AWS EventBridge Scheduler to assume the role.")
    name, made = request["Name"], now()
    describe = {k: v for k, v in request.items() if k != "ClientToken"} | {
        "Arn": f"arn:aws:scheduler:{region}:{service.account}:schedule/default/{name}",
        "GroupName": "default",
        "ScheduleExpressionTimezone": "UTC",
        "State": request.get("State", "ENABLED"),
        "Target": {"RetryPolicy": RETRY, **target},
        "ActionAfterCompletion": request.get("ActionAfterCompletion", "NONE"),
        "CreationDate": made,
        "LastModificationDate": made,
    }
    document = {"describe": describe, "at": _time(request["ScheduleExpression"]), "endpoint": _endpoint(target)}
    if not service.schedules.add(region, name, document | {"fired": False}):
        raise ApiError("ConflictException", f"Schedule {name} already exists.", 409)
    return {"ScheduleArn": describe["Arn"]}


def _time(expression: str) -> float:
    match = re.fullmatch(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)", expression)
    if not match:
        raise not_implemented(f"a schedule with expression {expression}")
    try:
        return datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise invalid(f"Invalid Schedule Expression {expression}.") from None


def _endpoint(target: Request) -> str:
    try:
        given = json.loads(target.get("Input", ""))
        service_model.validate("sagemaker", "DeleteEndpoint", given)
    except (ValueError, InvalidInput):
        raise invalid("Invalid Input: it is not a request of DeleteEndpoint.") from None
    return str(given["EndpointName"])


def _find(service: Service, region: str, name: str) -> Request:
    document = service.schedules.get(region, name)
    if document is None:
        raise ApiError("ResourceNotFoundException", f"Schedule {name} does not exist.", 404)
    return document


def get(service: Service, region: str, request: Request) -> Response:
    """GetSchedule."""
    shown: Response = _find(service, region, request["Name"])["describe"]
    return shown


def delete(service: Service, region: str, request: Request) -> Response:
    """DeleteSchedule."""
    _find(service, region, request["Name"])
    service.schedules.delete(region, request["Name"])
    return {}


def list_all(service: Service, region: str, request: Request) -> Response:
    """ListSchedules, of the only group there is."""
    rows = [document["describe"] for _, _, document in service.schedules.rows(region)]
    rows = [row | {"CreationTime": row["CreationDate"]} for row in rows]
    found, token = page(rows, {"NameContains": request.get("NamePrefix", "")}, "Name")
    summaries = [{k: row[k] for k in SUMMARY} | {"Target": {"Arn": row["Target"]["Arn"]}} for row in found]
    return {"Schedules": summaries, **({"NextToken": token} if token else {})}


OPERATIONS = {
    ("POST", True): ("CreateSchedule", create),
    ("GET", True): ("GetSchedule", get),
    ("DELETE", True): ("DeleteSchedule", delete),
    ("GET", False): ("ListSchedules", list_all),
}


def call(service: Service, region: str, method: str, path: str, query: Request, body: Request) -> Response:
    """One request of Scheduler's REST protocol. Raises ApiError."""
    match = PATH.fullmatch(path)
    if not match or (method, bool(match[1])) not in OPERATIONS:
        raise not_implemented(f"{method} {path} of EventBridge Scheduler")
    operation, handler = OPERATIONS[method, bool(match[1])]
    named = {"groupName": "GroupName", "ScheduleGroup": "GroupName", "clientToken": "ClientToken"}
    request = body | {named.get(k, k): v for k, v in query.items()} | ({"Name": match[1]} if match[1] else {})
    service.faults.check_call(operation, request, service.account, region)
    try:
        service_model.validate("scheduler", operation, request)
    except InvalidInput as error:
        raise invalid("; ".join(p.what.removeprefix(f"{operation}: ") for p in error.problems)) from None
    return handler(service, region, request)


class Timer:
    """Fires what is due, in a thread of its own, until the service closes."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def start(self) -> None:
        threading.Thread(target=self._run, name="schedules", daemon=True).start()

    def _run(self) -> None:
        while not self.service.closing.wait(EVERY):
            for region, name, document in self.service.schedules.rows():
                try:
                    if is_due(document, now()):
                        fire(self.service, region, name, document)
                except Exception:  # noqa: BLE001 (the other schedules are still to be fired; the log has the reason)
                    traceback.print_exc()


def is_due(document: Request, at: float) -> bool:
    """Whether a schedule is to be fired at `at`, in seconds since the epoch."""
    return not document["fired"] and document["describe"]["State"] == "ENABLED" and document["at"] <= at


def fire(service: Service, region: str, name: str, document: Request) -> None:
    """DeleteEndpoint, as its role would; again at the next look where the endpoint is changing and refuses."""
    age = document["describe"]["Target"]["RetryPolicy"].get("MaximumEventAgeInSeconds", 86400)
    try:
        hosting.delete(service, region, {"EndpointName": document["endpoint"]})
    except ApiError as error:
        if "Could not find" not in error.message and now() - document["at"] < age:
            return
    if document["describe"]["ActionAfterCompletion"] == "DELETE":
        service.schedules.delete(region, name)
        return
    with service.schedules.changing(region, name) as changed:
        changed["fired"] = True
