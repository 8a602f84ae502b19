"""The spend guard: what a limit allows, what something alive has cost, and how an endpoint ends by itself.

Everything here is pure. An endpoint is deleted at its expiry by an EventBridge schedule that calls SageMaker's
DeleteEndpoint as a universal target (no Lambda): https://docs.aws.amazon.com/scheduler/latest/UserGuide/managing-targets-universal.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from harness.errors import InvalidInput, Problem
from harness.estimate.price import HOSTING, Bill, Table, amount, cents

MIN_RUNTIME = 60
"""Seconds. The smallest limit that a run file takes (spec: compute.max_runtime_seconds)."""
DELETE_ENDPOINT = "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint"


def runtime_within(usd: Decimal, per_hour: Decimal, count: int, longest: int) -> int:
    """MaxRuntimeInSeconds that keeps a job of `count` instances within `usd`, at most `longest`.

    Raises InvalidInput where not even a minute is within it.
    """
    if per_hour <= 0:
        raise InvalidInput(
            "the price of the instance is unknown", "a limit in USD needs it", "harness prices --refresh"
        )
    seconds = int(usd * 3600 // (per_hour * count))
    if seconds < MIN_RUNTIME:
        what = f"{usd} USD buy {max(seconds, 0)} s of {count} instance{'s' if count > 1 else ''} at {per_hour} USD/h"
        raise InvalidInput(
            what, f"a job gets at least {MIN_RUNTIME} s", "raise --max-cost or choose a smaller instance"
        )
    return min(seconds, longest)


def check_limit(usd: Decimal, high: Decimal | None, unknown: Iterable[str]) -> list[Problem]:
    """Why a run must not start under `usd`. `high`: at most by estimate; None where a price is unknown."""
    if high is None:
        names = ", ".join(unknown)
        hint = "harness prices --refresh asks AWS; or leave --max-cost out"
        return [Problem(f"--max-cost {usd} cannot be kept: no price is known for {names}", hint=hint)]
    if high > usd:
        what = f"the run may cost {cents(high)} USD, more than --max-cost {usd}"
        return [
            Problem(what, hint="harness plan shows the parts; lower compute.max_runtime_seconds or raise --max-cost")
        ]
    return []


@dataclass(frozen=True)
class Limits:
    """What keeps a run within a sum: the job's MaxRuntimeInSeconds, and how long each endpoint may live."""

    usd: Decimal
    max_runtime: int
    endpoint_seconds: float


def limits(usd: Decimal, bill: Bill, longest_job: int, longest_endpoint: float) -> Limits:
    """Every charge may take its share of `usd`: its estimate at most, stretched until the sum is `usd`.

    So a job that runs into its limit and endpoints that nobody deletes cost `usd` together, at most; estimates only
    decide who may take how much of it. Raises InvalidInput where the estimate alone is more, or a price is unknown.
    """
    high = bill.total[1] if bill.total else None
    if problems := check_limit(usd, high, (line.charge.item for line in bill.lines if line.high is None)):
        raise InvalidInput.of(problems)
    whole = sum((line.high or Decimal(0) for line in bill.lines), Decimal(0))
    stretch = float(usd / whole) if whole else 1.0
    jobs = [line.charge for line in bill.lines if line.charge.what == "training"]
    endpoints = [line.charge for line in bill.lines if line.charge.service == HOSTING]
    runtime = min(longest_job, int(min((c.seconds[1] for c in jobs), default=longest_job) * stretch))
    if runtime < MIN_RUNTIME:
        what = f"{usd} USD leave the job {runtime} s"
        raise InvalidInput(what, f"a job gets at least {MIN_RUNTIME} s", "raise --max-cost")
    alive = min((c.seconds[1] for c in endpoints), default=longest_endpoint) * stretch
    return Limits(usd, runtime, min(longest_endpoint, alive))


@dataclass(frozen=True)
class Alive:
    """Something that is billed now: since when, and how much of it."""

    kind: str
    name: str
    region: str
    service: str
    item: str
    count: int
    since: datetime


def so_far(alive: Alive, table: Table, now: datetime) -> tuple[Decimal | None, Decimal | None]:
    """(USD so far, USD per hour), each None where the price is unknown."""
    price = table.find(alive.service, alive.item, alive.region)
    if price is None:
        return None, None
    seconds = max((now - alive.since).total_seconds(), 0)
    return cents(amount(price.usd, seconds, alive.count)), price.usd * alive.count


def line(items: list[Alive], table: Table, now: datetime) -> str:
    """One line for every command while something billable is alive; the empty string while nothing is."""
    if not items:
        return ""
    costs = [so_far(item, table, now) for item in items]
    names = ", ".join(f"{item.kind} {item.name}" for item in items[:3])
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    rates = [rate for _, rate in costs if rate is not None]
    spent = [cost for cost, _ in costs if cost is not None]
    known = f"{sum(spent, Decimal(0))} USD so far, {sum(rates, Decimal(0))} USD/h" if rates else "at an unknown price"
    partly = ", some prices unknown" if rates and len(rates) < len(items) else ""
    return f"billed now, as far as the records here know: {names}{more}: {known}{partly}; end it: harness down"


# The end of an endpoint ---------------------------------------------------------------------------------------------


def schedule_name(endpoint: str) -> str:
    """An endpoint's schedule has its name: 63 characters of an endpoint's name fit into a schedule's 64."""
    return endpoint


def schedule_request(endpoint: str, expires: datetime, role_arn: str, kms_key: str = "") -> dict[str, Any]:
    """CreateSchedule: DeleteEndpoint once at `expires` (UTC), then the schedule deletes itself.

    Names contain the run's id, so a late call cannot meet another run's endpoint; retries for a day cover an endpoint
    that is Creating or Updating at that moment, which SageMaker refuses to delete.
    """
    if expires.tzinfo is None:
        raise ValueError("an expiry needs a time zone")
    at = expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return {
        "Name": schedule_name(endpoint),
        "Description": f"Deletes endpoint {endpoint} at its expiry",
        "ScheduleExpression": f"at({at})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": DELETE_ENDPOINT,
            "RoleArn": role_arn,
            "Input": json.dumps({"EndpointName": endpoint}),
            "RetryPolicy": {"MaximumEventAgeInSeconds": 86400, "MaximumRetryAttempts": 185},
        },
        **({"KmsKeyArn": kms_key} if kms_key else {}),
    }


def trust_policy(account: str) -> dict[str, Any]:
    """The schedule's role: EventBridge Scheduler of this account may assume it."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "scheduler.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": account}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def permission_policy(account: str, partition: str = "aws") -> dict[str, Any]:
    """The schedule's role may delete endpoints of this account, nothing else."""
    resource = f"arn:{partition}:sagemaker:*:{account}:endpoint/*"
    statement = {"Effect": "Allow", "Action": "sagemaker:DeleteEndpoint", "Resource": resource}
    return {"Version": "2012-10-17", "Statement": [statement]}


def check_trust(document: dict[str, Any], role_arn: str) -> list[Problem]:
    """What doctor says of the role's trust policy."""
    statements = document.get("Statement", [])
    for statement in statements if isinstance(statements, list) else [statements]:
        principal = statement.get("Principal", {})
        services = principal.get("Service", []) if isinstance(principal, dict) else []
        actions = statement.get("Action", [])
        services = [services] if isinstance(services, str) else services
        actions = [actions] if isinstance(actions, str) else actions
        if (
            statement.get("Effect") == "Allow"
            and "scheduler.amazonaws.com" in services
            and "sts:AssumeRole" in actions
        ):
            return []
    why = 'its trust policy does not allow sts:AssumeRole to "scheduler.amazonaws.com"'
    return [Problem(f"EventBridge Scheduler cannot assume {role_arn}", why, "docs/aws.md has the trust policy")]


NOTHING_STOPS_IT = (
    "nothing will stop the bill by itself: no schedule could be made, so end the endpoint with: harness down"
)
