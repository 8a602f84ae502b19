"""What stands behind an endpoint of the local SageMaker: the container that answers for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from harness.emulator import hosting
from harness.emulator.hosting import Endpoint
from harness.emulator.logs import LogFollower
from harness.emulator.service import Service


@dataclass
class Deployed:
    """A container that serves: `made_of` is what it can be started from again, whatever was deleted meanwhile."""

    endpoint: Endpoint
    folder: Path
    stream: str
    follower: LogFollower
    made_of: dict[str, Any]

    def __post_init__(self) -> None:
        self.pool = urllib3.HTTPConnectionPool("127.0.0.1", self.endpoint.port, maxsize=16)


def remove_endpoint(service: Service, region: str, name: str) -> None:
    """Nothing of it is left but what it wrote to CloudWatch Logs."""
    hosting.delete_tree(service.folder / "endpoints" / region / name)
    shutil.rmtree(service.folder / "logs" / region / "endpoints" / name, ignore_errors=True)
    service.endpoints.delete(region, name)
