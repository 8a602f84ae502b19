"""A training job: what CreateTrainingJob sets in motion, run here, to its end.

Starting -> Downloading -> Training -> Uploading -> Completed | Failed | Stopped, with the files, signals and
outputs that the contract promises. One host; the other parts of the API come with its HTTP front.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from containers import contract
from containers.contract import Paths, Resources, TrainingInput
from harness.emulator.state import ObjectStore
from harness.errors import NotFound
from harness.executors import process
from harness.executors.process import ContainerSpec, Handle

OnStatus = Callable[[str, str], None]


@dataclass
class TrainingJob:
    """What DescribeTrainingJob would say, under its own names."""

    name: str
    status: str = "InProgress"
    secondary_status: str = "Starting"
    failure_reason: str = ""
    model_artifacts: str = ""
    exit_code: int | None = None
    transitions: list[tuple[str, float]] = field(default_factory=list)

    def seconds(self, status: str) -> float:
        """How long the job was in a secondary status."""
        times = [*self.transitions, ("", time.time())]
        return sum(b[1] - a[1] for a, b in pairwise(times) if a[0] == status)


class TrainingRunner:
    """Runs one job. `stop()` may be called from a signal handler or another thread."""

    def __init__(
        self, request: dict[str, Any], store: ObjectStore, folder: Path, log: Path, on_status: OnStatus
    ) -> None:
        self.request, self.store, self.log, self.on_status = request, store, log, on_status
        self.paths = Paths(folder)
        self.job = TrainingJob(request["TrainingJobName"])
        self.handle: Handle | None = None
        self.stop_requested = False

    def run(self, on_tick: Callable[[], None] = lambda: None) -> TrainingJob:
        """Run the job to its end; `on_tick` is called a few times a second meanwhile."""
        self._enter("Starting", "preparing the container")
        try:
            self._download()
        except (NotFound, ValueError) as error:
            return self._end("Failed", f"ClientError: Data download failed: {error}")
        self._enter("Training", "training image started")
        self.handle = process.start(self._spec())
        deadline = time.monotonic() + self.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        final = "Completed"
        while (code := process.poll(self.handle)) is None:
            if self.stop_requested or time.monotonic() > deadline:
                final = "Stopped" if self.stop_requested else "MaxRuntimeExceeded"
                self.on_status("Stopping", "SIGTERM sent")
                code = process.stop(self.handle, contract.TRAIN_STOP_WAIT)
                break
            on_tick()
            time.sleep(0.1)
        process.remove(self.handle)
        self.job.exit_code = code
        if final == "Completed" and code != 0:
            reason = contract.read_failure(self.paths) or f"AlgorithmError: exit code {code}"
            return self._end("Failed", reason)
        self._upload()
        return self._end(final)

    def stop(self) -> None:
        """StopTrainingJob."""
        self.stop_requested = True

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
        return ContainerSpec(
            name=name,
            role="train",
            command="train",
            base=self.paths.base,
            log=self.log,
            environment={
                "TRAINING_JOB_NAME": name,
                "TRAINING_JOB_ARN": arn,
                **self.request.get("Environment", {}),
            },
            network=not self.request.get("EnableNetworkIsolation", False),
        )

    def _upload(self) -> None:
        self._enter("Uploading", "model and output")
        root = f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.job.name}/output"
        if any(self.paths.model.iterdir()):
            self.job.model_artifacts = f"{root}/model.tar.gz"
            pack(self.paths.model, self.store.path(self.job.model_artifacts))
        if any(self.paths.output_data.iterdir()):
            pack(self.paths.output_data, self.store.path(f"{root}/output.tar.gz"))
        if "CheckpointConfig" in self.request and any(self.paths.checkpoints.iterdir()):
            self.store.put_tree(self.paths.checkpoints, self.request["CheckpointConfig"]["S3Uri"])

    def _enter(self, secondary: str, message: str) -> None:
        self.job.secondary_status = secondary
        self.job.transitions.append((secondary, time.time()))
        self.on_status(secondary, message)

    def _end(self, secondary: str, reason: str = "") -> TrainingJob:
        self.job.status = "Stopped" if secondary == "MaxRuntimeExceeded" else secondary
        self.job.failure_reason = reason[: contract.MAX_FAILURE_REASON]
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
