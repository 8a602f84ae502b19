"""What of one local SageMaker's containers still runs: other checkouts run tests on this machine, too."""

from __future__ import annotations

from pathlib import Path

import psutil

from harness.executors.spec import MARKER
from harness.local.service import prefix_of


def containers(state: Path) -> list[str]:
    """Names of the containers whose processes live, of the server of `state`; one name for each process."""
    found = []
    for process in psutil.process_iter():
        try:
            name = process.environ().get(MARKER, "")
            if name.startswith(prefix_of(state)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(name)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or is another user's
    return found
