"""A training job: what CreateTrainingJob sets in motion, run here, to its end.

Starting -> Downloading -> Training -> Uploading -> Completed | Failed | Stopped, with the files, signals and
outputs that the contract promises. One host; the other parts of the API come with its HTTP front.
"""

from __future__ import annotations

import errno
import gzip
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containers import contract
from containers.contract import Paths, Resources, TrainingInput
from harness import executors, interrupts
from harness.emulator.state import ObjectStore
from harness.errors import NotFound
from harness.executors.spec import ContainerSpec, Handle, role_of
from harness.interrupts import shielded

OnStatus = Callable[[str, str], None]


@dataclass
class TrainingJob:
    """What DescribeTrainingJob would say, under its own names, and the container to find it again by."""

    name: str
    status: str = "InProgress"
    secondary_status: str = "Starting"
    failure_reason: str = ""
    model_artifacts: str = ""
    exit_code: int | None = None
    transitions: list[tuple[str, float]] = field(default_factory=list)
    handle: dict[str, Any] | None = None


class TrainingRunner:
    """Runs one job, in two parts: the container, and the upload of what it left.

    `on_change` is called whenever the job has changed, before anything else happens: the record is never behind.
    """

    def __init__(
        self,
        request: dict[str, Any],
        store: ObjectStore,
        folder: Path,
        log: Path,
        on_status: OnStatus,
        on_change: Callable[[TrainingJob], None],
        executor: str = "process",
    ) -> None:
        self.request, self.store, self.log = request, store, log
        self.on_status, self.on_change = on_status, on_change
        self.paths, self.executor = Paths(folder), executors.named(executor)
        self.job = TrainingJob(request["TrainingJobName"])

    def run_container(self, on_tick: Callable[[], None] = lambda: None) -> TrainingJob:
        """Channels, container, checkpoints. Ends as InProgress with exit code 0 where there is a model to upload.

        A signal to the harness becomes StopTrainingJob: the container gets TERM and its time to save a checkpoint.
        """
        with shielded():
            self._enter("Starting", "preparing the container")
            try:
                self._download()
            except (NotFound, ValueError) as error:
                return self._end("Failed", f"ClientError: Data download failed: {error}")
            handle = self.executor.start(self._spec())
            self.job.handle = handle.to_json()
            self._enter("Training", "training image started")
            stopped = self._watch(handle, on_tick)
            self.executor.remove(handle)
            self._save_checkpoints()
            if stopped and self.job.exit_code != 0:
                return self._end(stopped)
            if self.job.exit_code != 0:
                reason = contract.read_failure(self.paths) or f"AlgorithmError: exit code {self.job.exit_code}"
                return self._end("Failed", reason)
        return self.job

    def _watch(self, handle: Handle, on_tick: Callable[[], None]) -> str:
        """Wait for the container's end; why it was stopped, or the empty string."""
        deadline = time.monotonic() + self.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        while (code := self.executor.poll(handle)) is None:
            late = time.monotonic() > deadline
            if interrupts.requested() or late:
                self._enter("Stopping", "SIGTERM sent, waiting for the checkpoint")
                self.job.exit_code = self.executor.stop(handle, contract.TRAIN_STOP_WAIT)
                return "MaxRuntimeExceeded" if late else "Stopped"
            on_tick()
            time.sleep(0.1)
        self.job.exit_code = code
        return ""

    def upload(self) -> TrainingJob:
        """Pack what the container left into the output path; may be interrupted and called again."""
        self._enter("Uploading", "model and output")
        root = f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.job.name}/output"
        try:
            if any(self.paths.model.iterdir()):
                pack(self.paths.model, self.store.path(f"{root}/model.tar.gz"))
                self.job.model_artifacts = f"{root}/model.tar.gz"
            if any(self.paths.output_data.iterdir()):
                pack(self.paths.output_data, self.store.path(f"{root}/output.tar.gz"))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return self._end("Failed", "ClientError: Artifact upload failed: no space left on the disk")
        return self._end("Completed")

    def _save_checkpoints(self) -> None:
        if "CheckpointConfig" in self.request and self.paths.checkpoints.is_dir():
            self.store.mirror(self.paths.checkpoints, self.request["CheckpointConfig"]["S3Uri"])

    def _download(self) -> None:
        self._enter("Downloading", "input channels")
        channels = self.request.get("InputDataConfig", [])
        contract.write_training_input(
            self.paths,
            TrainingInput(
                hyperparameters=self.request.get("HyperParameters", {}),
                channels=tuple(c["ChannelName"] for c in channels),
                resources=Resources(instance_type=self.request["ResourceConfig"]["InstanceType"]),
            ),
        )
        for channel in channels:
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            self.store.download(uri, self.paths.channel(channel["ChannelName"]))
        if "CheckpointConfig" in self.request:
            uri = self.request["CheckpointConfig"]["S3Uri"]
            if any(self.store.files(uri)):
                self.store.download(uri, self.paths.checkpoints)

    def _spec(self) -> ContainerSpec:
        name = self.job.name
        arn = f"arn:aws:sagemaker:us-west-2:000000000000:training-job/{name}"
        algorithm = self.request["AlgorithmSpecification"]
        return ContainerSpec(
            name=name,
            role=role_of(algorithm["TrainingImage"], self.request.get("Environment", {})),
            command="train",
            base=self.paths.base,
            log=self.log,
            environment={
                "TRAINING_JOB_NAME": name,
                "TRAINING_JOB_ARN": arn,
                **self.request.get("Environment", {}),
            },
            network=not self.request.get("EnableNetworkIsolation", False),
            image=algorithm["TrainingImage"],
            arguments=tuple(algorithm.get("ContainerArguments", ())),
        )

    def _enter(self, secondary: str, message: str) -> None:
        self.job.secondary_status = secondary
        self.job.transitions.append((secondary, time.time()))
        self.on_change(self.job)
        self.on_status(secondary, message)

    def _end(self, secondary: str, reason: str = "") -> TrainingJob:
        self.job.status = "Stopped" if secondary == "MaxRuntimeExceeded" else secondary
        self.job.failure_reason = reason[: contract.MAX_FAILURE_REASON]
        self.job.handle = None
        self._enter(secondary, reason.splitlines()[0] if reason else "")
        return self.job


def pack(folder: Path, target: Path) -> None:
    """`folder`'s content as a .tar.gz at `target`: whole or not at all.

    Level 1: bf16 weights shrink by a fifth at any level, and the higher ones take five times as long.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with (
            gzip.open(partial, "wb", compresslevel=1) as stream,
            tarfile.open(fileobj=stream, mode="w") as tar,
        ):
            for path in sorted(folder.iterdir()):
                tar.add(path, arcname=path.name)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
