"""What an endpoint says of itself: a log line for each request, without its text, and running totals.

The totals go to the log once a minute while there is traffic, as CloudWatch's embedded metric format
(docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html), and are
rendered as Prometheus text (prometheus.io/docs/instrumenting/exposition_formats). All times in seconds.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from containers.health import announce

# Upper bounds; each about twice the one before, from a step of an accelerator to SageMaker's longest stream.
BOUNDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 480.0)
EVERY = 60.0
NAMESPACE = "NeuronHarness/Serving"
# Histogram -> what it is; the metric of CloudWatch and of Prometheus are named after it.
HISTOGRAMS = {
    "time_to_first_token": "from a request's arrival in the handler to its first token",
    "inter_token_latency": "between two tokens of one sequence, mean of the sequence",
    "queue_time": "from a request's arrival in the handler to the first step that reads its prompt",
    "request_time": "from a request's arrival in the handler to its end",
}


@dataclass
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(frozen=True)
class Finished:
    """One request at its end; times are None where it never came so far."""

    request_id: str
    status: int
    finish_reasons: tuple[str, ...]
    streamed: bool
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    queued: float | None = None
    first_token: float | None = None
    between_tokens: float | None = None


class Metrics:
    """Totals of one handler process since its start."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
        announce: Callable[[str], None] = announce,
        prometheus: Path | None = None,
    ) -> None:
        """`announce` writes a line that nothing may be put before; `prometheus` is a file that holds the newest
        Prometheus text, or None where nobody wants it."""
        self.clock, self.write, self.announce, self.prometheus = clock, write, announce, prometheus
        self.histograms = {name: Histogram() for name in HISTOGRAMS}
        self.requests: dict[int, int] = {}
        self.prompt_tokens = self.generated_tokens = 0
        self.slots_in_use = self.slots = self.waiting = 0
        self._window: list[Finished] = []
        self._window_began = clock()
        self._busiest = self._longest_queue = 0

    def seen(self, slots_in_use: int, slots: int, waiting: int) -> None:
        """After a step: how full the engine is and how many sequences wait."""
        self.slots_in_use, self.slots, self.waiting = slots_in_use, slots, waiting
        self._busiest = max(self._busiest, slots_in_use)
        self._longest_queue = max(self._longest_queue, waiting)

    def finished(self, request: Finished) -> None:
        """Count a request and write its line."""
        self.requests[request.status] = self.requests.get(request.status, 0) + 1
        self.prompt_tokens += request.prompt_tokens
        self.generated_tokens += request.generated_tokens
        for name, value in (
            ("time_to_first_token", request.first_token),
            ("inter_token_latency", request.between_tokens),
            ("queue_time", request.queued),
            ("request_time", request.seconds),
        ):
            if value is not None:
                self.histograms[name].add(value)
        self._window.append(request)
        self.write(line(request))
        if self.prometheus is not None:
            for name, value in (("TimeToFirstToken", request.first_token), ("RequestTime", request.seconds)):
                if value is not None:
                    # The real server turns such lines into its own metrics (ai.djl.python, PyProcess.ReaderThread).
                    self.write(f"[METRICS]{name}.Milliseconds:{value * 1000:.1f}|#Source:handler")
            self.publish()

    def flush(self, now: bool = False) -> None:
        """Write the totals of the last minute, if it is over and there was traffic; called between steps."""
        elapsed = self.clock() - self._window_began
        if not self._window or (elapsed < EVERY and not now):
            return
        self.announce(json.dumps(self._embedded(elapsed)))
        self._window, self._window_began = [], self.clock()
        self._busiest, self._longest_queue = self.slots_in_use, self.waiting
        self.publish()

    def publish(self) -> None:
        """Leave the Prometheus text where it is looked for."""
        if self.prometheus is not None:
            new = self.prometheus.with_name(self.prometheus.name + ".new")
            new.write_text(self.text(), encoding="utf-8")
            os.replace(new, self.prometheus)

    def _embedded(self, elapsed: float) -> dict[str, Any]:
        done = self._window
        values: dict[str, tuple[str, Any]] = {
            "TimeToFirstToken": ("Milliseconds", _ms(r.first_token for r in done)),
            "InterTokenLatency": ("Milliseconds", _ms(r.between_tokens for r in done)),
            "QueueTime": ("Milliseconds", _ms(r.queued for r in done)),
            "RequestTime": ("Milliseconds", _ms(r.seconds for r in done)),
            "SlotsInUse": ("Count", self._busiest),
            "Waiting": ("Count", self._longest_queue),
            "GeneratedTokensPerSecond": ("Count/Second", round(sum(r.generated_tokens for r in done) / elapsed, 3)),
            "Requests": ("Count", len(done)),
            "Errors": ("Count", sum(r.status >= 400 for r in done)),
        }
        values = {name: (unit, value) for name, (unit, value) in values.items() if value != []}
        definition = [{"Name": name, "Unit": unit} for name, (unit, _) in values.items()]
        return {
            "_aws": {
                "Timestamp": int(time.time() * 1000),
                "CloudWatchMetrics": [{"Namespace": NAMESPACE, "Dimensions": [[]], "Metrics": definition}],
            },
            **{name: value for name, (_, value) in values.items()},
        }

    def text(self) -> str:
        """Prometheus text format; each series names this process, since an endpoint may have several."""
        worker = f'worker="{os.getpid()}"'
        lines = []
        for name, what in HISTOGRAMS.items():
            metric, histogram, below = f"serve_{name}_seconds", self.histograms[name], 0
            lines += [f"# HELP {metric} {what}", f"# TYPE {metric} histogram"]
            for bound, count in zip((*BOUNDS, "+Inf"), histogram.counts):  # noqa: B905 (3.10)
                below += count
                lines.append(f'{metric}_bucket{{{worker},le="{bound}"}} {below}')
            lines += [f"{metric}_sum{{{worker}}} {histogram.total:.6f}", f"{metric}_count{{{worker}}} {below}"]
        lines.append("# TYPE serve_requests_total counter")
        lines += [f'serve_requests_total{{{worker},status="{s}"}} {n}' for s, n in sorted(self.requests.items())]
        for name, kind, value in (
            ("serve_prompt_tokens_total", "counter", self.prompt_tokens),
            ("serve_generated_tokens_total", "counter", self.generated_tokens),
            ("serve_slots", "gauge", self.slots),
            ("serve_slots_in_use", "gauge", self.slots_in_use),
            ("serve_sequences_waiting", "gauge", self.waiting),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name}{{{worker}}} {value}"]
        return "\n".join(lines) + "\n"


def line(request: Finished) -> str:
    """One line of name=value pairs, which CloudWatch Logs Insights parses; no text of prompt or answer."""
    pairs: list[tuple[str, object]] = [
        ("id", "".join(c if c.isalnum() or c in "-_.:" else "_" for c in request.request_id[:64]) or "-"),
        ("status", request.status),
        ("finish", ",".join(request.finish_reasons) or "-"),
        ("stream", str(request.streamed).lower()),
        ("prompt_tokens", request.prompt_tokens),
        ("generated_tokens", request.generated_tokens),
        ("total_ms", _milli(request.seconds)),
        ("queue_ms", _milli(request.queued)),
        ("ttft_ms", _milli(request.first_token)),
        ("itl_ms", _milli(request.between_tokens)),
    ]
    return "request " + " ".join(f"{name}={value}" for name, value in pairs)


def _milli(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _ms(values: Any) -> list[float]:
    """At most 100, which is how many values of a metric one line may carry."""
    found = sorted(round(v * 1000, 2) for v in values if v is not None)
    return found if len(found) <= 100 else [found[i * (len(found) - 1) // 99] for i in range(100)]
