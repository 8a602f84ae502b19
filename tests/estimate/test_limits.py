"""--max-cost and what is billed now: from a run file, a price table and records; AWS is not asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from harness import record as records
from harness.errors import InvalidInput
from harness.estimate import price, spend
from harness.estimate.price import HOSTING, TRAINING, Charge, Price, Table
from harness.record import Record
from harness.run import platforms, spending, steps
from harness.run.forecast import PRICES
from harness.run.platforms import Target
from harness.spec import runfile
from harness.spec.profile import LOCAL

ROOT = Path(__file__).resolve().parents[2]
US = "us-west-2"
ON_AWS = Target("sagemaker", replace(LOCAL, account="123456789012", bucket="a-bucket"))
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def row(service: str, item: str, usd: str) -> Price:
    return Price(service, item, price.HOUR, US, Decimal(usd), "https://example.org/prices", "2026-11-26", "confirmed")


TABLE = Table((row(TRAINING, "ml.trn1.2xlarge", "1.54"), row(HOSTING, "ml.inf2.xlarge", "0.99")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `harness prices --refresh` would have left, with SageMaker's price of trn1."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / PRICES).write_text(price.to_json(TABLE.rows))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(folder))
    return folder


def charges(job: float, alive: float, hosts: int = 1, endpoints: int = 1) -> price.Bill:
    found = [Charge("training", TRAINING, "ml.trn1.2xlarge", hosts, (job / 2, job))]
    found += [Charge(f"endpoint {n}", HOSTING, "ml.inf2.xlarge", 1, (alive / 2, alive)) for n in range(endpoints)]
    return price.bill(found, TABLE, US)


def test_shares_by_hand() -> None:
    # 1 h x 1.54 + 0.5 h x 0.99 = 2.035 USD; 4.07 USD are twice as much, so both may take twice as long.
    made = spend.limits(Decimal("4.07"), charges(3600, 1800), 86400, 8 * 3600)
    assert (made.max_runtime, made.endpoint_seconds) == (7200, 3600.0)
    made = spend.limits(Decimal("4.07"), charges(3600, 1800), 4000, 2000)
    assert (made.max_runtime, made.endpoint_seconds) == (4000, 2000), "never more than the run file and profile say"


@given(
    st.decimals("0.01", "1000", places=2),
    st.floats(60, 1e6),
    st.floats(60, 1e5),
    st.integers(1, 16),
    st.integers(1, 2),
)
def test_a_job_and_endpoints_at_their_limits_cost_at_most_that(
    usd: Decimal, job: float, alive: float, hosts: int, endpoints: int
) -> None:
    bill = charges(job, alive, hosts, endpoints)
    try:
        made = spend.limits(usd, bill, 28 * 86400, 90 * 86400)
    except InvalidInput:
        assert bill.total is not None
        exact = sum(float(line.high or 0) for line in bill.lines)  # the total is rounded to cents
        assert usd < bill.total[1] or job * float(usd) / exact < 61
        return
    train = price.amount(Decimal("1.54"), made.max_runtime, hosts)
    serve = price.amount(Decimal("0.99"), made.endpoint_seconds) * endpoints
    assert train + serve <= usd + Decimal("0.0001")


def started(max_cost: str, target: Target = ON_AWS) -> steps.Run:
    return steps.start(Path("tinyllama-imdb"), target=target, max_cost=max_cost)


def test_the_plan_of_a_limited_run_has_the_limits_run_time_and_its_record_the_endpoints_time() -> None:
    free, limited = started(""), started("3.50")
    longest = runfile.load(runfile.find(Path("tinyllama-imdb"))).compute.max_runtime_seconds
    assert free.plan.create_training_job["StoppingCondition"]["MaxRuntimeInSeconds"] == longest
    kept = limited.plan.create_training_job["StoppingCondition"]["MaxRuntimeInSeconds"]
    alive = spending.ttl_of(limited.record)
    assert spending.ttl_of(free.record) is None
    assert alive is not None
    assert kept < longest
    count = 2 if limited.plan.base else 1
    assert kept * Decimal("1.54") / 3600 + count * Decimal(alive) * Decimal("0.99") / 3600 <= Decimal("3.50")


@pytest.mark.parametrize(
    ("max_cost", "target", "said"),
    [
        ("0.05", ON_AWS, "more than --max-cost 0.05"),
        ("-1", ON_AWS, "must be an amount in USD"),
        ("much", ON_AWS, "must be an amount in USD"),
        ("NaN", ON_AWS, "must be an amount in USD"),
        ("5", platforms.DEFAULT, "has no effect on platform local"),
        ("5", replace(ON_AWS, profile=replace(ON_AWS.profile, region="eu-west-3")), "no price is known for"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_a_record_is_made(max_cost: str, target: Target, said: str) -> None:
    with pytest.raises(InvalidInput) as error:
        started(max_cost, target)
    assert said in error.value.problems[0].what
    assert records.all_records() == []


def test_a_planned_run_keeps_its_limit() -> None:
    run = started("3.50")
    with pytest.raises(InvalidInput, match="planned already"):
        steps.start_or_continue(Path(run.record.id), max_cost="9")


def test_an_endpoints_sum_becomes_its_time() -> None:
    # 1 USD / 0.99 USD/h = 1.0101 h
    assert spending.endpoint_seconds("1", "ml.inf2.xlarge", ON_AWS, None) == 3636
    assert spending.endpoint_seconds("1", "ml.inf2.xlarge", ON_AWS, 600.0) == 600
    assert spending.endpoint_seconds("100", "ml.inf2.xlarge", ON_AWS, None) == 8 * 3600, "the profile's hours"
    assert spending.endpoint_seconds("", "ml.inf2.xlarge", ON_AWS, 600.0) == 600
    with pytest.raises(InvalidInput, match="cannot be kept"):
        spending.endpoint_seconds("1", "ml.no.such", ON_AWS, None)


# What is billed now ------------------------------------------------------------------------------------------------


def note(record: Record, event: str, kind: str, name: str, hours: float = 0, **more: str) -> None:
    line = {"time": (NOW - timedelta(hours=hours)).isoformat(), "event": event, "kind": kind, "name": name}
    with (record.path / "ledger.jsonl").open("a") as handle:
        for noted in ("create", "created") if event == "created" else (event,):
            handle.write(json.dumps({**line, "event": noted, "region": US, **more}) + "\n")


@pytest.fixture
def run() -> Record:
    return started("").record


def with_endpoint(run: Record, hours: float = 2) -> str:
    name = f"{run.id}-tuned"
    variant = {"InstanceType": "ml.inf2.xlarge", "InitialInstanceCount": 1}
    run.write_json(f"requests/CreateEndpointConfig-{name}.json", {"ProductionVariants": [variant]})
    note(run, "created", "endpoint", name, hours)
    return name


def with_job(run: Record, status: str, hours: float = 0.5, **more: object) -> None:
    config = {"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 2}
    request = {"ResourceConfig": config, "StoppingCondition": {"MaxRuntimeInSeconds": 7200}}
    run.write_json(f"requests/CreateTrainingJob-{run.id}.json", request)
    note(run, "created", "training-job", run.id, hours)
    run.write_json("job.json", {"name": run.id, "region": US, "status": status, "secondary_status": status, **more})


def test_an_endpoint_is_billed_until_it_is_deleted(run: Record) -> None:
    assert spending.line(NOW) == ""
    name = with_endpoint(run)
    said = spending.line(NOW)
    assert f"endpoint {name}" in said
    assert "1.98 USD so far, 0.99 USD/h" in said  # 2 h x 0.99
    note(run, "deleted", "endpoint", name)
    assert spending.line(NOW) == ""


def test_an_expired_endpoint_is_not_billed_any_more(run: Record) -> None:
    name = with_endpoint(run)
    note(run, "created", "schedule", name, 2, expires=(NOW + timedelta(minutes=1)).isoformat())
    assert name in spending.line(NOW)
    assert spending.line(NOW + timedelta(minutes=2)) == ""


def test_a_job_is_billed_on_all_its_hosts_while_it_can_run(run: Record) -> None:
    with_job(run, "InProgress")
    assert "1.54 USD so far, 3.08 USD/h" in spending.line(NOW)  # 0.5 h x 2 x 1.54
    assert spending.line(NOW + timedelta(days=3)) == "", "its MaxRuntime and a day of waiting are over"
    with_job(run, "Completed")
    assert spending.line(NOW) == ""


def test_on_this_machine_nothing_is_billed() -> None:
    with_endpoint(steps.start(Path("tinyllama-imdb")).record)
    assert spending.line(NOW) == ""


def test_a_damaged_record_hides_no_other(run: Record) -> None:
    broken = started("").record
    with_endpoint(broken)
    (broken.path / "platform.json").write_text("{")
    name = with_endpoint(run)
    assert [item.name for item in spending.billed(NOW)] == [name]


def test_ps_adds_up_the_job_that_ended_and_what_is_alive(run: Record) -> None:
    with_job(run, "Completed", billable_seconds=1800)
    name = with_endpoint(run)
    said = spending.costs(run, {name}, NOW, TABLE)
    assert said == "job 1800 s: 1.54 USD; endpoint: 1.98 USD so far, 0.99 USD/h"
    assert spending.costs(run, set(), NOW, TABLE) == "job 1800 s: 1.54 USD", "one that is gone costs nothing now"
    assert spending.costs(run, {name}, NOW, Table(())).count("price unknown") == 2


@pytest.mark.parametrize(("arguments", "code"), [(["rules"], 0), (["rules", "no/such"], 8)])
def test_every_command_says_it_in_one_line(run: Record, arguments: list[str], code: int) -> None:
    name = with_endpoint(run)
    command = [sys.executable, "-m", "harness", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("billed now")]
    assert len(said) == 1
    assert name in said[0]
    assert "0.99 USD/h" in said[0]
    assert name not in done.stdout
