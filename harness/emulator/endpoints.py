"""The endpoint operations: Create, Describe, List, Update, Delete."""

from __future__ import annotations

from typing import Any

from harness.emulator.deployed import remove_endpoint
from harness.emulator.deployment import EndpointWorker
from harness.emulator.errors import ApiError, invalid, not_implemented
from harness.emulator.models import CONFIGS
from harness.emulator.records import Records
from harness.emulator.rules import only
from harness.emulator.service import Service, now
from harness.emulator.tags import take_tags

Request = dict[str, Any]
Response = dict[str, Any]


def _not_found(service: Service, region: str, name: str) -> ApiError:
    return invalid(f'Could not find endpoint "{service.arn(region, "endpoint", name.lower())}".')


ENDPOINTS = Records(
    lambda service: service.endpoints,
    "EndpointName",
    "Endpoints",
    ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus"),
    _not_found,
    "EndpointStatus",
)


def create(service: Service, region: str, request: Request) -> Response:
    """CreateEndpoint: a record, and a thread that starts the container and looks after it."""
    only("CreateEndpoint", request, {"EndpointName", "EndpointConfigName", "Tags"})
    name, config = request["EndpointName"], request["EndpointConfigName"]
    arn = service.arn(region, "endpoint", name.lower())
    CONFIGS.find(service, region, config)
    at = now()
    document = {
        "describe": {
            "EndpointName": name,
            "EndpointArn": arn,
            "EndpointConfigName": config,
            "EndpointStatus": "Creating",
            "CreationTime": at,
            "LastModifiedTime": at,
        },
        "tags": take_tags(request),
        "generation": 0,
        "deployed": None,
    }
    if not service.endpoints.add(region, name, document):
        raise invalid(f'Cannot create already existing endpoint "{arn}".')
    worker = EndpointWorker(service, region, name)
    worker.ask(config)
    service.work("endpoint", region, name, worker)
    return {"EndpointArn": arn}


def update(service: Service, region: str, request: Request) -> Response:
    """UpdateEndpoint: the new container is healthy before the old one goes; a failure changes nothing."""
    only("UpdateEndpoint", request, {"EndpointName", "EndpointConfigName", "RetainAllVariantProperties"})
    name, config = request["EndpointName"], request["EndpointConfigName"]
    if request.get("RetainAllVariantProperties"):
        raise not_implemented("UpdateEndpoint with RetainAllVariantProperties")
    document = ENDPOINTS.find(service, region, name)
    CONFIGS.find(service, region, config)
    arn, status = document["describe"]["EndpointArn"], document["describe"]["EndpointStatus"]
    worker = service.worker("endpoint", region, name)
    if status != "InService" or worker is None:
        raise invalid(f'Cannot update in-progress endpoint "{arn}".' if status != "Failed" else _failed(arn))
    with service.endpoints.changing(region, name) as changed:
        changed["describe"] |= {"EndpointStatus": "Updating", "LastModifiedTime": now()}
        changed["describe"].pop("FailureReason", None)
    worker.ask(config)
    return {"EndpointArn": arn}


def _failed(arn: str) -> str:
    return f'Cannot update endpoint "{arn}": it is Failed and can only be deleted.'


def delete(service: Service, region: str, request: Request) -> Response:
    """DeleteEndpoint: Deleting at once, gone when the container has had its thirty seconds."""
    name = request["EndpointName"]
    document = ENDPOINTS.find(service, region, name)
    arn, status = document["describe"]["EndpointArn"], document["describe"]["EndpointStatus"]
    if status in ("Updating", "RollingBack", "SystemUpdating", "Deleting"):
        raise invalid(f'Cannot update in-progress endpoint "{arn}".')
    worker = service.worker("endpoint", region, name)
    with service.endpoints.changing(region, name) as changed:
        changed["describe"] |= {"EndpointStatus": "Deleting", "LastModifiedTime": now()}
    if worker is None or not worker.delete():
        remove_endpoint(service, region, name)
    return {}


def settle(service: Service) -> None:
    """After a restart: endpoints are started again from what they were made of; half-deleted ones are deleted."""
    for region, name, document in service.endpoints.rows():
        shown = document["describe"]
        worker = EndpointWorker(service, region, name)
        worker.sweep()
        if shown["EndpointStatus"] == "Deleting":
            remove_endpoint(service, region, name)
        elif shown["EndpointStatus"] != "Failed":
            with service.endpoints.changing(region, name) as changed:
                status = "Creating" if shown["EndpointStatus"] == "Creating" else "SystemUpdating"
                changed["describe"] |= {"EndpointStatus": status, "LastModifiedTime": now()}
            worker.ask(shown["EndpointConfigName"], again=True)
            service.work("endpoint", region, name, worker)
