"""Logs of jobs and endpoints out of CloudWatch, as they come, each line once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.aws.errors import is_missing
from harness.aws.session import Aws
from harness.errors import HarnessError
from harness.record import Record

TRAINING_GROUP = "/aws/sagemaker/TrainingJobs"
STATE = "follow.json"


def endpoint_group(name: str) -> str:
    """An endpoint's log group."""
    return f"/aws/sagemaker/Endpoints/{name}"


class Streams:
    """The streams of a log group whose names begin with `prefix`: a job's are `<job>/algo-N-<epoch>`."""

    def __init__(self, aws: Aws, group: str, prefix: str, region: str, tokens: dict[str, str] | None = None) -> None:
        self.aws, self.group, self.prefix, self.region = aws, group, prefix, region
        self.tokens = tokens or {}

    def new(self) -> list[str]:
        """The lines that have come since the last call; none where there is no such group yet."""
        lines: list[str] = []
        more = {"logStreamNamePrefix": self.prefix} if self.prefix else {}
        try:
            for stream in self.aws.pages(
                "logs", "describe_log_streams", "logStreams", self.region, logGroupName=self.group, **more
            ):
                while events := self._events(stream["logStreamName"]):
                    lines += [event["message"].rstrip() for event in events]
        except HarnessError as error:
            if not is_missing(error):
                raise
        return lines

    def _events(self, stream: str) -> list[dict[str, Any]]:
        more = {"nextToken": self.tokens[stream]} if stream in self.tokens else {}
        answer = self.aws.call(
            "logs",
            "get_log_events",
            self.region,
            logGroupName=self.group,
            logStreamName=stream,
            startFromHead=True,
            **more,
        )
        self.tokens[stream] = answer["nextForwardToken"]
        return list(answer["events"])


class LogFollower:
    """Appends what is new of a training job's log to a file of the record: logs/train.log unless told otherwise.

    The position in every stream is kept with the log's size: after a crash between the two writes the log is cut
    back to where its positions are, so that no line is there twice.
    """

    def __init__(
        self, aws: Aws, record: Record, job: str, region: str, log: Path | None = None, state: str = STATE
    ) -> None:
        self.record, self.job, self.log, self._file = record, job, log or record.log, state
        before = record.read_json(self._file) or {}
        tokens = before.get("tokens", {}) if before.get("job") == job else {}
        self.streams = Streams(aws, TRAINING_GROUP, f"{job}/", region, tokens)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        if self.log.stat().st_size > before.get("size", 0):
            os.truncate(self.log, before.get("size", 0))
        self._save()

    def pump(self) -> int:
        """Everything that has come since; how many lines."""
        lines = self.streams.new()
        if lines:
            with self.log.open("a", encoding="utf-8") as log:
                log.writelines(f"{line}\n" for line in lines)
                log.flush()
                os.fsync(log.fileno())
            self._save()
        return len(lines)

    def _save(self) -> None:
        size = self.log.stat().st_size
        self.record.write_json(self._file, {"job": self.job, "tokens": self.streams.tokens, "size": size})
