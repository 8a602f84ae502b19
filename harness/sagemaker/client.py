"""One run on SageMaker: its plan's requests by boto3, to AWS or to a local SageMaker; the code is the same.

Nothing about a job or endpoint is believed from the record: each step asks SageMaker what there is under the run's
deterministic names and goes on from that, so a command that was killed is repeated and does no work twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import files
from harness.aws.session import Aws
from harness.aws.transfer import Transfer, split
from harness.interrupts import shielded
from harness.record import Record
from harness.sagemaker import preflight, resources
from harness.sagemaker.endpoints import Endpoint, Endpoints
from harness.sagemaker.jobs import Jobs, OnStatus, Say
from harness.sagemaker.logs import TRAINING_GROUP, Streams, endpoint_group
from harness.sagemaker.resources import DELETION, RUNNING_JOB, Made, Resources
from harness.sagemaker.takedown import COPY, Takedown
from harness.spec import plan as plans, stacks
from harness.spec.plan import Deployment, Plan
from harness.spec.profile import Profile
from harness.spec.runfile import RunFile


class RunClient:
    """The SageMaker resources of one run. `images` gives what the placeholders stand for; None: looked up in ECR."""

    def __init__(
        self, record: Record, profile: Profile, say: Say, images: Callable[[], dict[str, str]] | None = None
    ) -> None:
        self.record, self.profile, self.say = record, profile, say
        self.serving = profile.serving
        self.local = bool(profile.endpoint_url)
        """Whether a local SageMaker answers, on this machine, where nothing is billed."""
        self.aws = Aws(profile)
        self.transfer = Transfer(self.aws, record, self._on_bytes)
        # A local SageMaker answers at once; on AWS jobs take minutes and Describe calls are throttled per account.
        self.resources = Resources(self.aws, record, poll=0.2 if self.local else 5.0)
        self.jobs = Jobs(self.resources, self.transfer, profile.region, say)
        self.hosting = Endpoints(self.resources, self.serving.region, profile.endpoint_hours, say)
        self._find_images = images
        self._images: dict[str, str] | None = None
        self._told = 0.0

    # -- before the job

    def images(self, stack: str = stacks.DEFAULT) -> dict[str, str]:
        """The images by digest: looked up once a run, so that training and serving stay with what was checked."""
        if self._images is None and self._find_images is not None:
            self._images = self._find_images()
        if self._images is None:
            self._images = self.record.read_json("images.json") or preflight.images(self.aws, self.profile, stack)
            self.record.write_json("images.json", self._images)
        return self._images

    def upload(self, run: RunFile, plan: Plan, model: Path | None, channels: Mapping[str, Path]) -> None:
        """Model and data to where the plan's requests say; the base model also to where its endpoint will be.

        `model` is the base model's directory, None where the job downloads it; `channels` are the data files by
        channel, of which `test` stays here. What is in S3 already is not sent again.
        """
        sent = 0
        if model is not None:
            for profile in {id(p): p for p in (self.profile, self.serving)}.values():
                if profile is self.profile or plan.base is not None:
                    prefix = plans.model_prefix(run, profile, plan.run_id)
                    sent += self.transfer.upload(model, prefix, profile.region)
        for channel, path in channels.items():
            if channel != "test":
                prefix = f"s3://{self.profile.bucket}/runs/{plan.run_id}/channels/{channel}"
                sent += self.transfer.upload(path, prefix, self.profile.region)
        if sent:
            self.say(f"uploaded {sent / 1e6:.1f} MB to s3://{self.profile.bucket}")

    def _on_bytes(self, label: str, done: int, total: int) -> None:
        if done < total and time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            self.say(f"uploading {label}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    # -- jobs

    def train(self, plan: Plan, on_status: OnStatus, on_tick: Callable[[], None]) -> str:
        """The training job to its end; the artifact's URI. Raises JobFailed with the FailureReason."""
        return self.jobs.train(plans.resolve(plan.create_training_job, self.images()), on_status, on_tick)

    def job(self, request: dict[str, Any], known: dict[str, str]) -> tuple[str, Path]:
        """A further job of this run, to its end: (its artifact's URI or "", a directory of what it left).

        `known` are placeholders besides the images. The directory has model/ and output/data/, as the container had
        them. Raises JobFailed with the FailureReason.
        """
        return self.jobs.other(plans.resolve(request, {**self.images(), **known}), lambda: None)

    def trained(self) -> Path:
        """Such a directory of what the run's own training job left, downloaded."""
        return self.jobs.left(self.jobs.artifact_uri(), self.record.path / "trained")

    def outputs(self) -> Path:
        """A directory with what the finished job left in /opt/ml/output/data: metrics.jsonl, manifest.json."""
        return self.jobs.outputs()

    def running_job(self) -> dict[str, Any] | None:
        """What the record says of a job that runs: its name and region; None where none is known to."""
        job: dict[str, Any] = self.record.read_json("job.json") or {}
        return job if job.get("status") in RUNNING_JOB else None

    def stop_jobs(self) -> list[str]:
        """Stop what runs, with time for a checkpoint, which is uploaded; the names of the jobs."""
        made = [item for item in self.resources.made() if item.kind == "training-job"]
        stopped = [m.name for m in made if self.resources.stop_job(m.name, m.region, self.say)]
        self.jobs.note_end()
        return stopped

    def checkpoint_step(self) -> int | None:
        """The step of the newest checkpoint in S3; None where there is none."""
        bucket, prefix = self.profile.bucket, f"runs/{self.record.id}/checkpoints/checkpoint-"
        found = self.aws.pages("s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix)
        steps = {str(item["Key"]).removeprefix(prefix).partition("/")[0] for item in found}
        return max((int(step) for step in steps if step.isdigit()), default=None)

    def artifact_uri(self) -> str:
        """Where the finished artifact is: in the serving region's bucket, copied there if that is another.

        The copy is what endpoints there load, also when SageMaker replaces an instance: it goes with `down`.
        Raises NotFound where training has not completed.
        """
        uri = self.jobs.artifact_uri()
        if self.serving is self.profile:
            return uri
        target, region = f"s3://{self.serving.bucket}/{split(uri)[1]}", self.serving.region
        if Made(COPY, target, region) not in self.resources.made():
            self.record.note("create", kind=COPY, name=target, region=region)
        if self.transfer.copy(uri, target, self.profile.region, region):
            self.say(f"copied the artifact to {region}")
        return target

    # -- endpoints

    def deploy(
        self, deployment: Deployment, on_tick: Callable[[], None] = lambda: None, ttl: float | None = None
    ) -> Endpoint:
        """Model, configuration, endpoint, then wait until InService; one that is, is kept.

        `ttl`: seconds after which its schedule deletes it, instead of the profile's hours.
        """

        def known() -> dict[str, str]:
            needs = "placeholder" in str(deployment.create_model["PrimaryContainer"]["ModelDataSource"])
            return {**self.images(), **({"artifact_uri": self.artifact_uri()} if needs else {})}

        return self.hosting.deploy(deployment, known, on_tick, ttl)

    def endpoints(self) -> Iterator[Endpoint]:
        """This run's endpoints: in its ledger and there."""
        return self.hosting.all()

    def expires(self, endpoint: Endpoint) -> str:
        """Until when it is wanted, such as "2026-01-01T08:00:00Z": its expiry tag; empty where it has none."""
        return resources.expiry_of(self.aws, endpoint.name, endpoint.region)

    def address(self, endpoint: Endpoint) -> str:
        """Its region, or the local SageMaker's address."""
        return self.profile.endpoint_url or endpoint.region

    def invoke(self, endpoint: Endpoint, body: dict[str, Any]) -> bytes:
        """InvokeEndpoint. Raises EndpointFailed for what the container answered."""
        return self.hosting.invoke(endpoint, body)

    def invoke_stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Iterator[bytes]:
        """InvokeEndpointWithResponseStream: the parts' bytes."""
        return self.hosting.invoke_stream(endpoint, body)

    def endpoint_log(self, name: str) -> list[str]:
        """What an endpoint's container has printed so far."""
        return self.hosting.log(name)

    def log_streams(self, endpoint: str = "") -> Streams:
        """The training job's log, or that of the endpoint `base` or `tuned`."""
        if endpoint:
            return Streams(self.aws, endpoint_group(f"{self.record.id}-{endpoint}"), "", self.serving.region)
        job = self.record.read_json("job.json") or {"name": self.record.id}
        return Streams(self.aws, TRAINING_GROUP, f"{job['name']}/", self.profile.region)

    def delete(self, endpoint: Endpoint) -> None:
        """DeleteEndpoint, DeleteEndpointConfig, DeleteModel, in this order."""
        with shielded():
            self.keep_log(endpoint.name)
            self.hosting.remove(endpoint.name, endpoint.region)

    def keep_log(self, name: str) -> None:
        """Keep an endpoint's log in the record: CloudWatch Logs of a local SageMaker end with it, AWS's stay."""
        if self.local and (lines := self.hosting.log(name)):
            files.write_text(self.record.endpoint_log(name), "\n".join(lines) + "\n")

    # -- the end

    def settle(self) -> None:
        """Delete configurations and models whose endpoint is not there: a killed command was making or deleting it.

        What runs, runs on without us; every step asks SageMaker what there is.
        """
        kept = {endpoint.name for endpoint in self.endpoints()}
        for name, region in {(m.name, m.region) for m in self.resources.made() if m.kind in DELETION}:
            if name not in kept:
                self.hosting.remove(name, region)
        self.hosting.expiry.cancel_all(but=kept)

    def down(self) -> list[str]:
        """Stop jobs, delete endpoints and all that belongs to them; the names of what was there (takedown.py)."""
        return Takedown(self.resources, self.jobs, self.transfer, self.keep_log, self.say).carry_out()

    def forget(self) -> None:
        """Delete what is under the run's prefix of the bucket: data, checkpoints, artifacts, outputs."""
        deleted = self.transfer.delete(f"s3://{self.profile.bucket}/runs/{self.record.id}/", self.profile.region)
        self.say(f"deleted {deleted} objects of s3://{self.profile.bucket}/runs/{self.record.id}/")
