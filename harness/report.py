"""report.html: one self-contained page with the loss curve, the accuracy and some answers before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    return env.get_template("report.html.j2").render(
        result=result, curve=curve(points), evaluation=[r for r in metrics if "eval_loss" in r]
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
