"""The thread that runs one training job of the local SageMaker: attempts, statuses, logs, metrics, checkpoints."""

from __future__ import annotations

import errno
import shutil
import sys
import threading
import time
import traceback
from typing import Any

from harness import executors
from harness.errors import HarnessError
from harness.files import LineFollower
from harness.local.jobs.runner import JobEnvironment, TrainingJob, TrainingRunner, transitions
from harness.local.moto_backends import TRAINING_GROUP, TRAINING_NAMESPACE, Metrics, events
from harness.local.service import Service, now

SYNC_EVERY = 5.0  # seconds between two looks at the checkpoints of a running job
SPOT_WAIT = 1.0  # seconds until a new instance is there; on AWS minutes to hours
SHOWN_AGAIN = 10_000  # lines of a log after a restart
INTERNAL = "InternalServerError: We encountered an internal error. Please try again."
CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance "
    "type."
)


class JobWorker:
    """Runs the attempts of one job until it has ended; the service's table is never behind what happens."""

    def __init__(self, service: Service, region: str, name: str) -> None:
        self.service, self.region, self.name = service, region, name
        document = service.jobs.get(region, name)
        assert document is not None
        self.request: dict[str, Any] = document["request"]
        self.created: float = document["describe"]["CreationTime"]
        self.folder = service.folder / "jobs" / region / name
        self.spot = bool(self.request.get("EnableManagedSpotTraining"))
        self.retries = self.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
        self.metrics = Metrics.of(self.request)
        self._why = ""
        self._wake = threading.Event()
        self._synced = time.monotonic()
        self._kill_at: int | None = None
        self._spot_at: int | None = None
        self._disk_full = False
        self._hosts_late = 0.0

    # -- asked from outside

    def request_stop(self, why: str) -> None:
        """Stopped or Interrupted: the watch loop sees it within a tenth of a second."""
        self._why = self._why or why
        self._wake.set()

    # -- the thread

    def run(self) -> None:
        """Attempts until one ends the job. Whatever goes wrong in here itself is the service's internal error."""
        try:
            self._take_faults()
            while not self._attempt():
                self._why = ""
                self._wake.clear()
        except Exception:  # noqa: BLE001 (the job must not stay InProgress; the reason is for our log)
            traceback.print_exc()
            self._sweep()
            self._end_without_runner("Failed", INTERNAL)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _take_faults(self) -> None:
        faults = self.service.faults
        if fault := faults.take("out-of-memory", self.name):
            self._kill_at = fault.after
        if fault := faults.take("spot", self.name):
            self._spot_at = fault.after
        self._disk_full = faults.take("disk-full", self.name) is not None
        if fault := faults.take("late-hosts", self.name):
            self._hosts_late = float(fault.after)

    def _attempt(self) -> bool:
        """One start of the containers; True when the job has ended."""
        if self.service.faults.take("capacity", self.name):
            self._end_without_runner("Failed", CAPACITY)
            return True
        with self.service.jobs.changing(self.region, self.name) as document:
            document["attempt"] += 1
            document["epoch"] = int(time.time() * 1000)
            document["executor"] = self.service.executor
            self._before = document["describe"]["SecondaryStatusTransitions"] if document["attempt"] > 1 else []
            epoch, attempt = document["epoch"], document["attempt"]
        shutil.rmtree(self.folder, ignore_errors=True)
        runner = self._runner(attempt)
        runner.hosts[0].log.parent.mkdir(parents=True, exist_ok=True)
        self.followers = {host.label: LineFollower(host.log) for host in runner.hosts}
        self.streams = {host.label: f"{self.name}/{host.label}-{epoch}" for host in runner.hosts}
        for stream in self.streams.values():  # there from the start, however quiet the container is
            self.service.telemetry.log(self.region, TRAINING_GROUP, stream, [])
        self._started = 0.0
        job = runner.run_containers(lambda: self._tick(runner))
        self._ship_logs(last=True)
        if job.status != "InProgress":
            return True
        if runner.ending == "Interrupted":
            runner.end("Interrupted")
            self._bill()
            return self._wait_for_instance(runner)
        runner.upload()
        return True

    def _runner(self, attempt: int) -> TrainingRunner:
        where = self.service
        log = where.folder / "logs" / self.region / "training-jobs" / self.name / f"attempt-{attempt}.log"
        environment = JobEnvironment(
            executor=where.executor,
            account=where.account,
            region=self.region,
            prefix=where.prefix,
            stop_reason=self._stop_reason,
            upload_error=lambda: OSError(errno.ENOSPC, "No space left on device") if self._disk_full else None,
            hosts_late=self._hosts_late,
            variables=where.environment(self.region),
        )
        return TrainingRunner(self.request, where.store, self.folder, log, self._save, environment)

    def _stop_reason(self) -> str:
        if self._why:
            return self._why
        if self.service.closing.is_set():
            return "Stopped"
        return "MaxWaitTimeExceeded" if self._waited_too_long() else ""

    def _waited_too_long(self) -> bool:
        limit = self.request["StoppingCondition"].get("MaxWaitTimeInSeconds")
        return self.spot and limit is not None and time.time() - self.created > limit

    def _wait_for_instance(self, runner: TrainingRunner) -> bool:
        """After an interruption; True where the job ends instead of starting again."""
        if not self.spot:  # on-demand instances are not taken away: only a fault on demand comes here
            runner.end("Failed", INTERNAL)
            return True
        self._why = ""
        self._wake.wait(SPOT_WAIT)
        if why := self._stop_reason():
            runner.end(why)
            return True
        return False

    # -- while the containers run

    def _tick(self, runner: TrainingRunner) -> None:
        self._ship_logs()
        if time.monotonic() - self._synced > SYNC_EVERY:
            self._save_checkpoints(runner)
            self._synced = time.monotonic()
        due = self._kill_at is not None and self.metrics.step >= self._kill_at
        if due and runner.kill_largest():
            self._kill_at = None
        if self._spot_at is not None and self.metrics.step >= self._spot_at:
            self._spot_at = None
            self.request_stop("Interrupted")

    def _save_checkpoints(self, runner: TrainingRunner) -> None:
        """While the job runs. Where S3 refuses, the job goes on: it is tried again, at the latest at its end."""
        try:
            runner.save_checkpoints(copy=True)
        except HarnessError as error:
            sys.stderr.write(f"checkpoints of {self.name} are not stored yet: {error}\n")
            sys.stderr.flush()

    def _ship_logs(self, last: bool = False) -> None:
        data = []
        for label, follower in self.followers.items():
            lines = follower.lines(last)
            if lines:
                self.service.telemetry.log(self.region, TRAINING_GROUP, self.streams[label], events(lines))
                data += self.metrics.read(lines)
        if data:
            dimensions = [{"Name": "TrainingJobName", "Value": self.name}]
            rows = [{"MetricName": name, "Value": value, "Dimensions": dimensions} for name, value in data]
            self.service.telemetry.metrics(self.region, TRAINING_NAMESPACE, rows)
            with self.service.jobs.changing(self.region, self.name) as document:
                document["describe"]["FinalMetricDataList"] = [
                    {"MetricName": name, "Value": value, "Timestamp": at}
                    for name, (value, at) in self.metrics.final.items()
                ]

    def _save(self, job: TrainingJob) -> None:
        """What the runner reports, as DescribeTrainingJob shows it."""
        with self.service.jobs.changing(self.region, self.name) as document:
            shown, at = document["describe"], now()
            if job.secondary_status == "Downloading" and not self._started:
                self._started = at
                shown.setdefault("TrainingStartTime", at)
            shown["SecondaryStatusTransitions"] = transitions(self._before, job, at)
            shown["SecondaryStatus"] = job.secondary_status
            stopping = any(status == "Stopping" for status, _ in job.transitions) and not self._interrupting(job)
            shown["TrainingJobStatus"] = "Stopping" if job.status == "InProgress" and stopping else job.status
            shown["LastModifiedTime"] = at
            if job.failure_reason:
                shown["FailureReason"] = job.failure_reason
            if job.status in ("Completed", "Failed", "Stopped"):
                self._account(document, at)

    def _interrupting(self, job: TrainingJob) -> bool:
        return self._why == "Interrupted" or job.secondary_status == "Interrupted"

    def _bill(self) -> None:
        with self.service.jobs.changing(self.region, self.name) as document:
            document["billable"] += time.time() - self._started if self._started else 0.0
        self._started = 0.0

    def _account(self, document: dict[str, Any], at: float) -> None:
        """Times of the end. On AWS a spot job is billed less than the time it runs; here there is no price."""
        shown = document["describe"]
        shown["TrainingEndTime"] = at
        if "TrainingStartTime" in shown:
            running = document["billable"] + (at - self._started if self._started else 0.0)
            shown["TrainingTimeInSeconds"] = max(1, round(at - shown["TrainingStartTime"]))
            shown["BillableTimeInSeconds"] = max(1, round(running))

    # -- ends without a running container

    def _end_without_runner(self, status: str, reason: str) -> None:
        self._started = 0.0
        with self.service.jobs.changing(self.region, self.name) as document:
            self._before = document["describe"]["SecondaryStatusTransitions"]
        job = TrainingJob(self.name, status=status, secondary_status=status, failure_reason=reason)
        job.transitions = [(status, time.time())]
        self._save(job)

    def recover(self) -> bool:
        """After a crash of the service: sweep, save checkpoints; True where the job is to start again."""
        self._sweep()
        document = self.service.jobs.get(self.region, self.name)
        assert document is not None
        stopping = document["describe"]["TrainingJobStatus"] == "Stopping"
        attempt = document["attempt"]
        if self.folder.is_dir() and attempt > 0:
            self._runner(attempt).save_checkpoints()
        if stopping:
            self._end_without_runner("Stopped", "")
        elif self.spot or attempt <= self.retries:
            job = TrainingJob(self.name, secondary_status="Interrupted", transitions=[("Interrupted", time.time())])
            self._before, self._started = document["describe"]["SecondaryStatusTransitions"], 0.0
            self._save(job)
            return True
        else:
            self._end_without_runner("Failed", INTERNAL)
        shutil.rmtree(self.folder, ignore_errors=True)
        return False

    def _sweep(self) -> None:
        document = self.service.jobs.get(self.region, self.name) or {}
        # A server that was killed may have had another executor than this one.
        self._runner(1).sweep(executors.named(document.get("executor", self.service.executor)))


def finish_deletion(service: Service, region: str, name: str) -> None:
    """The record and the local logs; objects in S3 and events in CloudWatch Logs stay, as on AWS."""
    shutil.rmtree(service.folder / "logs" / region / "training-jobs" / name, ignore_errors=True)
    service.jobs.delete(region, name)


def show_logs(service: Service, region: str, name: str) -> None:
    """After a restart: what the job's last containers wrote, for CloudWatch Logs, which forgets. Times are of now."""
    document = service.jobs.get(region, name)
    if document is None or "epoch" not in document:
        return
    folder = service.folder / "logs" / region / "training-jobs" / name
    for path in sorted(folder.glob(f"attempt-{document['attempt']}*.log")):
        label = path.stem.partition("-algo-")[2] or "1"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_AGAIN:]
        stream = f"{name}/algo-{label}-{document['epoch']}"
        service.telemetry.log(region, TRAINING_GROUP, stream, events(lines))
