"""How a forecast is shown: plain lines, so that `plan` needs no table library and stays under half a second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.cli import output
from harness.estimate import outlook as outlooks, price
from harness.estimate.duration import Seconds
from harness.estimate.memory import TIGHT, Footprint
from harness.estimate.outlook import Outlook, Side
from harness.rules.rule import ERROR
from harness.run import forecast as forecasts
from harness.run.forecast import Forecast, Variant


def columns(rows: Iterable[Sequence[str]], header: Sequence[str]) -> list[str]:
    """Lines of a table, columns as wide as their widest cell."""
    every = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]


def show(found: Forecast) -> None:
    """Fit, time, price and rules of one run."""
    if found.outlook is None:
        output.out(f"fit: unknown: {found.unknown}")
    else:
        _fit("training", found.outlook.train)
        _fit("serving", found.outlook.serve)
        _time(found.outlook)
        _price(found.outlook)
    shown = sorted(found.findings, key=lambda f: f.severity != ERROR)
    for finding in shown:
        if finding.severity != ERROR:  # errors are printed at the end, as every refusal
            output.out(f"{finding.severity}: {finding.what} ({finding.rule}; harness rules {finding.rule})")


def _fit(name: str, side: Side) -> None:
    output.out(f"{name} on {side.instance}: {side.verdict}")
    if side.core is not None:
        _footprint("one NeuronCore", side.core)
    if side.host is not None:
        _footprint("the host", side.host)
    for note in side.notes:
        output.out(f"  {note}")
    if side.change and side.verdict == TIGHT:
        output.out(f"  sure to fit with: {side.change}")
    output.out("")


def _footprint(name: str, part: Footprint) -> None:
    total, largest = part.total, part.largest
    span = f"{outlooks.gib(total.low)} to {outlooks.gib(total.high)}, about {outlooks.gib(total.expected)}"
    output.out(f"  {name}: {span} of {outlooks.gib(part.capacity)}: {part.verdict}; largest: {largest.name}")
    rows = [(f"    {t.name}", outlooks.gib(t.span.expected), t.reason) for t in part.terms]
    for line in columns(rows, ("    part", "about", "because"))[1:]:
        output.out(line)


def _span(seconds: Seconds) -> str:
    def one(value: float) -> str:
        return (
            f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
        )

    return f"{one(seconds.low)} to {one(seconds.high)}"


def _time(found: Outlook) -> None:
    work = found.work
    steps = "unknown" if work.steps is None else f"{work.steps:,} steps, {work.tokens or 0:,} tokens"
    output.out(f"time: {steps}; job {_span(found.job_time)} ({found.job_time.because})")
    output.out(f"      endpoint ready after {_span(found.start_time)} ({found.start_time.because})")
    output.out(f"      artifact {found.artifact_bytes / 1e9:.2f} GB; {found.replicas} replica(s)")
    if found.rate:
        output.out(f"      about {found.rate[0]:,.0f} to {found.rate[1]:,.0f} output tokens per second")
    for a in found.assumptions:
        output.out(f"      assumed: {a.name}: {a.value} ({a.status} {a.date}, {a.source})")
    output.out("")


def _price(found: Outlook) -> None:
    output.out(f"price: {forecasts.cost_text(found)}")
    for line in found.bill.lines:
        charge = line.charge
        count = f"{charge.count} x " if charge.count > 1 else ""
        if line.price is None or line.low is None or line.high is None:
            output.out(f"  {charge.what}: {count}{charge.item}: {line.note}")
            continue
        source = f"{line.price.usd} USD/{line.price.unit}, {line.price.status} {line.price.date}, {line.price.source}"
        amounts = f"{price.cents(line.low)} to {price.cents(line.high)} USD"
        note = f"; {line.note}" if line.note else ""
        output.out(f"  {charge.what}: {count}{charge.item}: {amounts} ({source}{note})")
    if found.endpoint_per_hour is not None:
        output.out(f"  an endpoint that stays costs {found.endpoint_per_hour} USD an hour")
    output.out("")


def compare(key: str, variants: list[Variant]) -> None:
    """One table for --what-if: fit, time, cost."""
    rows: list[tuple[str, ...]] = []
    for variant in variants:
        found = variant.forecast.outlook if variant.forecast else None
        if found is None:
            reason = variant.problem or (variant.forecast.unknown if variant.forecast else "")
            rows.append((variant.value, f"refused: {reason}", "", "", "", ""))
            continue
        assert variant.forecast is not None
        errors = [f.rule for f in variant.forecast.findings if f.severity == ERROR]
        verdicts = [_verdict(found.train), _verdict(found.serve)]
        rows.append((variant.value, *verdicts, _span(found.job_time), forecasts.cost_text(found), ", ".join(errors)))
    for line in columns(rows, (key, "training", "serving", "job", "cost of the run", "rules")):
        output.out(line)


def _verdict(side: Side) -> str:
    if side.core is None:
        return side.verdict
    return f"{side.verdict} ({outlooks.gib(side.core.total.expected)} of {outlooks.gib(side.core.capacity)})"


def to_dict(found: Forecast) -> dict[str, Any]:
    """For --json."""
    return {
        "outlook": outlooks.to_dict(found.outlook) if found.outlook else None,
        "unknown": found.unknown,
        "findings": [
            {"rule": f.rule, "severity": f.severity, "what": f.what, "remedy": f.remedy, "source": f.source}
            for f in found.findings
        ],
    }
