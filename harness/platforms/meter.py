"""Seconds by phase, and the peak of the memory of this process and everything below it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from harness.executors import docker


class Meter:
    """Use as a context manager around a whole run; `phase()` around its parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_rss_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Meter:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.seconds["total"] = time.monotonic() - self._started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to `name`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def _sample(self) -> None:
        # Twice a second: memory peaks of training last for many steps.
        while not self._done.wait(0.5):
            self.peak_rss_mb = max(self.peak_rss_mb, tree_rss_mb())


def tree_rss_mb() -> float:
    """Resident memory of this process, its descendants and containers; pages that they share count once for each."""
    total = 0
    for pid in (None, *docker.pids()):  # containers are the engine's descendants, not ours
        try:
            top = psutil.Process(pid)
            family = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total / 1e6
