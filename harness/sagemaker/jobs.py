"""Training jobs of one run on SageMaker: attempts, what is followed while one runs, what it leaves."""

from __future__ import annotations

import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from containers.artifact import MANIFEST, unpack
from harness.aws.errors import is_capacity
from harness.aws.transfer import Transfer
from harness.errors import JobFailed, NotFound, Refused
from harness.interrupts import shielded
from harness.sagemaker.logs import STATE, LogFollower
from harness.sagemaker.resources import RUNNING_JOB, Resources
from harness.spec.instances import capacity_hint

Say = Callable[[str], None]
OnStatus = Callable[[str, str], None]
"""Called with a secondary status and its message."""
ATTEMPTS_FOR_CAPACITY = 3  # then a person decides: another instance type or region
# In polls, of 5 s on AWS: the first wait at most (30 s), and any wait at most (5 min); drawn at random below that.
CAPACITY_WAIT = (6.0, 60.0)
TELL_EVERY = 60.0  # seconds between two lines that say what is waited for


class Jobs:
    """A run's training jobs. The first attempt of the run's own has the run's id, later ones -r2, -r3 behind it.

    Further jobs (`harness verify` has them) are called by their request, and have files of their own in the record.
    """

    def __init__(self, resources: Resources, transfer: Transfer, region: str, say: Say) -> None:
        self.resources, self.transfer, self.region, self.say = resources, transfer, region, say
        self.record, self.poll = resources.record, resources.poll
        self._told = 0.0

    def train(self, request: dict[str, Any], on_status: OnStatus, on_tick: Callable[[], None]) -> str:
        """The job to its end; the artifact's URI. One that runs is followed; a failed one gets a next attempt.

        Raises JobFailed with the FailureReason.
        """
        job = self._to_its_end(self.record.id, request, on_status, on_tick)
        return str(job["ModelArtifacts"]["S3ModelArtifacts"])

    def other(self, request: dict[str, Any], on_tick: Callable[[], None]) -> tuple[str, Path]:
        """A further job to its end; (its artifact's URI, the directory of what it left). Raises JobFailed."""
        base = str(request["TrainingJobName"])
        job = self._to_its_end(base, request, lambda *_: None, on_tick)
        uri = str(job["ModelArtifacts"]["S3ModelArtifacts"])
        return uri, self.left(uri, self.record.path / "jobs" / base)

    def note_end(self) -> None:
        """Take note of how the run's own job has ended, and of the rest of its log, where nobody has followed it."""
        known = self.record.read_json("job.json") or {}
        if known.get("status") not in RUNNING_JOB:
            return
        name, region = known["name"], known["region"]
        found = self.resources.describe("training-job", name, region)
        if found is None or found["TrainingJobStatus"] in RUNNING_JOB:
            return
        self._save_job(self.record.id, name, found["TrainingJobStatus"], found["SecondaryStatus"], found)
        with suppress(Refused):  # who may not read logs can still stop the job
            LogFollower(self.resources.aws, self.record, name, region).pump()

    def left(self, uri: str, folder: Path) -> Path:
        """What a finished job left, as its container had it: model/ and output/data/ in `folder`.

        SageMaker makes no archive of a directory with nothing in it; here it is empty, too.
        """
        for archive, name in ((uri, "model"), (_beside(uri), "output/data")):
            self._unpacked(archive, folder / name).mkdir(parents=True, exist_ok=True)
        return folder

    def _to_its_end(
        self, base: str, request: dict[str, Any], on_status: OnStatus, on_tick: Callable[[], None]
    ) -> dict[str, Any]:
        refused = 0
        for name, found in self.attempts(base):
            if found is None:
                # SageMaker gives checkpoints of an earlier attempt to the next one: they have the same prefix.
                with shielded():
                    self.resources.create("training-job", {**request, "TrainingJobName": name}, self.region)
                    self._save_job(base, name, "InProgress", "Starting")
            elif found["TrainingJobStatus"] in ("Failed", "Stopped") and not self.has_trained(found):
                continue
            job = self._follow(base, name, on_status, on_tick)
            if self.has_trained(job):
                return job
            reason = str(job.get("FailureReason", ""))
            if is_capacity(reason) and refused + 1 < ATTEMPTS_FOR_CAPACITY:
                refused += 1
                self._wait_for_capacity(refused)
                continue
            raise self._job_failed(name, job, reason, self._log(base))
        raise AssertionError("attempts() has no end")

    def attempts(self, base: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """(name, DescribeTrainingJob) of a job's first attempt, the second and so on; None for one not made yet."""
        number = 1
        while True:
            name = base if number == 1 else f"{base}-r{number}"
            yield name, self.resources.describe("training-job", name, self.region)
            number += 1

    def _log(self, base: str) -> Path:
        return self.record.log if base == self.record.id else self.record.path / "logs" / f"{base}.log"

    def _follow(self, base: str, name: str, on_status: OnStatus, on_tick: Callable[[], None]) -> dict[str, Any]:
        """Status, log and what is waited for, until the job has ended."""
        state = STATE if base == self.record.id else f"jobs/{base}.{STATE}"
        log = LogFollower(self.resources.aws, self.record, name, self.region, self._log(base), state)
        seen, wait, started = 0, self.poll, time.monotonic()
        while True:
            job = self.resources.describe("training-job", name, self.region)
            if job is None:
                raise JobFailed(f"training job {name} is gone", "somebody has deleted it")
            transitions = job.get("SecondaryStatusTransitions", [])
            for step in transitions[seen:]:
                on_status(step["Status"], step.get("StatusMessage", ""))
            ended = job["TrainingJobStatus"] not in RUNNING_JOB
            lines = log.pump()
            on_tick()
            self._save_job(base, name, job["TrainingJobStatus"], job["SecondaryStatus"], job)
            if ended:
                return job
            if job["SecondaryStatus"] in ("Starting", "Pending"):
                self._tell_pending(job, time.monotonic() - started)
            # Longer waits while nothing happens, back to short ones when something does.
            wait = self.poll if lines or len(transitions) > seen else min(wait * 1.5, 4 * self.poll)
            seen = len(transitions)
            time.sleep(wait)

    def _tell_pending(self, job: dict[str, Any], waited: float) -> None:
        if waited < TELL_EVERY or time.monotonic() - self._told < TELL_EVERY:
            return
        self._told = time.monotonic()
        given_up = job["StoppingCondition"].get("MaxPendingTimeInSeconds")
        until = f", given up after {given_up / 60:.0f} min (compute.max_pending_seconds)" if given_up else ""
        instance = job["ResourceConfig"].get("InstanceType", "")
        self.say(f"waiting {waited / 60:.0f} min for {instance} in {self.region}; not billed{until}")

    def _wait_for_capacity(self, refused: int) -> None:
        """Full jitter: others wait for the same instances."""
        first, most = CAPACITY_WAIT
        wait = random.uniform(0, min(first * 2 ** (refused - 1), most)) * self.poll  # noqa: S311
        self.say(f"no capacity in {self.region}; attempt {refused + 1} of {ATTEMPTS_FOR_CAPACITY} in {wait:.0f} s")
        time.sleep(wait)

    def _job_failed(self, name: str, job: dict[str, Any], reason: str, log: Path) -> JobFailed:
        self.record.note("ended", kind="training-job", name=name, status=job["TrainingJobStatus"])
        hint = f"see {log}"
        status = job["SecondaryStatus"] if job["TrainingJobStatus"] == "Stopped" else job["TrainingJobStatus"]
        if is_capacity(reason) or status == "MaxWaitTimeExceeded":
            hint = capacity_hint(job["ResourceConfig"].get("InstanceType", ""), self.region)
        elif status == "Stopped":
            hint = f"go on from its last checkpoint: harness train {self.record.id}"
        elif status == "MaxRuntimeExceeded":
            hint = f"raise compute.max_runtime_seconds; its checkpoint stays: harness train {self.record.id}"
        return JobFailed(f"training job {name} ended as {status}", reason, hint)

    def _save_job(self, base: str, name: str, status: str, secondary: str, job: dict[str, Any] | None = None) -> None:
        job = job or {}
        self.record.write_json(
            "job.json" if base == self.record.id else f"jobs/{base}.json",
            {
                "name": name,
                "region": self.region,
                "status": status,
                "secondary_status": secondary,
                "failure_reason": job.get("FailureReason", ""),
                "model_artifacts": job.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""),
                "billable_seconds": job.get("BillableTimeInSeconds"),
                "trained": status not in RUNNING_JOB and bool(job) and self.has_trained(job),
            },
        )

    def outputs(self) -> Path:
        """output.tar.gz beside the artifact, unpacked into the record."""
        job = self.record.read_json("job.json") or {}
        return self._unpacked(_beside(str(job.get("model_artifacts", ""))), self.record.path / "outputs")

    def _unpacked(self, uri: str, folder: Path) -> Path:
        """An archive's content in `folder`, whole or not there; once. Where there is no such object, no directory."""
        if uri and not folder.is_dir() and self.transfer.head(uri, self.region):
            archive, partial = folder.with_name(f".{folder.name}.tar.gz"), folder.with_name(f".{folder.name}.partial")
            self.transfer.download(uri, archive, self.region)
            with tarfile.open(archive, "r:gz") as tar:
                unpack(tar, partial)
            archive.unlink()
            partial.rename(folder)
        return folder

    def artifact_uri(self) -> str:
        """Where the finished artifact is. Raises NotFound where no attempt has completed."""
        for _, found in self.attempts(self.record.id):
            if found is None or found["TrainingJobStatus"] in RUNNING_JOB:
                status = found["TrainingJobStatus"] if found else "not started"
                hint = f"wait for it: harness train {self.record.id}"
                raise NotFound(f"run {self.record.id} has no artifact", f"training: {status}", hint)
            if self.has_trained(found):
                return str(found["ModelArtifacts"]["S3ModelArtifacts"])
        raise AssertionError("attempts() has no end")

    def has_trained(self, found: dict[str, Any]) -> bool:
        """Whether a job has left a whole artifact: it has completed, or it was stopped after its last step.

        The trainer then finishes the artifact first, and SageMaker uploads it and calls the job Stopped
        (https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StopTrainingJob.html). The manifest beside the
        metrics is the last file that the trainer writes.
        """
        if found["TrainingJobStatus"] != "Stopped":
            return bool(found["TrainingJobStatus"] == "Completed")
        uri = str(found.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""))
        with tempfile.TemporaryDirectory(dir=self.record.path, prefix=".left-") as scratch:
            return (self._unpacked(_beside(uri), Path(scratch) / "outputs") / MANIFEST).is_file()


def _beside(artifact: str) -> str:
    """Where what was left in /opt/ml/output/data is."""
    return f"{artifact.removesuffix('model.tar.gz')}output.tar.gz" if artifact else ""
