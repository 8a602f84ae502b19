"""What it costs: a small dated price table, and arithmetic that is equal to the bill's to the cent.

Amounts are Decimal. A price that is not in the table is unknown and makes the sum unknown; it is never 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

EC2, TRAINING, HOSTING = "ec2", "sagemaker-training", "sagemaker-hosting"
HOUR, GB_MONTH = "hour", "gb-month"
VOLUME = "volume"
HOURS_PER_MONTH = 730  # how AWS's own calculator turns GB-months into hours
CENT = Decimal("0.01")
# "Managed Spot Training can optimize the cost of training models up to 90% over on-demand instances."
# https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html
SPOT_AT_LEAST = Decimal("0.1")


@dataclass(frozen=True)
class Price:
    """One row: what one unit of `item` costs in `region`, who says so, and when."""

    service: str
    item: str
    unit: str
    region: str
    usd: Decimal
    source: str
    date: str
    status: str
    """"confirmed" by AWS itself, or "second-hand"."""


@dataclass(frozen=True)
class Table:
    """Every price that is known."""

    rows: tuple[Price, ...]

    def find(self, service: str, item: str, region: str, unit: str = HOUR) -> Price | None:
        """The price, or None: unknown. A confirmed row goes before a second-hand one, the newer before the older."""
        found = [r for r in self.rows if (r.service, r.item, r.region, r.unit) == (service, item, region, unit)]
        return max(found, key=lambda r: (r.status == "confirmed", r.date), default=None)

    def regions_of(self, service: str, item: str) -> list[Price]:
        """The best row of every region that has one, cheapest first."""
        rows = {r.region for r in self.rows if (r.service, r.item, r.unit) == (service, item, HOUR)}
        found = [self.find(service, item, region) for region in rows]
        return sorted((r for r in found if r), key=lambda r: (r.usd, r.region))


@lru_cache(maxsize=1)
def carried() -> Table:
    """The table that comes with the package."""
    raw = json.loads(files("harness.estimate").joinpath("data/prices.json").read_text(encoding="utf-8"))
    rows = []
    for item in raw["rows"]:
        source = raw["sources"][item["source"]]
        for region in item["regions"]:
            rows.append(
                Price(
                    service=item["service"],
                    item=item["item"],
                    unit=item["unit"],
                    region=region,
                    usd=Decimal(item["usd"]),
                    source=source["url"],
                    date=source["date"],
                    status=source["status"],
                )
            )
    return Table(tuple(rows))


def with_refreshed(path: Path) -> Table:
    """The carried table and what `harness prices --refresh` wrote to `path`, if anything."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        more = tuple(Price(**{**row, "usd": Decimal(row["usd"])}) for row in raw["rows"])
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError):
        return carried()  # never refreshed, or by another version of this program
    return Table((*carried().rows, *more))


def to_json(rows: Iterable[Price]) -> str:
    """What with_refreshed reads."""
    return json.dumps({"rows": [{**asdict(r), "usd": str(r.usd)} for r in rows]}, indent=1) + "\n"


@dataclass(frozen=True)
class Charge:
    """Something that is billed by time: `count` instances for `seconds`, or volumes of `gb` for that time."""

    what: str
    service: str
    item: str
    count: int
    seconds: tuple[float, float]
    """At least, at most."""
    spot: bool = False
    gb: int = 0
    """Size of each volume; 0 for an instance."""


@dataclass(frozen=True)
class Line:
    """A charge with its amounts: None where the price is unknown."""

    charge: Charge
    price: Price | None
    low: Decimal | None
    high: Decimal | None
    note: str = ""


@dataclass(frozen=True)
class Bill:
    """Every line. `known` sums what has a price; the total is unknown if one line is."""

    lines: tuple[Line, ...]

    @property
    def complete(self) -> bool:
        return all(line.high is not None for line in self.lines)

    @property
    def known(self) -> tuple[Decimal, Decimal]:
        low = sum((line.low or Decimal(0) for line in self.lines), Decimal(0))
        high = sum((line.high or Decimal(0) for line in self.lines), Decimal(0))
        return cents(low), cents(high)

    @property
    def total(self) -> tuple[Decimal, Decimal] | None:
        return self.known if self.complete else None


def cents(amount: Decimal) -> Decimal:
    return amount.quantize(CENT, ROUND_HALF_UP)


def amount(usd: Decimal, seconds: float, count: int = 1, gb: int = 0) -> Decimal:
    """USD, not rounded: per second of an hourly price (SageMaker and EC2 bill by the second), or of a GB-month."""
    hours = Decimal(str(seconds)) / 3600
    return usd * hours * count * (Decimal(gb) / HOURS_PER_MONTH if gb else 1)


def bill(charges: Iterable[Charge], table: Table, region: str) -> Bill:
    """Every charge at the region's price."""
    return Bill(tuple(_line(charge, table, region) for charge in charges))


def _line(charge: Charge, table: Table, region: str) -> Line:
    unit = GB_MONTH if charge.gb else HOUR
    price = table.find(charge.service, charge.item, region, unit)
    if price is None:
        return Line(charge, None, None, None, _hint(charge, table, region))
    low, high = (amount(price.usd, s, charge.count, charge.gb) for s in charge.seconds)
    if charge.spot:
        return Line(
            charge, price, low * SPOT_AT_LEAST, high, "spot: from a tenth of the price on demand to all of it"
        )
    return Line(charge, price, low, high)


def _hint(charge: Charge, table: Table, region: str) -> str:
    """What is known instead: the bare instance's price is a lower bound of SageMaker's."""
    if charge.gb:
        return "the price of the volume is unknown; it is small beside the instance's"
    bare = table.find(EC2, charge.item.removeprefix("ml."), region)
    if bare is not None and charge.service != EC2:
        low, high = (cents(amount(bare.usd, s, charge.count)) for s in charge.seconds)
        return f"unknown; on EC2 it is {bare.usd} USD/h in {region}, so at least about {low} to {high} USD"
    elsewhere = table.regions_of(charge.service, charge.item)
    known = f"; known in {', '.join(r.region for r in elsewhere[:4])}" if elsewhere else ""
    return f"unknown in {region}{known}; harness prices --refresh asks AWS"


def per_hour(lines: Iterable[tuple[str, str, int]], table: Table, region: str) -> Decimal | None:
    """USD per hour of what is running: (service, item, count) each; None where one price is unknown."""
    out = Decimal(0)
    for service, item, count in lines:
        price = table.find(service, item, region)
        if price is None:
            return None
        out += price.usd * count
    return out


def plain(value: Any) -> Any:
    """Decimals as strings, for JSON: a float would invent digits."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
