"""How PID 1 and the DJL handler agree on a stop: requests in progress are answered, later ones are refused.

DJL Serving ends at once on TERM and cuts what is in progress (docs/decisions/003), and it knows no way to ask whether
it is idle. So the handler holds a shared lock while it works, which a crash lets go of, and PID 1 waits until nobody
holds it. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

FOLDER_ENV = "NEURON_HARNESS_DRAIN"  # set by the entrypoint for the server; nowhere else
GRACE = 1.0  # seconds after the signal in which a request still counts as accepted before it: it was on its way
LAST_ANSWERS = 1.5  # seconds before the end of the wait by which every answer ends, with what there is of it
IDLE = 0.5  # seconds without a request before the server counts as idle: DJL still sends the answer it was given


class Drain:
    """PID 1's side. Done when the handler has been idle for a moment, or after `limit` seconds."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self._begun = self._idle_since = 0.0

    def begin(self) -> None:
        """From now on the handler refuses new requests."""
        if not self._begun:
            self._begun = self._idle_since = time.monotonic()
            waiting = self.folder / "stopping.new"
            waiting.write_text(f"{self._begun} {self._begun + self.limit}", encoding="ascii")
            os.replace(waiting, self.folder / "stopping")

    def done(self) -> bool:
        now = time.monotonic()
        if not _free(self.folder / "in-progress"):
            self._idle_since = now
        return now - self._idle_since >= IDLE or now - self._begun >= self.limit


def _free(path: Path) -> bool:
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@dataclass(frozen=True)
class Stop:
    """The container is being stopped. Times are CLOCK_MONOTONIC's, which all processes of a host share."""

    refuse_from: float
    """Requests that come later are refused."""
    answer_by: float
    """What is being answered ends by then."""


def stopping() -> Stop | None:
    """The handler's side: whether the container is being stopped."""
    folder = os.environ.get(FOLDER_ENV)
    try:
        begun, end = map(float, (Path(folder) / "stopping").read_text(encoding="ascii").split()) if folder else (0, 0)
    except FileNotFoundError:
        return None
    return Stop(begun + GRACE, end - LAST_ANSWERS) if folder else None


class InProgress:
    """The handler's side: PID 1 waits while this is held. Holding and letting go twice is once."""

    def __init__(self) -> None:
        folder = os.environ.get(FOLDER_ENV)
        self._path = Path(folder) / "in-progress" if folder else None
        self._handle: IO[str] | None = None

    def hold(self) -> None:
        if self._path is not None and self._handle is None:
            self._handle = self._path.open("a")
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def let_go(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None
