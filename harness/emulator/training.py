"""A training job: what CreateTrainingJob sets in motion, run here, to its end.

Starting -> Downloading -> Training -> Uploading -> Completed | Failed | Stopped, with the files, signals and
outputs that the contract promises, on one host or several. Platform `local` calls this in-process; the local
SageMaker's service (jobs.py) runs it in a thread.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from containers import contract
from containers.contract import Paths, Resources, TrainingInput
from harness import executors
from harness.emulator.outputs import pack
from harness.emulator.state import ObjectStore
from harness.emulator.trainingjob import HERE, Host, Setting, TrainingJob, artifact_uri, hosts_of
from harness.errors import MissingPrerequisite, NotFound, NotStarted
from harness.executors.spec import ContainerSpec, Executor, Handle, role_of
from harness.interrupts import shielded

OnStatus = Callable[[str, str], None]

__all__ = ["OnStatus", "Setting", "TrainingRunner", "pack"]


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
        on_status: OnStatus,
        on_change: Callable[[TrainingJob], None],
        setting: Setting = HERE,
    ) -> None:
        self.request, self.store = request, store
        self.on_status, self.on_change = on_status, on_change
        self.setting, self.executor = setting, executors.named(setting.executor)
        self.job = TrainingJob(request["TrainingJobName"])
        self.hosts = hosts_of(self.job.name, request["ResourceConfig"]["InstanceCount"], folder, log, setting)
        self.handles: dict[str, Handle] = {}
        self.ending = "Completed"

    def run_container(self, on_tick: Callable[[], None] = lambda: None) -> TrainingJob:
        """Channels, containers, checkpoints. Ends as InProgress where there is something to upload.

        A signal to the harness becomes StopTrainingJob: the container gets TERM and its time to save a checkpoint.
        """
        with shielded():
            self._enter("Starting", "preparing the container")
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
            self._enter("Training", "training image started")
            stopped = self._watch(on_tick)
            failed = [h for h in self.hosts if self._codes.get(h.label) not in (0, None)]
            on_tick()
            self._remove()
            self.save_checkpoints()
            if stopped and (self.job.exit_code != 0 or self.setting.uploads_when_stopped):
                self.ending = stopped
                return self.job if self.setting.uploads_when_stopped else self.end(stopped)
            if failed:
                reasons = (contract.read_failure(host.paths) for host in failed)
                reason = next(filter(None, reasons), f"AlgorithmError: exit code {self.job.exit_code}")
                return self.end("Failed", reason)
        return self.job

    def _start(self) -> None:
        """Every host's container, those after the first one when the setting says."""
        self.handles = {}
        for host in self.hosts:
            due = time.monotonic() + (self.setting.hosts_late if len(self.handles) == 1 else 0)
            while time.monotonic() < due and not self.setting.stop():
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
            why = "MaxRuntimeExceeded" if time.monotonic() > deadline else self.setting.stop()
            if why:
                self._enter("Stopping", "SIGTERM sent, waiting for the checkpoint")
                self._stop_all()
                return why
            on_tick()
            time.sleep(0.1)
        return ""

    def _stop_all(self) -> None:
        """TERM to every host at once, in threads: the contract's wait is one for all."""
        from concurrent.futures import ThreadPoolExecutor

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
        return f"{self.setting.prefix}{self.job.name}" if len(self.hosts) > 1 else ""

    def kill_largest(self) -> bool:
        """What happens when a host's memory runs out; False where no container runs yet."""
        return any(self.executor.kill_largest(handle) for handle in self.handles.values())

    def upload(self) -> TrainingJob:
        """Store what the containers left in the output path; may be interrupted and called again."""
        self._enter("Uploading", "model and output")
        try:
            if error := self.setting.fail_upload():
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
        self._enter("Downloading", "input channels")
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
                        network_interface="lo" if self.setting.executor == "process" else "eth0",
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
        name, where = self.job.name, self.setting
        algorithm = self.request["AlgorithmSpecification"]
        network = not self.request.get("EnableNetworkIsolation", False)
        return ContainerSpec(
            name=host.container,
            role=role_of(algorithm["TrainingImage"], self.request.get("Environment", {})),
            command="train",
            base=host.paths.base,
            log=host.log,
            environment={
                "TRAINING_JOB_NAME": name,
                "TRAINING_JOB_ARN": f"arn:aws:sagemaker:{where.region}:{where.account}:training-job/{name}",
                "AWS_REGION": where.region,
                **(where.environment if network else {"AWS_EC2_METADATA_DISABLED": "true"}),
                **self.request.get("Environment", {}),
            },
            network=network,
            image=algorithm["TrainingImage"],
            host=host.name,
            job=self._network,
            entrypoint=tuple(algorithm.get("ContainerEntrypoint", ())),
            arguments=tuple(algorithm.get("ContainerArguments", ())),
        )

    def _enter(self, secondary: str, message: str) -> None:
        self.job.secondary_status = secondary
        self.job.transitions.append((secondary, time.time()))
        self.on_change(self.job)
        self.on_status(secondary, message)

    def end(self, secondary: str, reason: str = "") -> TrainingJob:
        """The last status; MaxRuntimeExceeded and its like end a job as Stopped."""
        self.job.status = secondary if secondary in ("Completed", "Failed") else "Stopped"
        if secondary == "Interrupted":
            self.job.status = "InProgress"
        self.job.failure_reason = reason[: contract.MAX_FAILURE_REASON]
        self.job.handle = None
        self._enter(secondary, reason.splitlines()[0] if reason else "")
        return self.job
