"""The plan's requests carried out by direct call in this process, on either executor: what runs without a flag."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from containers import contract
from containers.artifact import MANIFEST
from harness import executors, images, plan as plans
from harness.assets import djl
from harness.emulator import hosting, invocations
from harness.emulator.hosting import Endpoint, Placement
from harness.emulator.state import ObjectStore
from harness.emulator.training import OnStatus, Setting, TrainingRunner
from harness.errors import HarnessError, JobFailed, MissingPrerequisite, NotFound
from harness.executors.spec import Handle
from harness.interrupts import shielded
from harness.paths import CACHE, runs_dir
from harness.plan import Deployment, Plan
from harness.platforms import sources
from harness.profile import LOCAL
from harness.record import Record
from harness.runfile import RunFile

Say = Callable[[str], None]
# No images are built for executor `process`; these names stand where a digest stands on AWS.
PROCESS_IMAGES = {
    "train_image": f"{LOCAL.image('neuron-train')}:process",
    "serve_image": f"{LOCAL.image('neuron-serve')}:process",
}
EXECUTOR_FILE = "executor.json"
NEVER = "9999-12-31T00:00:00Z"  # an endpoint here costs nothing, so none expires


class Direct:
    """The local SageMaker's functions over one record."""

    here = True

    def __init__(self, record: Record, say: Say, executor: str = "") -> None:
        self.record, self.say = record, say
        self.profile = LOCAL
        self.store = ObjectStore(runs_dir() / "s3")
        self._asked_for = executor

    def check(self, run: RunFile, plan: Plan) -> None:
        """The executor can run both roles; which one it is, and its images, are recorded from now on.

        Raises MissingPrerequisite before anything takes time.
        """
        del run
        recorded = self.record.read_json(EXECUTOR_FILE) or {}
        name = self._asked_for or recorded.get("executor", executors.NAMES[0])
        for role in ("train", "serve"):
            executors.named(name).check_environment(role)
        if name != recorded.get("executor"):
            found = images.on_this_machine(plan.stack) if name == "docker" else PROCESS_IMAGES
            self.record.write_json(EXECUTOR_FILE, {"executor": name, **found})

    def _executor(self) -> tuple[str, dict[str, str]]:
        """The run's executor and its images."""
        found = self.record.read_json(EXECUTOR_FILE) or {"executor": executors.NAMES[0], **PROCESS_IMAGES}
        return found["executor"], {key: value for key, value in found.items() if key != "executor"}

    def upload(self, run: RunFile, plan: Plan) -> None:
        """Assets and data where the plan's channels and model data point to."""
        folder = sources.model_folder(run, self.say)
        if folder is not None:
            self.store.put_tree(folder, plans.model_prefix(run, self.profile, plan.run_id))
        for channel, path in self.channels(run).items():
            if channel != "test":
                prefix = f"s3://{self.profile.bucket}/runs/{plan.run_id}/channels/{channel}"
                if path.is_dir():
                    self.store.put_tree(path, prefix)
                else:
                    self.store.put_file(path, f"{prefix}/{path.name}")
        model = self.store.files(plans.model_prefix(run, self.profile, plan.run_id))
        if found := sources.disk_problems(self.record, sum(path.stat().st_size for _, path in model)):
            raise MissingPrerequisite.of(found)

    def channels(self, run: RunFile) -> dict[str, Path]:
        """The data files by channel; `test` stays with the harness."""
        return sources.channels(run, self.record, self.say)

    def trained(self) -> Path:
        """The training job's directory."""
        return self.record.path / "job"

    def outputs(self) -> Path:
        """What the job left in /opt/ml/output/data."""
        return self.record.path / "job" / "output" / "data"

    def train(self, plan: Plan, on_status: OnStatus, on_tick: Callable[[], None]) -> str:
        """CreateTrainingJob to its end, or on from where it was interrupted; the artifact's URI.

        Raises JobFailed with the FailureReason.
        """
        executor, known = self._executor()
        request = plans.resolve(plan.create_training_job, known)
        folder = self.record.path / "job"
        before = self.record.read_json("job.json") or {}
        setting = Setting(executor=executor)
        runner = TrainingRunner(
            request, self.store, folder, self.record.log, on_status, lambda job: self._save_job(vars(job)), setting
        )
        if before.get("status") == "Completed":
            with suppress(NotFound):  # deleted since: it is trained again
                self.store.fetch(before["model_artifacts"])
                return str(before["model_artifacts"])
        if (folder / "model" / MANIFEST).is_file():
            self.say("the model is trained; packing it")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            self._send("CreateTrainingJob", plan.run_id, request)
            runner.run_container(on_tick)
        job = runner.upload() if runner.job.status == "InProgress" else runner.job
        self.record.note("ended", kind="training-job", name=job.name, status=job.status)
        if job.status != "Completed":
            raise JobFailed(
                f"training job {job.name} ended as {job.status}", job.failure_reason, f"see {self.record.log}"
            )
        return job.model_artifacts

    def _save_job(self, job: dict[str, Any], file: str = "job.json") -> None:
        self.record.write_json(file, job)

    def job(self, request: dict[str, Any], known: dict[str, str]) -> tuple[str, Path]:
        """Another training job of this run, to its end. Raises JobFailed with the FailureReason."""
        executor, images_here = self._executor()
        request = plans.resolve(request, {**images_here, **known})
        name = str(request["TrainingJobName"])
        folder, log = self.record.path / "jobs" / name, self.record.path / "logs" / f"{name}.log"
        self._send("CreateTrainingJob", name, request)
        runner = TrainingRunner(
            request,
            self.store,
            folder,
            log,
            lambda *_: None,
            lambda job: self._save_job(vars(job), f"jobs/{name}.json"),
            Setting(executor=executor),
        )
        job = runner.run_container()
        job = runner.upload() if job.status == "InProgress" else job
        self.record.note("ended", kind="training-job", name=name, status=job.status)
        if job.status != "Completed":
            raise JobFailed(f"training job {name} ended as {job.status}", job.failure_reason, f"see {log}")
        return job.model_artifacts, folder

    def settle(self) -> None:
        """Bring the record up to date after a crash of the harness: nothing runs that it does not say runs.

        A training container without its harness is stopped, with its time for a checkpoint; an endpoint that did not
        get as far as InService is deleted, and so is one whose container has ended.
        """
        job = self.record.read_json("job.json") or {}
        if job.get("status") == "InProgress":
            self._settle_job(job)
        for folder in (self.record.path, self.store.path(f"s3://{self.profile.bucket}/runs/{self.record.id}")):
            for path in list(folder.rglob(".*.partial")):
                hosting.delete_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for endpoint in list(self.endpoints()):
            if endpoint.status != "InService" or not executors.of(endpoint.handle).alive(endpoint.handle):
                self.say(f"endpoint {endpoint.name} was left unfinished or has ended; deleting it")
                self.delete(endpoint)
        for line in self.record.ledger():
            # Started, but killed before the record had its handle.
            known = {e.name for e in self.endpoints()}
            if line["event"] == "create" and line["operation"] != "CreateModel" and line["name"] not in known:
                self._sweep(line["operation"], line["name"])

    def _sweep(self, operation: str, name: str) -> None:
        """Remove the containers of an endpoint or a job; a job of several hosts has several, and a network."""
        executor = executors.named(self._executor()[0])
        request = self.record.read_json(f"requests/{operation}-{name}.json")
        if operation != "CreateTrainingJob" or request is None:
            executor.sweep(name)
            return
        job, log = self.record.path / "job", self.record.log
        TrainingRunner(request, self.store, job, log, lambda *_: None, lambda _: None).sweep(executor)

    def _settle_job(self, job: dict[str, Any]) -> None:
        if job.get("handle"):
            handle = Handle(**job["handle"])
            if executors.of(handle).alive(handle):
                self.say("training was left running; stopping it, with time for its checkpoint")
                executors.of(handle).stop(handle, contract.TRAIN_STOP_WAIT)
        self._sweep("CreateTrainingJob", job["name"])
        checkpoints = self.record.path / "job" / "checkpoints"
        if checkpoints.is_dir():
            self.store.mirror(checkpoints, f"s3://{self.profile.bucket}/runs/{self.record.id}/checkpoints")
        self._save_job({**job, "status": "Stopped", "secondary_status": "Interrupted", "handle": None})

    def where(self) -> tuple[str, str]:
        """Where things stand, in a few words; the usual way goes on."""
        return f"interrupted; {self._where()}", ""

    def _where(self) -> str:
        status = (self.record.read_json("job.json") or {}).get("status")
        if status == "Completed":
            return "the model is trained"
        if (self.record.path / "job" / "model" / MANIFEST).is_file():
            return "the model is trained and not packed yet"
        steps = [int(p.name.split("-")[1]) for p in (self.record.path / "job" / "checkpoints").glob("checkpoint-*")]
        return f"training stands at step {max(steps)}, saved" if steps else "training has no checkpoint yet"

    def artifact_uri(self) -> str:
        """Where the finished artifact is. Raises NotFound where training has not completed."""
        job = self.record.read_json("job.json") or {}
        if job.get("status") != "Completed":
            raise NotFound(f"run {self.record.id} has no artifact", f"training: {job.get('status', 'not started')}")
        return str(job["model_artifacts"])

    def deploy(
        self,
        deployment: Deployment,
        on_tick: Callable[[], None],
        port: int | None = None,
        ttl: float | None = None,
    ) -> Endpoint:
        """CreateModel, CreateEndpointConfig, CreateEndpoint, then wait until InService; one that is, is kept."""
        for running in self.endpoints():
            if running.name == deployment.endpoint_name and running.status == "InService":
                return running
        executor, known = self._executor()
        known["expires"] = NEVER
        if "placeholder" in str(deployment.create_model["PrimaryContainer"]["ModelDataSource"]):
            known["artifact_uri"] = self.artifact_uri()
        name = deployment.endpoint_name
        model = plans.resolve(deployment.create_model, known)
        launchers = (djl.ensure(CACHE, self.say),) if executor == "process" else ()
        self._send("CreateModel", name, model)
        self._send("CreateEndpointConfig", name, deployment.create_endpoint_config)
        self._send("CreateEndpoint", name, plans.resolve(deployment.create_endpoint, known))
        folder = self.record.path / "endpoints" / name
        hosting.delete_tree(folder)
        log = self.record.path / "logs" / f"{name}.log"
        window = deployment.create_endpoint_config["ProductionVariants"][0][
            "ContainerStartupHealthCheckTimeoutInSeconds"
        ]
        endpoint: Endpoint | None = None
        try:
            with shielded():
                endpoint = hosting.create(name, model, self.store, folder, log, Placement(launchers, port, executor))
                self._save_endpoint(endpoint)
            hosting.wait_in_service(endpoint, window, on_tick)
            self._save_endpoint(endpoint)
        except HarnessError:  # an interruption is one of them
            if endpoint is not None:
                self.delete(endpoint)
            else:
                executors.named(executor).sweep(name)
                hosting.delete_tree(folder)
            raise
        return endpoint

    def _save_endpoint(self, endpoint: Endpoint) -> None:
        self.record.write_json(f"endpoints/{endpoint.name}.json", endpoint.to_json())

    def endpoints(self) -> Iterator[Endpoint]:
        """This run's endpoints that were not deleted."""
        for path in sorted((self.record.path / "endpoints").glob("*.json")):
            endpoint = hosting.endpoint_from_json(self.record.read_json(f"endpoints/{path.name}"))
            if endpoint.status != "Deleted":
                yield endpoint

    def expires(self, endpoint: Endpoint) -> str:
        """Never: it costs nothing."""
        return ""

    def address(self, endpoint: Endpoint) -> str:
        """Where it listens."""
        return f"127.0.0.1:{endpoint.port}"

    def invoke(self, endpoint: Endpoint, body: dict[str, Any]) -> bytes:
        """InvokeEndpoint."""
        return invocations.invoke(endpoint, body)

    def invoke_stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Iterator[bytes]:
        """InvokeEndpointWithResponseStream."""
        return invocations.invoke_stream(endpoint, body)

    def endpoint_log(self, endpoint: Endpoint) -> str:
        """Its log."""
        return Path(endpoint.handle.log).read_text(encoding="utf-8", errors="replace")

    def forget(self) -> None:
        """Nothing: disk space on this machine."""

    def delete(self, endpoint: Endpoint) -> None:
        """DeleteEndpoint, DeleteEndpointConfig, DeleteModel: no process, port or model copy is left."""
        with shielded():
            hosting.delete(endpoint)
            hosting.delete_tree(self.record.path / "endpoints" / endpoint.name)
            self._save_endpoint(endpoint)
            self.record.note("deleted", kind="endpoint", name=endpoint.name)

    def down(self) -> list[str]:
        """Delete every endpoint of this run and stop what was left running; returns the endpoints' names."""
        self.settle()
        names = []
        for endpoint in self.endpoints():
            self.delete(endpoint)
            names.append(endpoint.name)
        return names

    def _send(self, operation: str, name: str, request: dict[str, Any]) -> None:
        """Intent before the act: the resolved request and a ledger line, then the call."""
        self.record.write_json(f"requests/{operation}-{name}.json", request)
        self.record.note("create", operation=operation, name=name)
