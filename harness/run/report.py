"""What a run took and what came of it: seconds by phase, peak memory, and report.html, one self-contained page."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from harness.run import lm_eval
from harness.run.evaluate import shown_of, unit_of


class Meter:
    """Use as a context manager around a whole run; `phase()` around its parts.

    `processes` are the ids of further processes whose memory counts with everything below them; asked twice a second.
    """

    def __init__(self, processes: Callable[[], Iterable[int]] = tuple) -> None:
        self.processes = processes
        self.seconds: dict[str, float] = {}
        self.peak_rss_mb = 0.0
        self.requests: dict[str, list[float]] = {}
        """Seconds of each request to a model's endpoint, by model; requests may overlap."""
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

    @contextmanager
    def request(self, which: str) -> Iterator[None]:
        """Adds the block's seconds to the requests of model `which`; one that fails is none."""
        started = time.monotonic()
        yield
        self.requests.setdefault(which, []).append(time.monotonic() - started)

    def latency(self) -> dict[str, dict[str, float]]:
        """Of each model that was asked: how many requests, and their median and 95th percentile in seconds."""
        return {
            which: {"requests": len(found), "p50": percentile(found, 50), "p95": percentile(found, 95)}
            for which, found in self.requests.items()
        }

    def _sample(self) -> None:
        # Twice a second: memory peaks of training last for many steps.
        while not self._done.wait(0.5):
            self.peak_rss_mb = max(self.peak_rss_mb, tree_rss_mb((os.getpid(), *self.processes())))


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest rank: a value that was measured, also of few."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


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


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; none where there is no such file."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.strip()]


def throughput(metrics: Iterable[dict[str, float]]) -> float | None:
    """Training's tokens a second without padding, the median of what was logged; None where nothing was."""
    found = [row["tokens_per_second"] for row in metrics if "tokens_per_second" in row]
    return percentile(found, 50) if found else None


def html(result: dict[str, Any], metrics: list[dict[str, float]]) -> str:
    """The page. Every text is escaped by the template engine."""
    measure = result["score"]["measure"]
    page = template("report.html.j2").render(
        result=result,
        curve=loss_curves({"training": metrics}),
        evaluation=[r for r in metrics if "eval_loss" in r],
        shown=shown_of(measure),
        unit=unit_of(measure),
        others=lm_eval.table(result.get("lm_eval", {})),
    )
    return str(page)


def template(name: str) -> Any:
    """A page of the package; a name that it does not get is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(loader=PackageLoader("harness", ""), autoescape=True, undefined=StrictUndefined).get_template(
        name
    )


# Of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/): told apart by colour-blind readers, on white and black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def loss_curves(runs: dict[str, list[dict[str, float]]]) -> str:
    """Training losses by step as an SVG without scripts, with the page's ink; "" where there are none."""
    import pygal
    from pygal.style import Style

    # pygal 3.1 leaves a finder for its plugins, of a kind that Python 3.11 warns of at each later import.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]
    series = {name: [(r["step"], r["loss"]) for r in metrics if "loss" in r] for name, metrics in runs.items()}
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return ""
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--soft)",
        foreground_strong="var(--ink)",
        foreground_subtle="var(--line)",
        guide_stroke_color="var(--line)",
        major_guide_stroke_color="var(--line)",
        guide_stroke_dasharray="none",
        major_guide_stroke_dasharray="none",
        opacity="1",
        stroke_opacity="1",
        stroke_width="2",
        title_font_size=12,
        legend_font_size=12,
        label_font_size=11,
        major_label_font_size=11,
        colors=COLOURS,
        font_family="system-ui, sans-serif",
    )
    chart = pygal.XY(
        style=style,
        js=(),
        width=720,
        height=280,
        show_dots=False,
        x_title="step",
        range=(0, 1.05 * max(loss for points in series.values() for _, loss in points)),
        legend_at_bottom=True,
        show_legend=len(series) > 1,
    )
    chart.uuid = "loss"
    chart.add_xml_filter(_without_scripts)
    for name, points in series.items():
        chart.add(name, points)
    return str(chart.render(is_unicode=True, disable_xml_declaration=True))


def _without_scripts(root: Any) -> Any:
    """pygal puts its configuration into the image as a script, for tooltips that we do not have."""
    for parent in list(root.iter()):
        for child in list(parent):
            if str(child.tag).rpartition("}")[2] == "script":
                parent.remove(child)
    return root
