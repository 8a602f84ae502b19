"""What the steps of `harness verify` share: the run, its jobs, what they left, and what they have cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import EndpointFailed, JobFailed
from harness.reporter import Reporter
from harness.run import report
from harness.run.steps import Run
from harness.sagemaker.client import RunClient
from harness.verify.jobs import ENDPOINT_SECONDS, PREPARED, Jobs

PASSED, FAILED, NOT_HERE, NOT_RUN = "pass", "fail", "not on this device", "not run"


class Wrong(Exception):
    """A step found something wrong; the message says what."""


@dataclass(frozen=True)
class Result:
    """A row of the report. `seconds` is the time the step took here, queueing included."""

    name: str
    status: str
    figure: str
    seconds: float


@dataclass
class Budget:
    """What may be spent, in USD; nothing is asked where an hour costs nothing, as it does here.

    SageMaker ends each job at its MaxRuntimeInSeconds, so the shortened jobs alone keep within the cap. This looks
    again before each of them at what was really billed, and ends the endpoint, which nothing else would.
    """

    usd_per_hour: float = 0.0
    cap: float = math.inf
    endpoint_seconds: float = 0.0

    def spent(self, billed: float) -> float:
        """USD for `billed` seconds of jobs and for the endpoint's so far."""
        return (billed + self.endpoint_seconds) / 3600 * self.usd_per_hour

    def afford(self, what: str, seconds: float, billed: float) -> None:
        """Raises JobFailed where `what` could exceed the cap if it took all its `seconds`."""
        most = self.spent(billed) + seconds / 3600 * self.usd_per_hour
        if most > self.cap + 1e-6:
            why = f"{self.spent(billed):.2f} USD are spent, it may take {most - self.spent(billed):.2f}"
            raise JobFailed(f"{what} was not started: the cap is {self.cap:.2f} USD", why)

    @contextmanager
    def endpoint(self, seconds: float = ENDPOINT_SECONDS) -> Iterator[Callable[[], None]]:
        """Count the block's time as an endpoint's; what it yields raises EndpointFailed when that is over."""
        started = time.monotonic()

        def tick() -> None:
            if self.usd_per_hour and time.monotonic() - started > seconds:
                raise EndpointFailed("the endpoint's time is over", f"{seconds:.0f} s are in the cost cap")

        try:
            yield tick
        finally:
            self.endpoint_seconds += time.monotonic() - started


@dataclass
class Bench:
    """One verification."""

    run: Run
    jobs: Jobs
    client: RunClient
    device: str
    reporter: Reporter
    budget: Budget = field(default_factory=Budget)
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    prepared: str = ""
    folders: dict[str, Path] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    left_behind: str = ""
    """What clearing up failed with."""

    def job(self, name: str) -> Path:
        """Run the job called `name` to its end; the directory of what it left. Raises JobFailed."""
        request = self.jobs.others[name]
        known = {PREPARED: self.prepared}
        if "artifact_uri" in str(request):
            known["artifact_uri"] = self.client.artifact_uri()
        self.afford(f"job {name}", request)
        self.reporter.say(f"job {name}")
        artifact, self.folders[name] = self.client.job(request, known)
        if name == "prepare":
            self.prepared = artifact
        return self.folders[name]

    def afford(self, what: str, request: dict[str, Any]) -> None:
        """Raises JobFailed where a job could exceed the cap."""
        self.budget.afford(what, request["StoppingCondition"]["MaxRuntimeInSeconds"], self.billed())

    def billed(self) -> float:
        """Seconds that SageMaker has billed for jobs so far."""
        record = self.run.record
        files = ["job.json", *(f"jobs/{p.name}" for p in sorted((record.path / "jobs").glob("*.json")))]
        jobs = [record.read_json(file) or {} for file in files if not file.endswith(".follow.json")]
        return sum(float(job.get("billable_seconds") or 0) for job in jobs)

    def trained(self) -> Path:
        """The directory of what the run's own training job left: model/ and output/data/."""
        if "" not in self.folders:
            self.folders[""] = self.client.trained()
        return self.folders[""]

    def metrics(self, name: str = "") -> list[dict[str, float]]:
        """metrics.jsonl of the run's training job, or of another."""
        return report.read_metrics((self.folders[name] if name else self.trained()) / "output" / "data")

    def host(self, image: str) -> None:
        """What the containers of `train` or `serve` have to work with."""
        found = self.job(f"host-{image}") / "output" / "data" / "host.json"
        self.hosts[image] = json.loads(found.read_text(encoding="utf-8"))
