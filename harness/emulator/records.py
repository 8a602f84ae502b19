"""What Describe, List and Delete have in common, whatever the kind of resource."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.emulator import listing
from harness.emulator.errors import ApiError
from harness.emulator.service import Service, must
from harness.emulator.table import Table

Request = dict[str, Any]
Response = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """One kind: `name` is the member that names a resource, `shown` what a list says of it, under `plural`."""

    table: Callable[[Service], Table]
    name: str
    plural: str
    shown: tuple[str, ...]
    missing: Callable[[Service, str, str], ApiError]
    """What AWS answers where there is no resource of that region and name."""
    status: str = ""

    def find(self, service: Service, region: str, name: str) -> dict[str, Any]:
        """The document. Raises `missing`."""
        return must(self.table(service), region, name, self.missing(service, region, name))

    def describe(self, service: Service, region: str, request: Request) -> Response:
        """Describe."""
        found: Response = self.find(service, region, request[self.name])["describe"]
        return found

    def list(self, service: Service, region: str, request: Request) -> Response:
        """List: a page of summaries; members that a resource does not have yet are left out."""
        rows = [document["describe"] for _, _, document in self.table(service).rows(region)]
        found, token = listing.page(rows, request, self.name, self.status)
        summaries = [{member: row[member] for member in self.shown if member in row} for row in found]
        return {self.plural: summaries, **({"NextToken": token} if token else {})}

    def delete(self, service: Service, region: str, request: Request) -> Response:
        """Delete, for kinds that are nothing but records. AWS, too, lets one go that is still in use."""
        self.find(service, region, request[self.name])
        self.table(service).delete(region, request[self.name])
        return {}
