"""What a training job is made of: its state, its hosts, where and as whom it runs. training.py runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containers.contract import Paths
from harness import interrupts


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
class Setting:
    """Where and as whom a job runs; the defaults are platform local's."""

    executor: str = "process"
    account: str = "000000000000"
    region: str = "us-west-2"
    prefix: str = ""
    """Put before container names, so that two servers on one machine never sweep each other's."""
    stop: Callable[[], str] = lambda: "Stopped" if interrupts.requested() else ""
    """Asked ten times a second: why the job is to end now (Stopped, Interrupted, MaxWaitTimeExceeded), or nothing."""
    uploads_when_stopped: bool = False
    """As the service does; platform local keeps what it needs to go on in its record instead."""
    fail_upload: Callable[[], OSError | None] = lambda: None
    """For faults on demand."""
    hosts_late: float = 0.0
    """Seconds until the hosts after the first one start, and their names resolve; for faults on demand."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where AWS is and as whom to ask it, for containers that are not isolated."""


HERE = Setting()  # platform local's


@dataclass(frozen=True)
class Host:
    """One host of the job: `label` is algo-N, `name` what the others reach it by."""

    label: str
    name: str
    paths: Paths
    log: Path
    container: str


def hosts_of(job: str, count: int, folder: Path, log: Path, setting: Setting) -> list[Host]:
    """The hosts of a job, sorted by letters as SageMaker does (algo-10 before algo-2).

    Processes share this machine's network: each host is a loopback address of its own, because algo-N resolves
    nowhere. In containers the names are SageMaker's.
    """
    if count == 1:
        name = "127.0.0.1" if setting.executor == "process" else "algo-1"
        return [Host("algo-1", name, Paths(folder), log, f"{setting.prefix}{job}")]
    out = []
    for label in sorted(f"algo-{n}" for n in range(1, count + 1)):
        name = f"127.0.0.{int(label[5:]) + 1}" if setting.executor == "process" else label
        path = log.with_name(f"{log.stem}-{label}{log.suffix}")
        out.append(Host(label, name, Paths(folder / label), path, f"{setting.prefix}{job}-{label}"))
    return out


def artifact_uri(request: dict[str, Any]) -> str:
    """ModelArtifacts.S3ModelArtifacts: the archive, or the prefix of uncompressed output."""
    config = request["OutputDataConfig"]
    root = f"{config['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output"
    return f"{root}/model" if config.get("CompressionType", "GZIP") == "NONE" else f"{root}/model.tar.gz"
