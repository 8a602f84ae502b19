"""What containers write, brought to CloudWatch Logs and CloudWatch while they run."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

TRAINING_GROUP = "/aws/sagemaker/TrainingJobs"
TRAINING_NAMESPACE = "/aws/sagemaker/TrainingJobs"
ENDPOINT_NAMESPACE = "AWS/SageMaker"
MAX_EVENT = 256 * 1024 - 26  # bytes of one log event, CloudWatch Logs' own limit


class Telemetry(Protocol):
    """Where log events and metric data go: moto (objects of motoside.py)."""

    def log(self, region: str, group: str, stream: str, events: list[dict[str, Any]]) -> None:
        """`events` are {"timestamp": milliseconds, "message": text}."""

    def metrics(self, region: str, namespace: str, data: list[dict[str, Any]]) -> None:
        """MetricDatum entries with Timestamp as datetime."""


class LogFollower:
    """Reads what was added to a file since the last call, as whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def lines(self, last: bool = False) -> list[str]:
        """New lines; with `last` also one without its end."""
        try:
            with self.path.open("rb") as handle:
                handle.seek(self._position)
                data = handle.read(4 << 20)  # a chatty container is caught up with in the next calls
        except FileNotFoundError:
            return []
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if last and self._rest:
            whole, self._rest = [*whole, self._rest], b""
        return [line[:MAX_EVENT].decode(errors="replace").rstrip("\r") for line in whole]


def events(lines: list[str]) -> list[dict[str, Any]]:
    """Log events of now. CloudWatch refuses empty messages."""
    at = int(time.time() * 1000)
    return [{"timestamp": at, "message": line} for line in lines if line]


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


class NoTelemetry:
    """For tests of what lies below it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def log(self, region: str, group: str, stream: str, events: list[dict[str, Any]]) -> None:
        """Nothing."""

    def metrics(self, region: str, namespace: str, data: list[dict[str, Any]]) -> None:
        """Nothing."""
