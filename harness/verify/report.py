"""What `harness verify` found, as Markdown for an issue: versions, a row for each step, the limits it settles."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from harness.run import platforms
from harness.verify.bench import FAILED, PASSED, Bench, Result


def limits() -> dict[str, Any]:
    """What could not be tried without Neuron hardware and AWS: docs/limits.md is made from it."""
    text = files("harness.verify").joinpath("limits.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def settled_by() -> dict[str, set[str]]:
    """Name that touches Neuron -> the steps that settle it together; names that none settles are left out."""
    rows = [row for row in limits()["names"] if not row["settled_by"].startswith("none:")]
    return {row["name"]: set(row["settled_by"].split(", ")) for row in rows}


def markdown(bench: Bench) -> str:
    """The report. On another device than neuron no row of docs/limits.md is settled, whatever passed."""
    where = bench.hosts["train"]
    lines = [
        f"## harness verify, device {bench.device}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"Stack {bench.run.plan.stack}, platform {platforms.of(bench.run.record).platform}; {_machine(where)}.",
        *_cost(bench),
        "",
        *_versions(bench.hosts),
        "",
        "| step | status | figure | seconds | rows of docs/limits.md settled |",
        "|---|---|---|---|---|",
    ]
    rows = settled_by()
    passed = {r.name for r in bench.results if r.status == PASSED} if bench.device == "neuron" else set()
    settled = [name for name, steps in rows.items() if steps <= passed]
    for result in bench.results:
        theirs = [name for name, steps in rows.items() if result.name in steps]
        of_them = f"{sum(name in settled for name in theirs)} of {len(theirs)}"
        seconds = f"{result.seconds:.0f}" if result.seconds else ""
        lines.append(f"| {result.name} | {result.status} | {_cell(result.figure)} | {seconds} | {of_them} |")
    lines += ["", "What the README claims:", "", *verdicts(bench)]
    if bench.device != "neuron":
        lines += ["", "Nothing of Neuron is settled by this device: the rows stay open."]
    elif settled:
        lines += ["", f"Settled: {', '.join(f'`{name}`' for name in settled)}."]
    return "\n".join(lines) + "\n"


# What the README says of the hardware -> the steps that show it together. Whoever changes one changes the other.
CLAIMS: dict[str, tuple[str, ...]] = {
    "fine-tunes an open LLM on Trainium": ("driver-and-runtime", "train"),
    "learns there what it learns on this machine's processor": ("train", "evaluation"),
    "compiles nothing after the first steps": ("compile-counts",),
    "shares a model between two cores, and leaves one artifact": ("tp2-save",),
    "serves it on Inferentia2 from graphs that were compiled before": ("prepare", "serve"),
    "answers there what it answers here": ("logits",),
}


def verdicts(bench: Bench) -> list[str]:
    """One line for each claim: shown, refuted by a step that failed, or open."""
    statuses = {result.name: result for result in bench.results}
    lines = []
    for claim, steps in CLAIMS.items():
        failed = [name for name in steps if name in statuses and statuses[name].status == FAILED]
        passed = all(name in statuses and statuses[name].status == PASSED for name in steps)
        if failed:
            verdict = f"refuted: {', '.join(f'{name} ({_cell(statuses[name].figure)})' for name in failed)}"
        elif passed and bench.device == "neuron":
            verdict = "shown"
        elif passed:
            verdict = f"open: the steps pass on device {bench.device}, which is no Neuron device"
        else:
            verdict = f"open: {', '.join(steps)} did not all run"
        lines.append(f"- {claim}: **{verdict.partition(':')[0]}**{''.join(verdict.partition(':')[1:])}")
    return lines


def _cost(bench: Bench) -> list[str]:
    budget = bench.budget
    if not budget.usd_per_hour:
        return []
    spent, billed = budget.spent(bench.billed()), bench.billed()
    times = f"{billed:.0f} s of jobs were billed, the endpoint took {budget.endpoint_seconds:.0f} s"
    return ["", f"{times}: {spent:.2f} USD at {budget.usd_per_hour:g} USD an hour, cap {budget.cap:.2f}."]


def _machine(host: dict[str, Any]) -> str:
    parts = [
        host["instance"],
        f"kernel {host['kernel']}",
        f"{host['processors']} processors",
        f"{host['memory_gib']} GiB",
    ]
    if host["driver"]:
        parts.append(f"Neuron driver {host['driver']}, runtime {host['runtime'] or 'not found'}")
    return ", ".join(part for part in parts if part)


def _versions(hosts: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| image | Python | packages |", "|---|---|---|"]
    for name, host in hosts.items():
        packages = ", ".join(f"{package} {version}" for package, version in host["packages"].items())
        lines.append(f"| {name} | {host['python']} | {packages} |")
    return lines


def _cell(text: str) -> str:
    """One line that breaks no table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:400]


def as_json(results: list[Result]) -> list[dict[str, object]]:
    """The results for a script."""
    return [{"step": r.name, "status": r.status, "figure": r.figure, "seconds": round(r.seconds, 1)} for r in results]
