"""moto in this process: its WSGI application, and, called directly, its Logs, CloudWatch and IAM.

What containers write is brought to CloudWatch Logs and CloudWatch while they run.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from moto.cloudwatch.models import cloudwatch_backends
from moto.core.exceptions import AWSError, JsonRESTError, ServiceException
from moto.iam.models import iam_backends
from moto.logs.models import logs_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sts.models import sts_backends

TRAINING_GROUP = "/aws/sagemaker/TrainingJobs"
TRAINING_NAMESPACE = "/aws/sagemaker/TrainingJobs"
ENDPOINT_NAMESPACE = "AWS/SageMaker"
MAX_EVENT = 256 * 1024 - 26  # bytes of one log event, CloudWatch Logs' own limit


class Telemetry(Protocol):
    """Where log events and metric data go: moto (moto_backends.py)."""

    def log(self, region: str, group: str, stream: str, events: list[dict[str, Any]]) -> None:
        """`events` are {"timestamp": milliseconds, "message": text}."""

    def metrics(self, region: str, namespace: str, data: list[dict[str, Any]]) -> None:
        """MetricDatum entries with Timestamp as datetime."""


def events(lines: list[str]) -> list[dict[str, Any]]:
    """Log events of now. CloudWatch refuses empty messages."""
    at = int(time.time() * 1000)
    return [{"timestamp": at, "message": line.encode()[:MAX_EVENT].decode(errors="ignore")} for line in lines if line]


@dataclass
class Metrics:
    """MetricDefinitions held against log lines: the first group of a match is the value."""

    patterns: list[tuple[str, re.Pattern[str]]]
    final: dict[str, tuple[float, float]] = field(default_factory=dict)
    """name -> (value, time) of the last match."""
    step: int = -1
    """The trainer's last step, for faults that are due after one."""

    @classmethod
    def of(cls, request: dict[str, Any]) -> Metrics:
        definitions = request["AlgorithmSpecification"].get("MetricDefinitions", [])
        return cls([(d["Name"], re.compile(d["Regex"])) for d in definitions])

    def read(self, lines: list[str]) -> list[tuple[str, float]]:
        """(name, value) of every match in `lines`, in order."""
        found = []
        for line in lines:
            if match := re.search(r"\bstep=(\d+)", line):
                self.step = int(match[1])
            for name, pattern in self.patterns:
                match = pattern.search(line)
                if not match or not match.groups():
                    continue
                try:
                    value = float(match[1])
                except (TypeError, ValueError):
                    continue
                self.final[name] = (value, round(time.time(), 3))
                found.append((name, value))
        return found


Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}


def application() -> Wsgi:
    """What moto_server would serve."""
    app: Wsgi = DomainDispatcherApplication(create_backend_app)
    return app


class MotoTelemetry:
    """Telemetry into moto's CloudWatch and CloudWatch Logs of one account."""

    def __init__(self, account: str) -> None:
        self.account = account
        self._lock = threading.Lock()  # moto's backends have none

    def log(self, region: str, group: str, stream: str, events: list[dict[str, Any]]) -> None:
        """Group and stream are made when they are first written to; with no events that is all."""
        backend = logs_backends[self.account][region]
        with self._lock:
            if group not in backend.groups:
                backend.create_log_group(group, {})
            backend.ensure_log_stream(group, stream)
            if events:
                backend.put_log_events(group, stream, events)

    def metrics(self, region: str, namespace: str, data: list[dict[str, Any]]) -> None:
        """Values that are not numbers are left out, as CloudWatch refuses them."""
        finite = [row for row in data if math.isfinite(row["Value"])]
        with self._lock:
            cloudwatch_backends[self.account][region].put_metric_data(namespace, finite)


NO_STREAM = ":"  # no stream has this name, so that moto finds nothing where no stream has the prefix


def with_stream_names(account: str, region: str, request: dict[str, Any]) -> dict[str, Any]:
    """FilterLogEvents by logStreamNamePrefix as one by logStreamNames, which is what moto looks at."""
    prefix = request.pop("logStreamNamePrefix", None)
    if prefix is not None and not request.get("logStreamNames"):
        group = logs_backends[account][region].groups.get(request.get("logGroupName", ""))
        names = [name for name in (group.streams if group else ()) if name.startswith(prefix)]
        request["logStreamNames"] = names or [NO_STREAM]
    return request


class Roles:
    """IAM roles of one account."""

    def __init__(self, account: str) -> None:
        self._backend = iam_backends[account]["aws"]

    def ensure(self, name: str, trust: dict[str, Any] = TRUST) -> None:
        """A role that SageMaker may assume, or whom `trust` says."""
        if not any(role.name == name for role in self._backend.get_roles()):
            description = "for jobs and endpoints of the local SageMaker"
            self._backend.create_role(name, json.dumps(trust), "/", None, description, [], "3600")

    def exists(self, arn: str) -> bool:
        """Whether `arn` is a role of this account."""
        try:
            self._backend.get_role_by_arn(arn)
        except (AWSError, JsonRESTError, ServiceException):
            return False
        return True


def assumed_secret(account: str) -> Callable[[str], str | None]:
    """The secret of a key that STS AssumeRole has given out, by its id; None for any other."""

    def secret_of(access_key_id: str) -> str | None:
        role = sts_backends[account]["aws"].get_assumed_role_from_access_key(access_key_id)
        return None if role is None else str(role.secret_access_key)

    return secret_of
