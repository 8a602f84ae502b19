"""The resources of the local SageMaker: a table for each kind, and what Describe, List and Delete share."""

from __future__ import annotations

import base64
import binascii
import copy
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import files
from harness.local.api.errors import ApiError, invalid

Document = dict[str, Any]


class Table:
    """Files are written beside their name and renamed: after a crash each holds its last state or the one before.

    Names come from requests that botocore's patterns have let through, so they are safe as file names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._rows: dict[tuple[str, str], Document] = {}
        for partial in folder.glob("*/.*.partial"):
            partial.unlink()
        for path in sorted(folder.glob("*/*.json")):
            self._rows[path.parent.name, path.stem] = json.loads(path.read_text(encoding="utf-8"))

    def get(self, region: str, name: str) -> Document | None:
        """A copy of the document; None where there is none."""
        with self._lock:
            row = self._rows.get((region, name))
            return copy.deepcopy(row) if row is not None else None

    def add(self, region: str, name: str, document: Document) -> bool:
        """Store a new document; False where the name is taken."""
        with self._lock:
            if (region, name) in self._rows:
                return False
            self._write(region, name, copy.deepcopy(document))
            return True

    @contextmanager
    def changing(self, region: str, name: str) -> Iterator[Document]:
        """Change a document under the table's lock; it is written at the end. Raises KeyError where it is gone."""
        with self._lock:
            row = copy.deepcopy(self._rows[region, name])
            yield row
            self._write(region, name, row)

    def delete(self, region: str, name: str) -> None:
        with self._lock:
            self._rows.pop((region, name), None)
            self._path(region, name).unlink(missing_ok=True)

    def rows(self, region: str | None = None) -> list[tuple[str, str, Document]]:
        """(region, name, a copy of the document), of one region or of all."""
        with self._lock:
            return [(r, n, copy.deepcopy(d)) for (r, n), d in self._rows.items() if region in (None, r)]

    def _path(self, region: str, name: str) -> Path:
        return self.folder / region / f"{name}.json"

    def _write(self, region: str, name: str, document: Document) -> None:
        files.write_bytes(self._path(region, name), json.dumps(document).encode())
        self._rows[region, name] = document


Row = dict[str, Any]


def page(
    rows: Iterable[Row], request: dict[str, Any], name: str, status: str = "", pages_first: bool = False
) -> tuple[list[Row], str | None]:
    """The rows of one page and the token of the next.

    `name` and `status` are the members of a row that NameContains and StatusEquals look at. With `pages_first` they
    are looked at within a page, as ListTrainingJobs does: a page may be empty and have a next one.
    """
    by = {"Name": name, "Status": status}.get(request.get("SortBy", ""), "CreationTime")
    descending = request.get("SortOrder", "Descending") == "Descending"
    found = sorted(rows, key=lambda row: row[by], reverse=descending)
    if not pages_first:
        found = [row for row in found if _fits(row, request, name, status)]
    start, size = _offset(request.get("NextToken")), request.get("MaxResults", 10)
    shown = [row for row in found[start : start + size] if _fits(row, request, name, status)]
    return shown, (_token(start + size) if start + size < len(found) else None)


def _fits(row: Row, request: dict[str, Any], name: str, status: str) -> bool:
    if request.get("NameContains", "").lower() not in row[name].lower():
        return False
    if "StatusEquals" in request and row[status] != request["StatusEquals"]:
        return False
    for member in ("CreationTime", "LastModifiedTime"):
        if f"{member}After" in request and not row.get(member, 0) > request[f"{member}After"]:
            return False
        if f"{member}Before" in request and not row.get(member, 0) < request[f"{member}Before"]:
            return False
    return True


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(f"offset:{offset}".encode()).decode()


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        label, _, number = base64.urlsafe_b64decode(token).decode().partition(":")
        if label == "offset":
            return int(number)
    except (ValueError, binascii.Error):
        pass
    raise invalid("Invalid NextToken.")


Request = dict[str, Any]
Response = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """One kind: `name` is the member that names a resource, `shown` what a list says of it, under `plural`."""

    table: Callable[[Any], Table]
    name: str
    plural: str
    shown: tuple[str, ...]
    missing: Callable[[Any, str, str], ApiError]
    """What AWS answers where there is no resource of that region and name."""
    status: str = ""
    pages_first: bool = False
    """Whether a page is cut before NameContains and StatusEquals are looked at, so that it may be empty."""

    def find(self, service: Any, region: str, name: str) -> dict[str, Any]:
        """The document. Raises `missing`."""
        document = self.table(service).get(region, name)
        if document is None:
            raise self.missing(service, region, name)
        return document

    def describe(self, service: Any, region: str, request: Request) -> Response:
        """Describe."""
        found: Response = self.find(service, region, request[self.name])["describe"]
        return found

    def list(self, service: Any, region: str, request: Request) -> Response:
        """List: a page of summaries; members that a resource does not have yet are left out."""
        rows = [document["describe"] for _, _, document in self.table(service).rows(region)]
        found, token = page(rows, request, self.name, self.status, self.pages_first)
        summaries = [{member: row[member] for member in self.shown if member in row} for row in found]
        return {self.plural: summaries, **({"NextToken": token} if token else {})}

    def delete(self, service: Any, region: str, request: Request) -> Response:
        """Delete, for kinds that are nothing but records. AWS, too, lets one go that is still in use."""
        self.find(service, region, request[self.name])
        self.table(service).delete(region, request[self.name])
        return {}
