"""What a run took and what came of it: seconds by phase, peak memory, and report.html, one self-contained page."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from harness.run.evaluate import shown_of, unit_of


class Meter:
    """Use as a context manager around a whole run; `phase()` around its parts.

    `processes` are the ids of further processes whose memory counts with everything below them; asked twice a second.
    """

    def __init__(self, processes: Callable[[], Iterable[int]] = tuple) -> None:
        self.processes = processes
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
            self.peak_rss_mb = max(self.peak_rss_mb, tree_rss_mb((os.getpid(), *self.processes())))


def tree_rss_mb(roots: Iterable[int]) -> float:
    """Resident memory of these processes and their descendants; pages that they share count once for each."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            found |= {process.pid: process for process in (top, *top.children(recursive=True))}
    total = 0
    for process in found.values():
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


WIDTH, HEIGHT, PAD = 640, 220, 44


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; none where there is no such file."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.strip()]


def html(result: dict[str, Any], metrics: list[dict[str, float]]) -> str:
    """The page. Every text is escaped by the template engine."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(loader=PackageLoader("harness", ""), autoescape=True, undefined=StrictUndefined)
    points = [(row["step"], row["loss"]) for row in metrics if "loss" in row]
    measure = result["score"]["measure"]
    return env.get_template("report.html.j2").render(
        result=result,
        curve=curve(points),
        evaluation=[r for r in metrics if "eval_loss" in r],
        shown=shown_of(measure),
        unit=unit_of(measure),
    )


def curve(points: list[tuple[float, float]]) -> dict[str, Any]:
    """The loss curve as SVG coordinates: a polyline, and ticks as (position, label)."""
    if len(points) < 2:
        return {"line": "", "x": [], "y": []}
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    top = max(ys) * 1.05 or 1.0
    right = max(xs)

    def x(value: float) -> float:
        return round(PAD + (WIDTH - 2 * PAD) * value / right, 1)

    def y(value: float) -> float:
        return round(HEIGHT - PAD + (2 * PAD - HEIGHT) * value / top, 1)

    return {
        "line": " ".join(f"{x(a)},{y(b)}" for a, b in points),
        "x": [(x(right * i / 4), f"{right * i / 4:.0f}") for i in range(5)],
        "y": [(y(top * i / 4), f"{top * i / 4:.2f}") for i in range(5)],
    }
