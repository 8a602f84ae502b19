"""The spend guard's arithmetic and requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from harness.errors import InvalidInput
from harness.estimate import price, spend
from harness.spec import service_model as aws
from tests.estimate.test_price import TABLE, US

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
ROLE = "arn:aws:iam::123456789012:role/neuron-expiry"


def alive(item: str, service: str, hours: float, count: int = 1) -> spend.Alive:
    return spend.Alive("endpoint", f"run-{item}", US, service, item, count, NOW - timedelta(hours=hours))


def test_the_limit_becomes_a_run_time() -> None:
    # 10 USD / (2 x 1.545 USD/h) = 3.23625 h = 11650.48 s
    assert spend.runtime_within(Decimal(10), Decimal("1.545"), 2, 86400) == 11650
    assert spend.runtime_within(Decimal(1000), Decimal("1.545"), 1, 7200) == 7200


@given(st.decimals("0.1", "5000", places=2), st.decimals("0.1", "100", places=3), st.integers(1, 64))
def test_the_run_time_never_costs_more_than_the_limit(usd: Decimal, rate: Decimal, count: int) -> None:
    try:
        seconds = spend.runtime_within(usd, rate, count, 28 * 86400)
    except InvalidInput:
        assert rate * count * spend.MIN_RUNTIME > usd * 3600
        return
    assert rate * count * seconds <= usd * 3600


def test_less_than_a_minute_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(InvalidInput, match=r"0\.01 USD buy 1 s of 1 instance"):
        spend.runtime_within(Decimal("0.01"), Decimal("24.725"), 1, 7200)


def test_a_limit_needs_known_prices_and_refuses_what_may_cost_more() -> None:
    assert (
        "no price is known for ml.trn2.48xlarge" in spend.check_limit(Decimal(5), None, ["ml.trn2.48xlarge"])[0].what
    )
    assert "may cost 5.01 USD" in spend.check_limit(Decimal(5), Decimal("5.009"), [])[0].what
    assert spend.check_limit(Decimal(5), Decimal("5"), []) == []


def test_cost_so_far_and_per_hour() -> None:
    assert spend.so_far(alive("ml.inf2.xlarge", price.HOSTING, 2.5, 2), TABLE, NOW) == (
        Decimal("4.95"),
        Decimal("1.98"),
    )
    assert spend.so_far(alive("ml.inf2.48xlarge", price.HOSTING, 1), TABLE, NOW) == (None, None)


def test_one_line_says_what_is_alive() -> None:
    assert spend.line([], TABLE, NOW) == ""
    both = [alive("ml.inf2.xlarge", price.HOSTING, 1), alive("ml.inf2.48xlarge", price.HOSTING, 1)]
    text = spend.line(both, TABLE, NOW)
    assert "0.99 USD so far, 0.99 USD/h, some prices unknown" in text
    assert "harness down" in text
    assert "\n" not in text
    assert "unknown price" in spend.line(both[1:], TABLE, NOW)


def test_the_schedule_is_what_eventbridge_takes() -> None:
    expires = datetime(2026, 11, 27, 1, tzinfo=timezone(timedelta(hours=2)))
    request = spend.schedule_request(
        "tinyllama-20261126-ab12-tuned", expires, ROLE, "arn:aws:kms:us-west-2:123456789012:key/1"
    )
    aws.validate("scheduler", "CreateSchedule", request)
    assert request["ScheduleExpression"] == "at(2026-11-26T23:00:00)"
    assert request["ScheduleExpressionTimezone"] == "UTC"
    assert request["ActionAfterCompletion"] == "DELETE"
    assert request["Target"]["Input"] == '{"EndpointName": "tinyllama-20261126-ab12-tuned"}'
    with pytest.raises(ValueError, match="time zone"):
        spend.schedule_request("x", datetime(2026, 1, 1), ROLE)


@given(st.from_regex(r"[a-zA-Z0-9](-?[a-zA-Z0-9]){0,62}", fullmatch=True))
def test_any_endpoint_name_makes_a_valid_schedule(name: str) -> None:
    aws.validate("scheduler", "CreateSchedule", spend.schedule_request(name, NOW, ROLE))


def test_the_roles_policies_and_what_doctor_says_of_a_wrong_one() -> None:
    assert spend.check_trust(spend.trust_policy("123456789012"), ROLE) == []
    wrong = spend.trust_policy("123456789012")
    wrong["Statement"][0]["Principal"] = {"Service": ["sagemaker.amazonaws.com"]}
    assert "cannot assume" in spend.check_trust(wrong, ROLE)[0].what
    assert spend.check_trust({}, ROLE)
    allowed = spend.permission_policy("123456789012")["Statement"][0]
    assert allowed["Action"] == "sagemaker:DeleteEndpoint"
