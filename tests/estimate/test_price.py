"""Costs by hand, equal to the cent; unknown stays unknown; the Price List API's answers."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

from hypothesis import given, strategies as st

from harness.estimate import price, pricelist
from harness.estimate.price import GB_MONTH, HOUR, Charge, Price, Table
from harness.spec import service_model as aws

US = "us-west-2"


def row(service: str, item: str, usd: str, unit: str = HOUR, region: str = US) -> Price:
    return Price(service, item, unit, region, Decimal(usd), "by hand", "2026-11-26", "confirmed")


TABLE = Table(
    (
        row(price.TRAINING, "ml.trn1.32xlarge", "24.725"),
        row(price.TRAINING, "ml.trn1.2xlarge", "1.545"),
        row(price.HOSTING, "ml.inf2.xlarge", "0.99"),
        row(price.TRAINING, price.VOLUME, "0.14", GB_MONTH),
    )
)


def test_part_hours_several_hosts_prepare_job_storage_and_spot_equal_the_sum_by_hand() -> None:
    charges = [
        Charge("training", price.TRAINING, "ml.trn1.32xlarge", 4, (1900, 1900)),
        Charge("training volume", price.TRAINING, price.VOLUME, 4, (1900, 1900), gb=200),
        Charge("prepare job", price.TRAINING, "ml.trn1.2xlarge", 1, (725, 725)),
        Charge("endpoint", price.HOSTING, "ml.inf2.xlarge", 1, (5400, 5400)),
    ]
    bill = price.bill(charges, TABLE, US)
    # 4 x 24.725 x 1900/3600 = 52.197222; 4 x 200 GB x 0.14 / 730 h x 1900/3600 h = 0.080974;
    # 1.545 x 725/3600 = 0.311146; 0.99 x 1.5 = 1.485; together 54.074342
    assert bill.total == (Decimal("54.07"), Decimal("54.07"))
    by_hand = ["52.20", "0.08", "0.31", "1.49"]
    assert [str(price.cents(line.high)) for line in bill.lines if line.high is not None] == by_hand


def test_spot_costs_a_tenth_to_all_of_it() -> None:
    bill = price.bill([Charge("training", price.TRAINING, "ml.trn1.32xlarge", 2, (3600, 7200), spot=True)], TABLE, US)
    # least: an hour of two at a tenth, 4.945; most: two hours of two in full, 98.90
    assert bill.total == (Decimal("4.95"), Decimal("98.90"))


def test_a_missing_price_makes_the_sum_unknown_and_never_zero() -> None:
    charges = [
        Charge("training", price.TRAINING, "ml.trn2.48xlarge", 1, (3600, 3600)),
        Charge("endpoint", price.HOSTING, "ml.inf2.xlarge", 1, (3600, 3600)),
    ]
    bill = price.bill(charges, TABLE, US)
    assert bill.total is None
    assert bill.known == (Decimal("0.99"), Decimal("0.99"))
    assert bill.lines[0].high is None
    assert "unknown" in bill.lines[0].note


def test_the_bare_instances_price_is_named_where_sagemakers_is_unknown() -> None:
    line = price.bill(
        [Charge("training", price.TRAINING, "ml.trn1.2xlarge", 1, (3600, 3600))], price.carried(), US
    ).lines[0]
    assert line.high is None
    assert "1.34375 USD/h" in line.note


def test_every_carried_row_has_source_date_and_status() -> None:
    rows = price.carried().rows
    assert len(rows) > 25
    for r in rows:
        assert r.source.startswith("https://")
        assert r.date[:4].isdigit()
        assert r.status in ("confirmed", "second-hand")
        assert r.usd > 0


def test_confirmed_goes_before_second_hand_and_newer_before_older() -> None:
    old = Price(price.HOSTING, "ml.inf2.xlarge", HOUR, US, Decimal("5"), "x", "2027-01-01", "second-hand")
    new = Price(price.HOSTING, "ml.inf2.xlarge", HOUR, US, Decimal("2"), "x", "2026-12-01", "confirmed")
    assert Table((old, new, *TABLE.rows)).find(price.HOSTING, "ml.inf2.xlarge", US) == new


def test_what_refresh_wrote_is_read_again_and_damage_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    assert price.with_refreshed(path) == price.carried()
    path.write_text(price.to_json(TABLE.rows))
    found = price.with_refreshed(path).find(price.TRAINING, "ml.trn1.2xlarge", US)
    assert found is not None
    assert found.usd == Decimal("1.545")
    for damaged in ("", "{}", '{"rows": [{"usd": "x"}]}', '{"rows": [{"usd": "1"}]}', "[]"):
        path.write_text(damaged)
        assert price.with_refreshed(path) == price.carried()


def item(service: str, attributes: dict[str, str], *usd: str) -> str:
    """A PriceList item of the recorded shape (AWS Price List API, format aws_v1)."""
    dimensions = {
        f"SKU.JRTCKXETXF.{n}": {
            "unit": "Hrs",
            "endRange": "Inf",
            "beginRange": "0",
            "appliesTo": [],
            "description": "...",
            "rateCode": f"SKU.JRTCKXETXF.{n}",
            "pricePerUnit": {"USD": value},
        }
        for n, value in enumerate(usd)
    }
    return json.dumps(
        {
            "product": {"productFamily": "x", "attributes": {"servicecode": service, **attributes}, "sku": "SKU"},
            "serviceCode": service,
            "terms": {
                "OnDemand": {
                    "SKU.JRTCKXETXF": {
                        "sku": "SKU",
                        "offerTermCode": "JRTCKXETXF",
                        "effectiveDate": "2026-11-01T00:00:00Z",
                        "priceDimensions": dimensions,
                        "termAttributes": {},
                    }
                }
            },
            "version": "20261101000000",
            "publicationDate": "2026-11-01T00:00:00Z",
        }
    )


ANSWERS = [
    item("AmazonSageMaker", {"regionCode": "us-west-2", "usagetype": "USW2-Train:ml.trn1.2xlarge"}, "1.5450000000"),
    item("AmazonSageMaker", {"regionCode": "us-east-1", "usagetype": "Host:ml.inf2.xlarge"}, "0.9850000000"),
    item("AmazonSageMaker", {"regionCode": "us-east-1", "usagetype": "USE1-Host:VolumeUsage.gp2"}, "0.1400000000"),
    item(
        "AmazonEC2",
        {"regionCode": "us-east-1", "usagetype": "BoxUsage:trn1.32xlarge", "instanceType": "trn1.32xlarge"},
        "21.5",
    ),
    item("AmazonSageMaker", {"regionCode": "us-east-1", "usagetype": "USE1-Train:ml.m5.large"}, "0.1"),
    item("AmazonSageMaker", {"regionCode": "us-east-1", "usagetype": "USE1-Notebk:ml.trn1.2xlarge"}, "9"),
    item(
        "AmazonEC2",
        {"regionCode": "us-east-1", "usagetype": "Reservation", "instanceType": "trn1.2xlarge"},
        "0.0000000000",
    ),
    "{}",
    "not JSON",
]


def test_refresh_keeps_what_is_ours_and_nothing_else() -> None:
    asked: list[dict] = []

    def pages(request: dict) -> list[str]:
        asked.append(request)
        return ANSWERS if request["ServiceCode"] == "AmazonSageMaker" else []

    rows = pricelist.refresh(pages, ["us-east-1"], "2026-11-26")
    found = {(r.service, r.item, r.region): (r.usd, r.unit, r.status, r.date) for r in rows}
    assert found == {
        (price.TRAINING, "ml.trn1.2xlarge", "us-west-2"): (Decimal("1.545"), HOUR, "confirmed", "2026-11-26"),
        (price.HOSTING, "ml.inf2.xlarge", "us-east-1"): (Decimal("0.985"), HOUR, "confirmed", "2026-11-26"),
        (price.HOSTING, price.VOLUME, "us-east-1"): (Decimal("0.14"), GB_MONTH, "confirmed", "2026-11-26"),
        (price.EC2, "trn1.32xlarge", "us-east-1"): (Decimal("21.5"), HOUR, "confirmed", "2026-11-26"),
    }
    for request in asked:
        aws.validate("pricing", "GetProducts", request)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(["product", "attributes", "terms", "OnDemand", "usagetype", "regionCode"]),
                x,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_answer_is_read_or_passed_over(value: object) -> None:
    pricelist.price_of(json.dumps(value), "2026-11-26")
