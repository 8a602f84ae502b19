"""What the steps of a run need of a platform. `direct`, `local`, `ec2` and `sagemaker` have this shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from harness.plan import Deployment, Plan
from harness.runfile import RunFile

NAMES = ("local", "ec2", "sagemaker")
ON_THIS_MACHINE = ("direct", "ec2")  # by direct call: containers, logs and endpoints are in the record
OnStatus = Callable[[str, str], None]


class Endpoint(Protocol):
    """An endpoint of a run; `status` is DescribeEndpoint's."""

    @property
    def name(self) -> str: ...

    @property
    def status(self) -> str: ...


class Platform(Protocol):
    """One run on one platform. Every method goes on where an earlier call, or a crash, left off."""

    here: bool
    """Whether containers compute on this machine's processor."""

    def check(self, run: RunFile, plan: Plan) -> None:
        """Everything that can be known before anything costs time or money; all problems at once."""

    def upload(self, run: RunFile, plan: Plan) -> None:
        """Model and data to where the plan's requests say; what is there already is not sent again."""

    def channels(self, run: RunFile) -> dict[str, Path]:
        """The data files by channel."""

    def train(self, plan: Plan, on_status: OnStatus, on_tick: Callable[[], None]) -> str:
        """The training job to its end; the artifact's URI. Raises JobFailed with the FailureReason."""

    def job(self, request: dict[str, Any], known: dict[str, str]) -> tuple[str, Path]:
        """A further training job of this run, to its end: (its artifact's URI or "", a directory of what it left).

        `known` are placeholders besides the images. The directory has model/ and output/data/, as the container had
        them. Raises JobFailed with the FailureReason.
        """

    def trained(self) -> Path:
        """Such a directory of what the run's own, finished training job left."""

    def outputs(self) -> Path:
        """A directory with what the finished job left in /opt/ml/output/data: metrics.jsonl, manifest.json."""

    def settle(self) -> None:
        """Bring the record up to date after a crash."""

    def where(self) -> tuple[str, str]:
        """For who interrupts: where things stand, and how to go on where that is not by the same verb."""

    def artifact_uri(self) -> str:
        """Where the finished artifact is. Raises NotFound where training has not completed."""

    def deploy(
        self,
        deployment: Deployment,
        on_tick: Callable[[], None],
        port: int | None = None,
        ttl: float | None = None,
    ) -> Any:
        """One endpoint, InService, on `port` where that can be chosen; expired after `ttl` seconds."""

    def endpoints(self) -> Iterable[Any]:
        """This run's endpoints that were not deleted."""

    def expires(self, endpoint: Any) -> str:
        """Until when it was wanted, such as "2026-01-01T08:00:00Z"; empty for ever."""

    def address(self, endpoint: Any) -> str:
        """Where the endpoint is, for people."""

    def invoke(self, endpoint: Any, body: dict[str, Any]) -> bytes:
        """InvokeEndpoint."""

    def invoke_stream(self, endpoint: Any, body: dict[str, Any]) -> Iterator[bytes]:
        """InvokeEndpointWithResponseStream."""

    def endpoint_log(self, endpoint: Any) -> str:
        """What its container has printed so far."""

    def delete(self, endpoint: Any) -> None:
        """DeleteEndpoint, DeleteEndpointConfig, DeleteModel."""

    def down(self) -> list[str]:
        """Delete every endpoint of this run and stop what runs; the names of what was there."""

    def forget(self) -> None:
        """Delete the run's objects, of which nothing is wanted any more; where they cost nothing they stay."""
