"""moto in this process: its WSGI application, and its Logs, CloudWatch and IAM by direct call."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.cloudwatch.models import cloudwatch_backends
from moto.core.exceptions import AWSError, JsonRESTError, ServiceException
from moto.iam.models import iam_backends
from moto.logs.models import logs_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

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
        """Values that are no numbers are left out, as CloudWatch refuses them."""
        finite = [row for row in data if math.isfinite(row["Value"])]
        with self._lock:
            cloudwatch_backends[self.account][region].put_metric_data(namespace, finite)


class Roles:
    """IAM roles of one account."""

    def __init__(self, account: str) -> None:
        self._backend = iam_backends[account]["aws"]

    def ensure(self, name: str) -> None:
        """A role that SageMaker may assume."""
        if not any(role.name == name for role in self._backend.get_roles()):
            description = "for jobs and endpoints of the local SageMaker"
            self._backend.create_role(name, json.dumps(TRUST), "/", None, description, [], "3600")

    def exists(self, arn: str) -> bool:
        """Whether `arn` is a role of this account."""
        try:
            self._backend.get_role_by_arn(arn)
        except (AWSError, JsonRESTError, ServiceException):
            return False
        return True
