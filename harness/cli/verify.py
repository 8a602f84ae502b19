"""The verb that tells whether this machine's device works as the code expects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import output
from harness.cli.runs import JsonFlag, PlatformFlag

if TYPE_CHECKING:
    from harness.verify.jobs import Jobs


def verify(
    device: Annotated[
        str, typer.Option(help="neuron, cpu, or xla-cpu: the Neuron trainer on XLA:CPU.", metavar="DEVICE")
    ] = "",
    platform: PlatformFlag = "",
    plan: Annotated[bool, typer.Option("--plan", help="Show the requests and what they may cost at most.")] = False,
    usd_per_hour: Annotated[float, typer.Option(min=0.0, help="Price of the dearer instance, for the cap.")] = 0.0,
    max_cost: Annotated[float, typer.Option(min=0.0, help="USD that all jobs together may cost.")] = 0.0,
    report: Annotated[Path | None, typer.Option(help="Write the report there, too.", metavar="FILE")] = None,
    json: JsonFlag = False,
) -> None:
    """Check this device, or SageMaker's, step by step; a report for an issue."""
    import json as encoder

    from harness.errors import InvalidInput
    from harness.verify import jobs as verify_jobs, report as verify_report, verification
    from harness.verify.bench import Budget

    chosen = verification.choose(device, platform)
    share, budget = 1.0, Budget()
    if max_cost:
        if not usd_per_hour:
            raise InvalidInput("--max-cost needs --usd-per-hour", "prices differ by region and change")
        share = verify_jobs.share_of(max_cost, usd_per_hour, verify_jobs.seconds(chosen))
        budget = Budget(usd_per_hour, max_cost)
    if plan:
        _show_plan(verification.planned(chosen, share), verify_jobs.seconds(chosen, share), usd_per_hour, json)
        return
    if platform == "sagemaker" and not max_cost:
        why = "the jobs cost money, and no price is built in"
        hint = "what they are: harness verify --platform sagemaker --plan --usd-per-hour USD"
        raise InvalidInput("--platform sagemaker needs --usd-per-hour and --max-cost", why, hint)
    with output.reporter() as reporter:
        run, jobs = verification.start(chosen, share, verification.target_of(platform))
        reporter.say(f"run {run.record.id}, device {chosen}")
        bench = verification.carry_out(run, jobs, chosen, reporter, budget)
    text = verify_report.markdown(bench)
    results = encoder.dumps(verify_report.as_json(bench.results), indent=2)
    run.record.write_text("verify.md", text)
    run.record.write_text("verify.json", results + "\n")
    if report is not None:
        report.write_text(text, encoding="utf-8")
    output.out(results if json else text.rstrip())
    if failed := verification.failure(bench):
        raise failed


def _show_plan(jobs: Jobs, seconds: dict[str, int], usd_per_hour: float, json: bool) -> None:
    import json as encoder

    if json:
        requests = [{"operation": operation, "request": request} for operation, request in jobs.requests()]
        output.out(encoder.dumps(requests, indent=2))
        return
    output.table("", [(name, str(limit)) for name, limit in seconds.items()], ("job", "seconds at most"))
    hours = sum(seconds.values()) / 3600
    cost = f", {hours * usd_per_hour:.2f} USD at {usd_per_hour:g} USD an hour" if usd_per_hour else ""
    output.out(f"\nat most {hours:.1f} instance-hours{cost}; the requests: --json")
