"""Endpoints of one run on SageMaker: made, waited for, asked, deleted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from containers import contract
from harness.aws.errors import is_capacity
from harness.errors import EndpointFailed, HarnessError, Refused
from harness.interrupts import shielded
from harness.sagemaker.expiry import Expiry
from harness.sagemaker.jobs import TELL_EVERY, Say
from harness.sagemaker.logs import Streams, endpoint_group
from harness.sagemaker.resources import DELETION, Resources
from harness.spec import plan as plans
from harness.spec.instances import capacity_hint
from harness.spec.plan import Deployment


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as DescribeEndpoint shows it."""

    name: str
    status: str
    region: str


class Endpoints:
    """The run's endpoints in one region."""

    def __init__(self, resources: Resources, region: str, hours: float, say: Say) -> None:
        self.resources, self.region, self.hours, self.say = resources, region, hours, say
        self.aws, self.record, self.poll = resources.aws, resources.record, resources.poll
        self.expiry = Expiry(resources, say)
        self._told = 0.0

    def deploy(
        self,
        deployment: Deployment,
        known: Callable[[], dict[str, str]],
        on_tick: Callable[[], None],
        ttl: float | None = None,
    ) -> Endpoint:
        """Model, configuration, endpoint, then wait until InService; one that is, is kept.

        `known` gives what the requests' placeholders stand for; called only where something has to be made.
        """
        name, region = deployment.endpoint_name, self.region
        found = self.resources.describe("endpoint", name, region)
        try:
            if found is None or found["EndpointStatus"] not in (
                "InService",
                "Creating",
                "Updating",
                "SystemUpdating",
            ):
                self.remove(name, region)  # a Failed one, and what a crash has left of its parts
                seconds = ttl if ttl is not None else 3600 * self.hours
                expires = datetime.now(UTC) + timedelta(seconds=seconds)
                needs = {**known(), "expires": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}
                self.expiry.set(name, expires, region)  # first: killed in between, an endpoint would have no end
                self._create_all(deployment, needs)
            self._wait_in_service(deployment, on_tick)
        except EndpointFailed:  # SageMaker says so; a call that is refused says nothing about the endpoint
            with suppress(HarnessError), shielded():  # the reason why is what is told; `down` finds what is left
                self.remove(name, region)
            raise
        return Endpoint(name, "InService", region)

    def _create_all(self, deployment: Deployment, known: dict[str, str]) -> None:
        """All three or none: without the endpoint nothing needs the other two."""
        requests = {
            "model": deployment.create_model,
            "endpoint-config": deployment.create_endpoint_config,
            "endpoint": deployment.create_endpoint,
        }
        try:
            for kind, request in requests.items():
                self.resources.create(kind, plans.resolve(request, known), self.region)
        except Refused:
            with suppress(HarnessError), shielded():
                self.remove(deployment.endpoint_name, self.region)
            raise

    def _wait_in_service(self, deployment: Deployment, on_tick: Callable[[], None]) -> None:
        name, region, started = deployment.endpoint_name, self.region, time.monotonic()
        while True:
            now = self.resources.describe("endpoint", name, region)
            if now is None:
                raise self._gone(name)
            if now["EndpointStatus"] == "InService":
                return
            if now["EndpointStatus"] == "Failed":
                raise self._endpoint_failed(deployment, str(now.get("FailureReason", "")))
            on_tick()
            if time.monotonic() - max(self._told, started) > TELL_EVERY:
                self._told = time.monotonic()
                waited = (self._told - started) / 60
                steps = "an instance, the image, the model data, then a container that answers /ping"
                self.say(f"endpoint {name}: {now['EndpointStatus']} for {waited:.0f} min; it waits for {steps}")
            time.sleep(self.poll)

    def _gone(self, name: str) -> EndpointFailed:
        """It was being made and is not there any more: its time was over, or somebody else has deleted it."""
        ended = self.expiry.of(name)
        if ended is None or ended > datetime.now(UTC):
            return EndpointFailed(f"endpoint {name} is gone", "somebody has deleted it")
        why = f"it was to end at {ended:%Y-%m-%d %H:%M:%S} UTC, before it was InService"
        return EndpointFailed(f"endpoint {name} is gone", why, "give it longer: deploy --ttl, endpoint_hours")

    def _endpoint_failed(self, deployment: Deployment, reason: str) -> EndpointFailed:
        """SageMaker's reason, and the container's own, which is in its log."""
        name = deployment.endpoint_name
        instance = deployment.create_endpoint_config["ProductionVariants"][0]["InstanceType"]
        lines = self.log(name)
        path = self.record.write_text(f"logs/{name}.log", "\n".join(lines) + "\n")
        telling = [line for line in lines if "Error" in line or line.startswith("entrypoint:")]
        why = "; ".join(filter(None, [reason, (telling or lines or [""])[-1].strip()]))
        hint = capacity_hint(instance, self.region) if is_capacity(reason) else f"see {path}"
        return EndpointFailed(f"endpoint {name} is Failed", why[:600], hint)

    def log(self, name: str) -> list[str]:
        """An endpoint's log."""
        return Streams(self.aws, endpoint_group(name), "", self.region).new()

    def all(self) -> Iterator[Endpoint]:
        """This run's endpoints: in its ledger and there."""
        for item in self.resources.made():
            if item.kind == "endpoint" and (found := self.resources.describe("endpoint", item.name, item.region)):
                yield Endpoint(item.name, found["EndpointStatus"], item.region)

    def invoke(self, endpoint: Endpoint, body: dict[str, Any]) -> bytes:
        """InvokeEndpoint. Raises EndpointFailed for what the container answered."""
        answer = self.aws.call("sagemaker-runtime", "invoke_endpoint", endpoint.region, **_asked(endpoint, body))
        data: bytes = answer["Body"].read()
        return data

    def invoke_stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Iterator[bytes]:
        """InvokeEndpointWithResponseStream: the parts' bytes. Raises EndpointFailed where the stream breaks."""
        operation = "invoke_endpoint_with_response_stream"
        answer = self.aws.call("sagemaker-runtime", operation, endpoint.region, **_asked(endpoint, body))
        yield from self.aws.events(answer["Body"], "PayloadPart", "Bytes", endpoint.name)

    def remove(self, name: str, region: str) -> None:
        """DeleteEndpoint, DeleteEndpointConfig, DeleteModel, in this order, then its schedule."""
        wanted = {(m.kind, m.name) for m in self.resources.made()}
        for kind in DELETION:
            if (kind, name) in wanted:
                self.resources.delete(kind, name, region, self.say)
        self.expiry.cancel(name, region)


def _asked(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    raw = json.dumps(body).encode()
    if len(raw) > contract.MAX_INVOCATION_BODY:
        raise EndpointFailed(f"the request has {len(raw)} bytes; {contract.MAX_INVOCATION_BODY} fit")
    return {"EndpointName": endpoint.name, "ContentType": "application/json", "Body": raw}
