"""The spend guard of runs: a limit before one starts, and what is billed now, as far as the records know.

Only platform sagemaker costs by itself: the harness neither starts nor stops the host of platform ec2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from harness import record as records
from harness.errors import HarnessError, InvalidInput
from harness.estimate import price, spend
from harness.estimate.price import HOSTING, TRAINING, Table
from harness.estimate.spend import Alive, Limits
from harness.record import Record
from harness.run import forecast, platforms
from harness.run.platforms import Target
from harness.sagemaker import resources
from harness.sagemaker.expiry import KIND
from harness.sagemaker.resources import RUNNING_JOB
from harness.spec.profile import Profile
from harness.spec.runfile import RunFile
from harness.spec.stacks import Stack

FILE = "limit.json"  # in the record of a run with a limit
LONGEST_WAIT = 24 * 3600  # seconds for an instance, where the request names no limit


def usd(text: str) -> Decimal | None:
    """The value of --max-cost; None for the empty text. Raises InvalidInput."""
    try:
        value = Decimal(text.removesuffix("USD").strip()) if text else None
    except InvalidOperation:
        value = Decimal(0)
    if value is not None and not (value.is_finite() and value > 0):
        raise InvalidInput(f"--max-cost {text!r} must be an amount in USD", hint="for example 5 or 2.50")
    return value


def _check_platform(target: Target) -> None:
    if target.platform != "sagemaker":
        why = "nothing is billed there by what the harness does"
        raise InvalidInput(f"--max-cost has no effect on platform {target.platform}", why, "leave it out")


def within(text: str, path: Path, run: RunFile, stack: Stack, target: Target) -> tuple[RunFile, dict[str, str]]:
    """The run file with a MaxRuntime that keeps --max-cost, and what the record says of it.

    Raises InvalidInput where the estimate is more than the limit, or a price or the model's shapes are unknown.
    """
    limit = usd(text)
    if limit is None:
        return run, {}
    _check_platform(target)
    found = forecast.of(path, run, stack, target.profile)
    if found.outlook is None:
        raise InvalidInput("--max-cost cannot be kept", found.unknown, "leave it out, or use a model that is known")
    longest = run.compute.max_runtime_seconds
    made = spend.limits(limit, found.outlook.bill, longest, 3600.0 * target.profile.endpoint_hours)
    compute = run.compute.model_copy(update={"max_runtime_seconds": made.max_runtime})
    return run.model_copy(update={"compute": compute}), {FILE: _text(made)}


def _text(made: Limits) -> str:
    """What ttl_of reads."""
    return json.dumps(price.plain(asdict(made)), indent=2) + "\n"


def ttl_of(record: Record) -> float | None:
    """Seconds that each endpoint of the run may live; None where no limit was given."""
    found = record.read_json(FILE)
    return float(found["endpoint_seconds"]) if found else None


def endpoint_seconds(text: str, instance: str, target: Target, longest: float | None) -> float | None:
    """How long an endpoint lives that may cost --max-cost; `longest` if that is less. Raises InvalidInput."""
    limit = usd(text)
    if limit is None:
        return longest
    _check_platform(target)
    profile: Profile = target.profile.serving
    found = forecast.prices().find(HOSTING, instance, profile.region)
    if found is None:
        why = f"the price of {instance} in {profile.region} is unknown"
        raise InvalidInput("--max-cost cannot be kept", why, "harness prices --refresh asks AWS; or leave it out")
    most = int(longest if longest is not None else 3600 * profile.endpoint_hours)
    return float(spend.runtime_within(limit, found.usd, 1, most))


# What is billed now ------------------------------------------------------------------------------------------------


def billed(now: datetime | None = None) -> list[Alive]:
    """What the records below this directory know to be billed; nobody is asked, damaged records are passed over."""
    now, found = now or datetime.now(UTC), []
    for record in records.all_records():
        try:
            if platforms.of(record).platform == "sagemaker":
                found += list(of(record, now))
        except (HarnessError, KeyError, TypeError, ValueError):
            continue
    return found


def of(record: Record, now: datetime) -> Iterator[Alive]:
    """One run's: a job until its record says that it has ended, an endpoint until it was deleted or has expired."""
    lines = [line for line in record.ledger() if {"kind", "name", "region"} <= line.keys()]
    since = {(line["kind"], line["name"]): line for line in lines if line["event"] == "created"}
    ends = {name: line["expires"] for (kind, name), line in since.items() if kind == KIND and "expires" in line}
    job = record.read_json("job.json") or {}
    for item in resources.made(record):
        made = since.get((item.kind, item.name))
        if made is None:
            continue
        begun = datetime.fromisoformat(made["time"])
        if item.kind == "endpoint":
            request = record.read_json(f"requests/CreateEndpointConfig-{item.name}.json")
            end = datetime.fromisoformat(ends[item.name]) if item.name in ends else None
            if request and (end is None or now < end):
                variant = request["ProductionVariants"][0]
                yield Alive(
                    "endpoint", item.name, item.region, HOSTING, variant["InstanceType"], _count(variant), begun
                )
        elif item.kind == "training-job" and job.get("name") == item.name and job.get("status") in RUNNING_JOB:
            request = record.read_json(f"requests/CreateTrainingJob-{item.name}.json")
            if request and now < begun + _longest(request):
                config = request["ResourceConfig"]
                yield Alive(
                    "training job",
                    item.name,
                    item.region,
                    TRAINING,
                    config["InstanceType"],
                    int(config["InstanceCount"]),
                    begun,
                )


def _count(variant: dict[str, Any]) -> int:
    return int(variant["InitialInstanceCount"])


def _longest(request: dict[str, Any]) -> timedelta:
    """After which a job has ended, whatever its record says: detached from, nobody notes its end."""
    stop = request["StoppingCondition"]
    seconds = stop.get("MaxWaitTimeInSeconds", 0) or stop["MaxRuntimeInSeconds"]
    return timedelta(seconds=seconds + stop.get("MaxPendingTimeInSeconds", LONGEST_WAIT))


def line(now: datetime | None = None) -> str:
    """What a command says at its end while something is billed; empty while nothing is."""
    now = now or datetime.now(UTC)
    found = billed(now)
    return spend.line(found, forecast.prices(), now) if found else ""


def costs(record: Record, alive: set[str], now: datetime, table: Table) -> str:
    """`ps`: what of the run is alive has cost since it was made, and costs an hour; the last job's bill besides.

    `alive`: names that were found to be there. Empty where nothing is, or was, billed.
    """
    parts = []
    job = record.read_json("job.json") or {}
    request = record.read_json(f"requests/CreateTrainingJob-{job.get('name')}.json")
    if job.get("billable_seconds") and request and job.get("status") not in RUNNING_JOB:
        config = request["ResourceConfig"]
        found = table.find(TRAINING, config["InstanceType"], job["region"])
        seconds, count = job["billable_seconds"], int(config["InstanceCount"])
        cost = f"{price.cents(price.amount(found.usd, seconds, count))} USD" if found else "price unknown"
        parts.append(f"job {seconds} s: {cost}")
    for item in of(record, now):
        if item.name in alive:
            cost_now, rate = spend.so_far(item, table, now)
            text = f"{cost_now} USD so far, {rate} USD/h" if rate is not None else "price unknown"
            parts.append(f"{item.kind}: {text}")
    return "; ".join(parts)
