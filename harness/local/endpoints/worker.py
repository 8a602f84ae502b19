"""The thread that looks after one endpoint of the local SageMaker: deploys, updates, watches, deletes."""

from __future__ import annotations

import queue
import shutil
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from containers import contract
from harness import executors
from harness.errors import EndpointFailed, HarnessError
from harness.files import LineFollower
from harness.local.endpoints import container as containers
from harness.local.endpoints.container import Deployed
from harness.local.moto_backends import events
from harness.local.service import Service, now

CAPACITY = (
    "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error. Please retry using "
    "a different ML instance type or after some time."
)


class Asked(Exception):
    """Raised out of a deployment when the endpoint is to be deleted or the service ends."""


class EndpointWorker:
    """`current` answers invocations; the thread alone replaces it."""

    def __init__(self, service: Service, region: str, name: str) -> None:
        self.service, self.region, self.name = service, region, name
        self.group = f"/aws/sagemaker/Endpoints/{name}"
        self.folder = service.folder / "endpoints" / region / name
        self.current: Deployed | None = None
        self._asked: queue.Queue[tuple[str, bool] | None] = queue.Queue()
        self._deleting = threading.Event()
        self._restarts = 0

    def ask(self, config: str, again: bool = False) -> None:
        """Deploy `config`; with `again` what is recorded as deployed, whatever the configuration is now."""
        self._asked.put((config, again))

    def delete(self) -> bool:
        """End the endpoint; False where the thread has ended already."""
        self._deleting.set()
        self._asked.put(None)  # wakes the thread
        return bool(self.thread.is_alive())

    thread: threading.Thread

    # -- the thread

    def run(self) -> None:
        """Until the endpoint is deleted, has failed, or the service ends."""
        try:
            while not self._ending():
                try:
                    asked = self._asked.get(timeout=0.2)
                except queue.Empty:
                    self._look_after()
                    continue
                if asked is not None and not self._deploy(*asked):
                    break
        except Asked:
            pass
        except Exception:  # noqa: BLE001 (the reason is for our log; the endpoint must not stay as it was)
            traceback.print_exc()
            self._fail("InternalServerError: We encountered an internal error. Please try again.")
        self._wind_up()

    def _ending(self) -> bool:
        return self._deleting.is_set() or self.service.closing.is_set()

    def _wind_up(self) -> None:
        if self.current is not None:
            self._remove(self.current)
            self.current = None
        if self._deleting.is_set():
            remove_endpoint(self.service, self.region, self.name)
        else:
            self._check_deleted_meanwhile()

    def _check_deleted_meanwhile(self) -> None:
        document = self.service.endpoints.get(self.region, self.name)
        if document and document["describe"]["EndpointStatus"] == "Deleting" and not self.service.closing.is_set():
            remove_endpoint(self.service, self.region, self.name)

    def _deploy(self, config: str, again: bool) -> bool:
        """One Create or Update; False where the endpoint has failed for good."""
        generation = self._next_generation()
        made_of = self._made_of(config, again)
        try:
            if made_of is None:
                raise EndpointFailed(f"endpoint configuration {config} or its model was deleted")
            if self.service.faults.take("capacity", self.name):
                raise EndpointFailed(CAPACITY)
            new = self._start(generation, made_of)
        except HarnessError as error:
            reason = error.problems[0].what
            if self.current is None:
                self._fail(reason)
                return False
            self._roll_back(reason)
            return True
        old, self.current = self.current, new
        self._show(config, new)
        if old is not None:
            self._remove(old)
        return True

    def _next_generation(self) -> int:
        with self.service.endpoints.changing(self.region, self.name) as document:
            document["generation"] += 1
            document["executor"] = self.service.executor
            return int(document["generation"])

    def _made_of(self, config: str, again: bool) -> dict[str, Any] | None:
        """Model and variant, kept with the endpoint: either may be deleted while it serves."""
        document = self.service.endpoints.get(self.region, self.name)
        if again and document and document["deployed"]:
            deployed: dict[str, Any] = document["deployed"]
            return deployed
        found = self.service.configs.get(self.region, config)
        variant = found["describe"]["ProductionVariants"][0] if found else None
        model = self.service.models.get(self.region, variant["ModelName"]) if variant else None
        return {"variant": variant, "model": model["describe"]} if model else None

    def _start(self, generation: int, made_of: dict[str, Any]) -> Deployed:
        """A container that is healthy. Raises EndpointFailed with FailureReason's text, Asked when not wanted."""
        variant = made_of["variant"]
        folder = self.folder / str(generation)
        log = self._log(generation)
        stream = f"{variant['VariantName']}/i-{self.service.prefix.strip('-')[6:]}{generation:08x}"
        port = self.service.ports.take()
        container = f"{self._container}-{generation}"
        deployed = None
        try:
            endpoint = containers.create(
                self.name,
                made_of["model"],
                self.service.store,
                folder,
                log,
                containers.Placement(self.service.launchers(), port, self.service.executor, container),
            )
            deployed = Deployed(endpoint, folder, stream, LineFollower(log), made_of)
            window = variant.get("ContainerStartupHealthCheckTimeoutInSeconds", contract.STARTUP_WINDOW)
            window, check = self._health_check(window)
            containers.wait_in_service(endpoint, window, lambda: self._on_tick(deployed), check)
        except BaseException as error:
            if deployed is not None:
                self._ship(deployed, last=True)
            self._discard(folder, port, container)
            if isinstance(error, EndpointFailed) and deployed is not None:
                raise EndpointFailed(
                    f"The primary container for production variant {variant['VariantName']} did not pass the ping "
                    f"health check. Please check CloudWatch logs for this endpoint. ({error.problems[0].why})"
                ) from None
            raise
        return deployed

    def _health_check(self, window: float) -> tuple[float, containers.Ping]:
        """Seconds that /ping has, and what asks: the variant's window and `ping`, unless a fault replaces them."""
        if failing := self.service.faults.take("failing-ping", self.name):
            return float(failing.after or window), lambda _: False
        slow = self.service.faults.take("slow-ping", self.name)
        if slow is None:
            return window, containers.ping
        begin = time.monotonic()
        return window, lambda endpoint: time.monotonic() - begin > slow.after and containers.ping(endpoint)

    def _on_tick(self, deployed: Deployed | None) -> None:
        if deployed is not None:
            self._ship(deployed)
        if self.current is not None:
            self._ship(self.current)
        if self._ending():
            raise Asked

    def _look_after(self) -> None:
        """Logs; and a container that has ended is started again, as SageMaker does."""
        if self.current is None:
            return
        self._ship(self.current)
        executor = executors.named(self.service.executor)
        if executor.poll(self.current.endpoint.handle) is None:
            self._restarts = 0 if time.monotonic() - self._since > 60 else self._restarts
            return
        self._restarts += 1
        self._since = time.monotonic()
        made_of = self.current.made_of
        self._remove(self.current)
        self.current = None
        if self._deleting.wait(
            min(2.0**self._restarts, 60)
        ):  # a container that ends at once is not tried all the time
            return
        while self.current is None and not self._ending():
            try:
                self.current = self._start(self._next_generation(), made_of)
            except EndpointFailed:
                self._restarts += 1
                self._deleting.wait(min(2.0**self._restarts, 60))

    _since = 0.0

    def _show(self, config: str, new: Deployed) -> None:
        variant, image = new.made_of["variant"], new.made_of["model"]["PrimaryContainer"]["Image"]
        with self.service.endpoints.changing(self.region, self.name) as document:
            at = now()
            shown = document["describe"]
            shown |= {"EndpointStatus": "InService", "EndpointConfigName": config, "LastModifiedTime": at}
            shown.pop("FailureReason", None)
            document["deployed"] = new.made_of
            shown["ProductionVariants"] = [
                {
                    "VariantName": variant["VariantName"],
                    "DeployedImages": [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": at}],
                    "CurrentWeight": variant["InitialVariantWeight"],
                    "DesiredWeight": variant["InitialVariantWeight"],
                    "CurrentInstanceCount": variant["InitialInstanceCount"],
                    "DesiredInstanceCount": variant["InitialInstanceCount"],
                }
            ]
            if self._deleting.is_set():
                shown["EndpointStatus"] = "Deleting"

    def _fail(self, reason: str) -> None:
        self._status("Failed", reason)

    def _roll_back(self, reason: str) -> None:
        self._status("RollingBack", reason)
        self._status("InService", reason)

    def _status(self, status: str, reason: str) -> None:
        with self.service.endpoints.changing(self.region, self.name) as document:
            shown = document["describe"]
            if shown["EndpointStatus"] != "Deleting":
                shown["EndpointStatus"] = status
            shown |= {"FailureReason": reason[:1024], "LastModifiedTime": now()}

    # -- what is left of a container

    @property
    def _container(self) -> str:
        return f"{self.service.prefix}{self.region}-{self.name}"

    def _log(self, generation: int) -> Path:
        return self.service.folder / "logs" / self.region / "endpoints" / self.name / f"{generation}.log"

    def _ship(self, deployed: Deployed, last: bool = False) -> None:
        if lines := deployed.follower.lines(last):
            self.service.telemetry.log(self.region, self.group, deployed.stream, events(lines))

    def _remove(self, deployed: Deployed) -> None:
        containers.delete(deployed.endpoint)
        deployed.pool.close()
        self._ship(deployed, last=True)
        self._discard(deployed.folder, deployed.endpoint.port)

    def _discard(self, folder: Path, port: int, container: str = "") -> None:
        if container:
            executors.named(self.service.executor).sweep(container)
        containers.delete_tree(folder)
        self.service.ports.give_back(port)

    def sweep(self) -> None:
        """After a crash: every container that this endpoint may have had, and their directories."""
        document = self.service.endpoints.get(self.region, self.name)
        newest = document["generation"] if document else 0
        # A server that was killed may have had another executor than this one.
        executor = executors.named((document or {}).get("executor", self.service.executor))
        for generation in range(max(1, newest - 1), newest + 1):  # at most two live at a time
            executor.sweep(f"{self._container}-{generation}")
        containers.delete_tree(self.folder)


def remove_endpoint(service: Service, region: str, name: str) -> None:
    """Nothing of it is left but what it wrote to CloudWatch Logs."""
    containers.delete_tree(service.folder / "endpoints" / region / name)
    shutil.rmtree(service.folder / "logs" / region / "endpoints" / name, ignore_errors=True)
    service.endpoints.delete(region, name)
