"""application/vnd.amazon.eventstream: the frames of a response stream.

A frame is: total length, length of the headers, CRC-32 of both; headers; payload; CRC-32 of all before it. Numbers
are big-endian. Source: Smithy's specification "Amazon Event Stream" and botocore.eventstream, which reads it.
"""

from __future__ import annotations

import json
import struct
import zlib

CONTENT_TYPE = "application/vnd.amazon.eventstream"
STRING = 7  # type of a header's value
MAX_PART = 1 << 20  # bytes of payload in one frame; the format allows 16 MB


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message."""
    encoded = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack("!II", 16 + len(encoded) + len(payload), len(encoded))
    head = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return head + struct.pack("!I", zlib.crc32(head))


def _header(name: str, value: str) -> bytes:
    key, text = name.encode(), value.encode()
    return struct.pack("!B", len(key)) + key + struct.pack("!BH", STRING, len(text)) + text


def part(payload: bytes) -> bytes:
    """A PayloadPart."""
    headers = {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}
    return frame(headers, payload)


def exception(kind: str, message: str, **members: str) -> bytes:
    """ModelStreamError or InternalStreamFailure: the end of a stream that broke."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps({"Message": message, **members}).encode())
