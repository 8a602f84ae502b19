"""How PID 1 and the DJL handler agree on a stop: requests in progress are answered, later ones are refused.

DJL Serving ends at once on TERM and cuts what is in progress (docs/decisions/003), and it knows no way to ask whether
it is idle. So the handler holds a shared lock while it works, which a crash lets go of, and PID 1 waits until nobody
holds it. Standard library and Python 3.10 syntax only.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

FOLDER_ENV = "NEURON_HARNESS_DRAIN"  # set by the entrypoint for the server; nowhere else
IDLE = 0.5  # seconds without a request before the server counts as idle: DJL still sends the answer it was given

T = TypeVar("T")


class Drain:
    """PID 1's side. Done when the handler has been idle for a moment, or after `limit` seconds."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self._begun = self._idle_since = 0.0

    def begin(self) -> None:
        """From now on the handler refuses new requests."""
        if not self._begun:
            self._begun = self._idle_since = time.monotonic()
            (self.folder / "stopping").touch()

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


def stopping() -> bool:
    """The handler's side: whether the container is being stopped, so that a new request is to be refused."""
    folder = os.environ.get(FOLDER_ENV)
    return bool(folder) and (Path(str(folder)) / "stopping").exists()


@contextmanager
def in_progress() -> Iterator[None]:
    """The handler's side: a request is being worked on inside this block."""
    folder = os.environ.get(FOLDER_ENV)
    if not folder:
        yield
        return
    with (Path(folder) / "in-progress").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def streamed(pieces: Iterable[T]) -> Iterator[T]:
    """`pieces`, in progress until the last one has been taken or the stream is closed."""
    with in_progress():
        yield from pieces
