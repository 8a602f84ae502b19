"""Prices from AWS itself: requests to the Price List API and what its answers say. No client: calls are passed in.

https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_pricing_GetProducts.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from harness.estimate.hardware import instances
from harness.estimate.price import EC2, GB_MONTH, HOSTING, HOUR, TRAINING, VOLUME, Price

# The API answers in these regions only, for all regions' prices.
API_REGION = "us-east-1"
SOURCE = "AWS Price List API (informational; the bill decides)"
# "USE1-Train:ml.m5.large", "Host:ml.inf2.xlarge" (no prefix in us-east-1), "USW2-Host:VolumeUsage.gp2"
USAGE = re.compile(r"(?:^|-)(Train|Host):(?:(ml\.[a-z0-9]+\.[a-z0-9]+)|(VolumeUsage\.gp2))$")
SERVICES = {"Train": TRAINING, "Host": HOSTING}

Pages = Callable[[dict[str, Any]], Iterable[Any]]
"""One GetProducts request -> its PriceList items over all pages, each a JSON string."""


def requests(regions: Iterable[str]) -> Iterator[dict[str, Any]]:
    """GetProducts requests for every Neuron instance, on EC2 and on SageMaker, and for SageMaker's volumes."""

    def match(**fields: str) -> list[dict[str, str]]:
        return [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in fields.items()]

    for region in regions:
        for name in instances():
            usage = {
                "operatingSystem": "Linux",
                "tenancy": "Shared",
                "preInstalledSw": "NA",
                "capacitystatus": "Used",
            }
            yield {"ServiceCode": "AmazonEC2", "Filters": match(regionCode=region, instanceType=name, **usage)}
        yield {"ServiceCode": "AmazonSageMaker", "Filters": match(regionCode=region, productFamily="ML Instance")}
        yield {"ServiceCode": "AmazonSageMaker", "Filters": match(regionCode=region, productFamily="Storage")}


def refresh(pages: Pages, regions: Iterable[str], today: str) -> list[Price]:
    """Every price that AWS gives for `regions`, as confirmed rows of `today`. Raises what `pages` raises."""
    found = {}
    for request in requests(regions):
        for item in pages(request):
            row = price_of(item, today)
            if row is not None:
                found[row.service, row.item, row.unit, row.region] = row
    return list(found.values())


def price_of(item: str | dict[str, Any], today: str) -> Price | None:
    """One PriceList item, or None: not one of ours, not on demand, or free."""
    try:
        raw = json.loads(item) if isinstance(item, str) else item
        attributes, usd = raw["product"]["attributes"], _usd(raw["terms"]["OnDemand"])
        region = attributes["regionCode"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    named = _named(attributes)
    if named is None or usd is None:
        return None
    service, name, unit = named
    return Price(service, name, unit, region, usd, SOURCE, today, "confirmed")


def _named(attributes: dict[str, Any]) -> tuple[str, str, str] | None:
    usage = USAGE.search(str(attributes.get("usagetype", "")))
    if usage:
        kind, instance, volume = usage.groups()
        if volume:
            return SERVICES[kind], VOLUME, GB_MONTH
        return (SERVICES[kind], instance, HOUR) if instance.removeprefix("ml.") in instances() else None
    name = attributes.get("instanceType")
    if attributes.get("servicecode") == "AmazonEC2" and name in instances():
        return EC2, str(name), HOUR
    return None


def _usd(terms: dict[str, Any]) -> Decimal | None:
    """The one price above 0 of an on-demand offer; None where there is none, or several steps."""
    found = []
    for term in terms.values():
        for dimension in term["priceDimensions"].values():
            try:
                value = Decimal(dimension["pricePerUnit"]["USD"])
            except (KeyError, InvalidOperation, TypeError):
                continue
            if value.is_finite() and value > 0:
                found.append(value)
    return found[0] if len(found) == 1 else None
