"""What all List operations share: filters, order, pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from harness.emulator.errors import invalid

Row = dict[str, Any]


def page(
    rows: Iterable[Row], request: dict[str, Any], name: str, status: str = "", default_order: str = "Descending"
) -> tuple[list[Row], str | None]:
    """The rows of one page and the token of the next.

    `name` and `status` are the members of a row that NameContains and StatusEquals look at.
    """
    found = [row for row in rows if _fits(row, request, name, status)]
    by = {"Name": name, "Status": status}.get(request.get("SortBy", ""), "CreationTime")
    found.sort(key=lambda row: row[by], reverse=request.get("SortOrder", default_order) == "Descending")
    start, size = _offset(request.get("NextToken")), request.get("MaxResults", 10)
    following = start + size
    return found[start:following], (_token(following) if following < len(found) else None)


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
