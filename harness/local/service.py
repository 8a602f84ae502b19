"""The local SageMaker's state and the threads that work on it; api/front.py puts it behind HTTP.

Everything lies below one state directory:

    server.json   who serves it: process id, port, version      server.log   what it says
    s3/           the objects, as plain files (store/)           sagemaker/   a JSON file for each resource
    jobs/         base directories of running jobs               endpoints/   those of endpoints
    logs/         what containers wrote, one file a stream
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.local.api.errors import Faults, invalid
from harness.local.api.records import Table
from harness.local.endpoints.container import Ports
from harness.local.moto_backends import Telemetry
from harness.local.store.objects import ObjectStore


def prefix_of(folder: Path) -> str:
    """What the names of a server's containers begin with: those of two on one machine are not each other's."""
    return f"local-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]}-"


class Service:
    """Tables, stores and worker threads. `launchers` is where the process executor finds djl-serving.

    `environment` tells a job's container, for a region, where AWS is and as whom to ask it.
    """

    def __init__(
        self,
        folder: Path,
        store: ObjectStore,
        telemetry: Telemetry,
        *,
        account: str,
        executor: str = "process",
        launchers: Callable[[], tuple[Path, ...]] = tuple,
        role_exists: Callable[[str], bool] = lambda _: True,
        environment: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self.folder, self.store, self.telemetry = folder, store, telemetry
        self.account, self.executor, self.launchers, self.role_exists = account, executor, launchers, role_exists
        self.environment = environment
        self.prefix = prefix_of(folder)
        self.jobs = Table(folder / "sagemaker" / "training-jobs")
        self.models = Table(folder / "sagemaker" / "models")
        self.configs = Table(folder / "sagemaker" / "endpoint-configs")
        self.endpoints = Table(folder / "sagemaker" / "endpoints")
        self.schedules = Table(folder / "sagemaker" / "schedules")
        self.faults = Faults()
        self.ports = Ports()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._workers: dict[tuple[str, str, str], Any] = {}

    def arn(self, region: str, kind: str, name: str) -> str:
        """`kind` as it stands in ARNs: training-job, model, endpoint-config, endpoint. Names are lower case there."""
        return f"arn:aws:sagemaker:{region}:{self.account}:{kind}/{name}"

    def check_role(self, arn: str) -> None:
        """The role must exist here, too: `local up` makes role/local. Raises ApiError."""
        if not self.role_exists(arn):
            raise invalid(
                f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
                "'sagemaker.amazonaws.com' to assume the role."
            )

    def check_bucket(self, uri: str, region: str) -> None:
        """SageMaker reads from and writes to buckets of its own region only. Raises ApiError."""
        bucket = uri.removeprefix("s3://").partition("/")[0]
        where = self.store.region_of(bucket)
        if where not in ("", region):
            raise invalid(f"The bucket {bucket} is in region {where}; it must be in {region}, as the request is.")

    def work(self, kind: str, region: str, name: str, worker: Any) -> None:
        """Run `worker.run()` in a thread of its own, and remember the worker while it runs."""
        key = (kind, region, name)

        def body() -> None:
            try:
                worker.run()
            finally:
                with self._lock:
                    if self._workers.get(key) is worker:
                        del self._workers[key]

        with self._lock:
            self._workers[key] = worker
            worker.thread = threading.Thread(target=body, name="/".join(key), daemon=True)
            worker.thread.start()

    def worker(self, kind: str, region: str, name: str) -> Any:
        """The worker of a resource while it has one, else None."""
        with self._lock:
            return self._workers.get((kind, region, name))

    def busy(self) -> list[str]:
        """Jobs and endpoints that are not at their end; a thread may still clear up after one that is."""
        with self._lock:
            keys = list(self._workers)
        return ["/".join(key) for key in keys if not self._has_ended(*key)]

    def _has_ended(self, kind: str, region: str, name: str) -> bool:
        table, status = (self.jobs, "TrainingJobStatus") if kind == "job" else (self.endpoints, "EndpointStatus")
        document = table.get(region, name)
        return document is None or document["describe"][status] in ("Completed", "Failed", "Stopped")

    def close(self, wait: float) -> None:
        """Every container gets its TERM and its time; returns when all workers have ended, or after `wait` s."""
        self.closing.set()
        deadline = time.monotonic() + wait
        while True:
            with self._lock:
                left = [w.thread for w in self._workers.values()]
            if not left or time.monotonic() > deadline:
                return
            left[0].join(timeout=0.2)


def now() -> float:
    """Seconds since the epoch, to the millisecond, as AWS's JSON protocol writes times."""
    return round(time.time(), 3)
