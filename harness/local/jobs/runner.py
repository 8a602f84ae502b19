"""A training job's containers: what CreateTrainingJob sets in motion on this machine, from download to upload.

Starting -> Downloading -> Training -> Uploading -> Completed | Failed | Stopped, with the files, signals and outputs
that SageMaker's contract promises, on one host or several. worker.py runs the attempts of a job in a thread.
"""

from __future__ import annotations

import errno
import gzip
import os
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containers import contract
from containers.contract import Paths, Resources, TrainingInput
from harness import executors
from harness.errors import MissingPrerequisite, NotFound, NotStarted
from harness.executors.spec import ContainerSpec, Executor, Handle, role_of
from harness.local.store.objects import ObjectStore


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


@dataclass(frozen=True)
class JobEnvironment:
    """Where and as whom a job runs, and what the service asks of it while it does."""

    executor: str = "process"
    account: str = "000000000000"
    region: str = "us-west-2"
    prefix: str = ""
    """Put before container names, so that two servers on one machine never sweep each other's containers."""
    stop_reason: Callable[[], str] = lambda: ""
    """Asked ten times a second: why the job is to end now (Stopped, Interrupted, MaxWaitTimeExceeded), or nothing."""
    upload_error: Callable[[], OSError | None] = lambda: None
    """For faults on demand: the error that storing the output is to fail with."""
    hosts_late: float = 0.0
    """For faults on demand: seconds until the hosts after the first one start and their names resolve."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of containers that are not isolated: where AWS is, and as whom to ask it."""


@dataclass(frozen=True)
class Host:
    """One host of the job: `label` is algo-N, `name` what the others reach it by."""

    label: str
    name: str
    paths: Paths
    log: Path
    container: str


def hosts_of(job: str, count: int, folder: Path, log: Path, environment: JobEnvironment) -> list[Host]:
    """The hosts of a job, sorted by letters as SageMaker does (algo-10 before algo-2).

    Processes share this machine's network: each host is a loopback address of its own, because algo-N resolves
    nowhere. In containers the names are SageMaker's.
    """
    if count == 1:
        name = "127.0.0.1" if environment.executor == "process" else "algo-1"
        return [Host("algo-1", name, Paths(folder), log, f"{environment.prefix}{job}")]
    out = []
    for label in sorted(f"algo-{n}" for n in range(1, count + 1)):
        name = f"127.0.0.{int(label[5:]) + 1}" if environment.executor == "process" else label
        path = log.with_name(f"{log.stem}-{label}{log.suffix}")
        out.append(Host(label, name, Paths(folder / label), path, f"{environment.prefix}{job}-{label}"))
    return out


def artifact_uri(request: dict[str, Any]) -> str:
    """ModelArtifacts.S3ModelArtifacts: the archive, or the prefix of uncompressed output."""
    config = request["OutputDataConfig"]
    root = f"{config['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output"
    return f"{root}/model" if config.get("CompressionType", "GZIP") == "NONE" else f"{root}/model.tar.gz"


# SecondaryStatusTransitions[].StatusMessage
MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading the training image",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Training job interrupted by a spot interruption",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
}


def transitions(before: list[dict[str, Any]], job: TrainingJob, at: float) -> list[dict[str, Any]]:
    """SecondaryStatusTransitions: each ends where the next begins; the last of an ended job has ended too."""
    out = list(before)
    for status, began in job.transitions:
        start = round(began, 3)
        if out and out[-1]["Status"] == status == "Starting":
            continue  # the one that CreateTrainingJob wrote
        if out:
            out[-1] = {**out[-1], "EndTime": out[-1].get("EndTime", start)}
        out.append({"Status": status, "StartTime": start, "StatusMessage": MESSAGES[status]})
    if job.status in ("Completed", "Failed", "Stopped"):
        out[-1] = {**out[-1], "EndTime": at}
        if job.status == "Failed" and job.failure_reason:
            out[-1]["StatusMessage"] = job.failure_reason.splitlines()[0]
    return out


def pack(folders: Path | Sequence[Path], target: Path) -> None:
    """The content of `folders`, one over the other, as a .tar.gz at `target`: whole or not at all.

    Level 1: bf16 weights shrink by a fifth at any level, and the higher ones take five times as long.
    """
    folders = [folders] if isinstance(folders, Path) else folders
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with (
            gzip.open(partial, "wb", compresslevel=1) as stream,
            tarfile.open(fileobj=stream, mode="w") as tar,
        ):
            if len(folders) == 1:
                for path in sorted(folders[0].iterdir()):
                    tar.add(path, arcname=path.name)
            else:
                for name, path in sorted(_merged(folders).items()):
                    tar.add(path, arcname=name, recursive=False)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _merged(folders: Sequence[Path]) -> dict[str, Path]:
    """Relative name -> file of the last folder that has it."""
    return {p.relative_to(f).as_posix(): p for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


class TrainingRunner:
    """Runs one job, in two parts: the containers, and the upload of what they left.

    `on_change` is called whenever the job has changed, before anything else happens: the record is never behind.
    """

    def __init__(
        self,
        request: dict[str, Any],
        store: ObjectStore,
        folder: Path,
        log: Path,
        on_change: Callable[[TrainingJob], None],
        environment: JobEnvironment,
    ) -> None:
        self.request, self.store, self.on_change = request, store, on_change
        self.environment, self.executor = environment, executors.named(environment.executor)
        self.job = TrainingJob(request["TrainingJobName"])
        self.hosts = hosts_of(self.job.name, request["ResourceConfig"]["InstanceCount"], folder, log, environment)
        self.handles: dict[str, Handle] = {}
        self.ending = "Completed"

    def run_containers(self, on_tick: Callable[[], None] = lambda: None) -> TrainingJob:
        """Channels, containers, checkpoints. Ends as InProgress where there is something to upload."""
        self._enter("Starting")
        try:
            self._download()
            self._start()
        except (NotFound, ValueError) as error:
            return self.end("Failed", f"ClientError: Data download failed: {error}")
        except (NotStarted, MissingPrerequisite) as error:
            self._remove()
            why = "; ".join(filter(None, (error.problems[0].what, error.problems[0].why)))
            return self.end("Failed", f"AlgorithmError: the container did not start: {why}")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return self.end("Failed", "ClientError: Data download failed: no space left on the disk")
        self.job.handle = self.handles[self.hosts[0].label].to_json()
        self._enter("Training")
        stopped = self._watch(on_tick)
        failed = [h for h in self.hosts if self._codes.get(h.label) not in (0, None)]
        on_tick()
        self._remove()
        self.save_checkpoints()
        if stopped:
            self.ending = stopped
        elif failed:
            reasons = (contract.read_failure(host.paths) for host in failed)
            reason = next(filter(None, reasons), f"AlgorithmError: exit code {self.job.exit_code}")
            return self.end("Failed", reason)
        return self.job

    def _start(self) -> None:
        """Every host's container, those after the first one when `hosts_late` says."""
        self.handles = {}
        for host in self.hosts:
            due = time.monotonic() + (self.environment.hosts_late if len(self.handles) == 1 else 0)
            while time.monotonic() < due and not self.environment.stop_reason():
                time.sleep(0.1)
            self.handles[host.label] = self.executor.start(self._spec(host))

    def _watch(self, on_tick: Callable[[], None]) -> str:
        """Wait for the containers' end; why they were stopped, or the empty string. One that fails ends all."""
        self._codes: dict[str, int | None] = {}
        deadline = time.monotonic() + self.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        while len(self._codes) < len(self.hosts):
            for host in self.hosts:
                if (
                    host.label not in self._codes
                    and (code := self.executor.poll(self.handles[host.label])) is not None
                ):
                    self._codes[host.label] = self.job.exit_code = code
            if self.job.exit_code:  # the others cannot go on without it
                return ""
            if len(self._codes) == len(self.hosts):
                break
            why = "MaxRuntimeExceeded" if time.monotonic() > deadline else self.environment.stop_reason()
            if why:
                self._enter("Stopping")
                self._stop_all()
                return why
            on_tick()
            time.sleep(0.1)
        return ""

    def _stop_all(self) -> None:
        """TERM to every host at once, in threads: the contract's wait is one for all."""
        running = [h for h in self.hosts if h.label not in self._codes]
        with ThreadPoolExecutor(len(running)) as pool:
            codes = pool.map(lambda h: self.executor.stop(self.handles[h.label], contract.TRAIN_STOP_WAIT), running)
        self._codes.update(zip((h.label for h in running), codes, strict=True))
        self.job.exit_code = next((c for c in self._codes.values() if c != 0), 0)

    def _remove(self) -> None:
        for handle in self.handles.values():
            self.executor.remove(handle)
        if self._network:
            self.executor.sweep(self._network)  # made, and no host started

    def sweep(self, executor: Executor) -> None:
        """Whatever `executor` still has of this job, also where a crash has lost the handles."""
        for name in (*(host.container for host in self.hosts), self._network):
            if name:
                executor.sweep(name)

    @property
    def _network(self) -> str:
        """What the hosts of this job have in common, and nobody else has."""
        return f"{self.environment.prefix}{self.job.name}" if len(self.hosts) > 1 else ""

    def kill_largest(self) -> bool:
        """What happens when a host's memory runs out; False where no container runs yet."""
        return any(self.executor.kill_largest(handle) for handle in self.handles.values())

    def upload(self) -> TrainingJob:
        """Store what the containers left in the output path; may be interrupted and called again."""
        self._enter("Uploading")
        try:
            if error := self.environment.upload_error():
                raise error
            if self._store(f"{self.output_root}/model", [h.paths.model for h in self.hosts]):
                self.job.model_artifacts = artifact_uri(self.request)
            self._store(f"{self.output_root}/output", [h.paths.output_data for h in self.hosts])
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return self.end("Failed", "ClientError: Artifact upload failed: no space left on the disk")
        return self.end(self.ending)

    @property
    def paths(self) -> Paths:
        """The first host's, which are all where there is one."""
        return self.hosts[0].paths

    @property
    def output_root(self) -> str:
        return f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.job.name}/output"

    def _store(self, target: str, folders: list[Path]) -> bool:
        """One archive, or plain objects; of files with the same name on several hosts the last host's stays."""
        filled = [folder for folder in folders if folder.is_dir() and any(folder.iterdir())]
        if not filled:
            return False
        if self.request["OutputDataConfig"].get("CompressionType", "GZIP") == "NONE":
            for folder in filled:
                self.store.put_tree(folder, target)
            return True
        uri = f"{target}.tar.gz"
        pack(filled, self.store.path(uri))
        self.store.changed(uri)
        return True

    def save_checkpoints(self, copy: bool = False) -> None:
        """Local to S3; `copy` while the container may still write to the files. All hosts share one prefix."""
        if "CheckpointConfig" not in self.request:
            return
        uri = self.request["CheckpointConfig"]["S3Uri"]
        folders = [host.paths.checkpoints for host in self.hosts if host.paths.checkpoints.is_dir()]
        self.store.mirror(folders, uri, copy)

    def _download(self) -> None:
        self._enter("Downloading")
        channels = self.request.get("InputDataConfig", [])
        names = tuple(host.name for host in self.hosts)
        for host in self.hosts:
            contract.write_training_input(
                host.paths,
                TrainingInput(
                    hyperparameters=self.request.get("HyperParameters", {}),
                    channels=tuple(c["ChannelName"] for c in channels),
                    resources=Resources(
                        host.name,
                        names,
                        instance_type=self.request["ResourceConfig"]["InstanceType"],
                        network_interface="lo" if self.environment.executor == "process" else "eth0",
                    ),
                ),
            )
            for channel in channels:
                uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
                self.store.download(uri, host.paths.channel(channel["ChannelName"]))
            if "CheckpointConfig" in self.request:
                uri = self.request["CheckpointConfig"]["S3Uri"]
                if any(self.store.files(uri)):
                    self.store.download(uri, host.paths.checkpoints, copy=True)

    def _spec(self, host: Host) -> ContainerSpec:
        name, where = self.job.name, self.environment
        algorithm = self.request["AlgorithmSpecification"]
        network = not self.request.get("EnableNetworkIsolation", False)
        return ContainerSpec(
            name=host.container,
            owner=name,
            role=role_of(algorithm["TrainingImage"], self.request.get("Environment", {})),
            command="train",
            base=host.paths.base,
            log=host.log,
            environment={
                "TRAINING_JOB_NAME": name,
                "TRAINING_JOB_ARN": f"arn:aws:sagemaker:{where.region}:{where.account}:training-job/{name}",
                "AWS_REGION": where.region,
                **(where.variables if network else {"AWS_EC2_METADATA_DISABLED": "true"}),
                **self.request.get("Environment", {}),
            },
            network=network,
            image=algorithm["TrainingImage"],
            host=host.name,
            job=self._network,
            entrypoint=tuple(algorithm.get("ContainerEntrypoint", ())),
            arguments=tuple(algorithm.get("ContainerArguments", ())),
        )

    def _enter(self, secondary: str) -> None:
        self.job.secondary_status = secondary
        self.job.transitions.append((secondary, time.time()))
        self.on_change(self.job)

    def end(self, secondary: str, reason: str = "") -> TrainingJob:
        """The last status; MaxRuntimeExceeded and its like end a job as Stopped."""
        self.job.status = secondary if secondary in ("Completed", "Failed") else "Stopped"
        if secondary == "Interrupted":
            self.job.status = "InProgress"
        self.job.failure_reason = reason[: contract.MAX_FAILURE_REASON]
        self.job.handle = None
        self._enter(secondary)
        return self.job
