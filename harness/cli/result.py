"""The result of a run on the terminal."""

from __future__ import annotations

import json
from typing import Any

from harness.cli import output
from harness.record import Record


def show(record: Record, result: dict[str, Any], as_json: bool) -> None:
    """The table that ends a run, and where the rest is."""
    if as_json:
        output.out(json.dumps(result, indent=2))
        return
    accuracy, unparsable = result["accuracy"], result["unparsable"]
    rows = [("always the most frequent answer", _percent(accuracy["majority"]), "")]
    for which, name in (("base", "before fine-tuning"), ("tuned", "after fine-tuning")):
        if which in accuracy:
            rows.append((name, _percent(accuracy[which]), f"{_percent(unparsable[which])} without a label"))
    if "gain" in accuracy:
        low, high = accuracy["gain_ci95"]
        rows.append(
            (
                "gain, points",
                f"{100 * accuracy['gain']:+.1f}",
                f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}",
            )
        )
    title = f"accuracy on {accuracy['rows']} held-out examples, through the endpoint"
    output.table(title, rows, ("", "accuracy", ""))
    seconds = result["seconds"]
    phases = ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in seconds.items() if name != "total")
    output.out(f"\n{seconds['total']:.0f} s in all ({phases}); peak memory {result['peak_rss_mb']} MB")
    output.out(f"report: {record.path / 'report.html'}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
