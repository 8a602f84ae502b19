"""Requests that nobody means well with, and the status each gets: for the parser alone and for a whole endpoint."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Hostile(NamedTuple):
    name: str
    body: bytes
    status: int
    """What it is refused with; 200: it is odd, and answered."""
    content_type: str = "application/json"


def _lmi(parameters: str) -> bytes:
    return b'{"inputs": "a", "parameters": {"max_new_tokens": 1, ' + parameters.encode() + b"}}"


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _chat(**more: Any) -> bytes:
    return _dump({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **more})


DEEP = 100_000
REQUESTS = (
    # Not JSON
    Hostile("empty", b"", 400),
    Hostile("spaces", b" \n\t ", 400),
    Hostile("zero-bytes", b"\x00" * 64, 400),
    Hostile("random", bytes(range(256)), 400),
    Hostile("half", b'{"inputs": "a', 400),
    Hostile("trailing", b'{"inputs": "a"} x', 400),
    Hostile("two", b'{"inputs": "a"}{"inputs": "b"}', 400),
    Hostile("single-quotes", b"{'inputs': 'a'}", 400),
    Hostile("comment", b'{"inputs": "a" /* no */}', 400),
    Hostile("trailing-comma", b'{"inputs": "a",}', 400),
    Hostile("utf-16", '{"inputs": "a"}'.encode("utf-16"), 400),
    Hostile("latin-1", '{"inputs": "é"}'.encode("latin-1"), 400),
    Hostile("overlong-utf-8", b'{"inputs": "\xc0\xaf"}', 400),
    Hostile("cut-utf-8", b'{"inputs": "\xe2\x82"}', 400),
    Hostile("surrogate-bytes", b'{"inputs": "\xed\xa0\x80"}', 400),
    Hostile("lone-surrogate", b'{"inputs": "\\ud800"}', 400),
    Hostile("lone-low-surrogate", b'{"inputs": "\\udc00 a"}', 400),
    Hostile("surrogate-key", b'{"inputs": "a", "\\ud800": 1}', 400),
    Hostile("newline-in-string", b'{"inputs": "a\nb"}', 400),
    Hostile("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", 400),
    Hostile("deep-array", b"[" * DEEP, 400),
    Hostile("deep-array-closed", b"[" * DEEP + b"]" * DEEP, 400),
    Hostile("deep-object", b'{"a":' * DEEP + b"1" + b"}" * DEEP, 400),
    Hostile("deep-inputs", b'{"inputs": ' + b"[" * DEEP + b"]" * DEEP + b"}", 400),
    # JSON, and no request
    Hostile("null", b"null", 400),
    Hostile("number", b"1", 400),
    Hostile("string", b'"inputs"', 400),
    Hostile("array", b'[{"inputs": "a"}]', 400),
    Hostile("no-field", b"{}", 400),
    Hostile("all-fields", _dump({"inputs": "a", "prompt": "a", "messages": []}), 400),
    Hostile("inputs-object", _dump({"inputs": {"text": "a"}}), 400),
    Hostile("inputs-nested", _dump({"inputs": [["a"]]}), 400),
    Hostile("inputs-null-in-list", _dump({"inputs": ["a", None]}), 400),
    Hostile("inputs-empty", _dump({"inputs": ""}), 400),
    Hostile("parameters-list", _dump({"inputs": "a", "parameters": [1]}), 400),
    Hostile("a-newline-in-a-name", _dump({"inputs": "a", "x\r\nSet-Cookie: a=b": 1}), 400),
    Hostile("a-zero-in-a-name", _dump({"inputs": "a", "x\x00\x1b[31m": 1}), 400),
    Hostile("a-long-name", _dump({"inputs": "a", "x" * 50_000: 1}), 400),
    Hostile("many-names", _dump({"inputs": "a", **{f"x{i}": i for i in range(2000)}}), 400),
    # Numbers
    Hostile("nan", _lmi('"temperature": NaN'), 400),
    Hostile("infinity", _lmi('"temperature": Infinity'), 400),
    Hostile("minus-infinity", _lmi('"temperature": -Infinity'), 400),
    Hostile("overflow", _lmi('"temperature": 1e400'), 400),
    Hostile("negative-temperature", _lmi('"temperature": -1'), 400),
    Hostile("temperature-text", _lmi('"temperature": "1.0"'), 400),
    Hostile("huge-integer", _lmi('"top_k": ' + "9" * 400), 400),
    Hostile("digits", _lmi('"top_k": ' + "9" * 20_000), 400),
    Hostile("seed-65-bits", _lmi(f'"seed": {2**64}'), 400),
    Hostile("seed-below-64-bits", _lmi(f'"seed": {-(2**63) - 1}'), 400),
    Hostile("tokens-negative", b'{"inputs": "a", "parameters": {"max_new_tokens": -1}}', 400),
    Hostile("tokens-true", b'{"inputs": "a", "parameters": {"max_new_tokens": true}}', 400),
    Hostile("penalty-zero", _lmi('"repetition_penalty": 0'), 400),
    Hostile("stop-empty-text", _lmi('"stop": [""]'), 400),
    Hostile("stop-many", _lmi('"stop": ' + json.dumps(["x"] * 5000)), 400),
    Hostile("stop-twice", _lmi('"stop": ["a"], "stop_sequences": ["b"]'), 400),
    # OpenAI's
    Hostile("messages-null", _dump({"messages": [None]}), 400),
    Hostile("messages-text", _dump({"messages": "a"}), 400),
    Hostile("role-unknown", _dump({"messages": [{"role": "root", "content": "a"}]}), 400),
    Hostile("content-image", _dump({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), 400),
    Hostile("tools", _chat(tools=[{"type": "function", "function": {"name": "rm"}}]), 400),
    Hostile("schema", _chat(response_format={"type": "json_schema", "json_schema": {}}), 400),
    Hostile("bias-of-no-token", _chat(logit_bias={"99999999999999999999": 1}), 400),
    Hostile("bias-of-text", _chat(logit_bias={"\u0661": 1}), 400),
    Hostile("bias-too-large", _chat(logit_bias={"1": 1e9}), 400),
    Hostile("n-million", _chat(n=1_000_000), 422),
    Hostile("prompts-many", _dump({"prompt": ["a"] * 10_000, "max_tokens": 1}), 422),
    Hostile("ids-beyond", _dump({"prompt": [2**31], "max_tokens": 1}), 422),
    Hostile("ids-of-floats", _dump({"prompt": [1.5], "max_tokens": 1}), 400),
    Hostile("ids-mixed", _dump({"prompt": [1, [2]], "max_tokens": 1}), 400),
    # Size and type
    Hostile("prompt-24-mb", b'{"inputs": "' + b"ab " * 8_000_000 + b'"}', 413),
    Hostile("spaces-24-mb", b" " * 24_000_000 + b'{"inputs": "a"}', 413),
    Hostile("plain-text", b"Once upon a time", 415, "text/plain"),
    Hostile("csv", b"a,b", 415, "text/csv"),
    Hostile("npy", b"\x93NUMPY", 415, "application/x-npy"),
    Hostile("pickle", b"\x80\x04.", 415, "application/python-pickle"),
    Hostile("charset", '{"inputs": "é"}'.encode("latin-1"), 415, "application/json; charset=latin-1"),
    Hostile("nonsense-type", b'{"inputs": "a"}', 415, "json"),
    # Odd, and answered
    Hostile("bom", b"\xef\xbb\xbf" + _lmi('"seed": 1'), 200),
    Hostile("nulls", _lmi('"stop": null, "seed": null, "temperature": null'), 200),
    Hostile("escaped-zero", b'{"inputs": "a\\u0000b", "parameters": {"max_new_tokens": 1}}', 200),
    Hostile("emoji", _dump({"inputs": "\U0001f600" * 20, "parameters": {"max_new_tokens": 1}}), 200),
    Hostile("no-type", _lmi('"seed": 1'), 200, ""),
    Hostile("octet-stream", _lmi('"seed": 1'), 200, "application/octet-stream"),
    Hostile("whole-float", b'{"inputs": "a", "parameters": {"max_new_tokens": 1.0}}', 200),
)
