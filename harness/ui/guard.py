"""Who may see the page: a browser that was given its token, on this machine.

Loopback alone does not keep others out: every user of this machine reaches it, and so does a web page that the
user's browser has open, by a form, a WebSocket, or a name that resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

HOSTS = ("127.0.0.1", "localhost")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware. `?token=` in an address becomes a cookie of the browser; else nothing is answered."""

    def __init__(self, app: Application, token: str, port: int) -> None:
        self.app, self.token = app, token
        self.cookie = f"harness-ui-{port}"  # cookies do not tell ports apart: another harness has its own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        refusal = self._refusal(headers, given)
        if refusal:
            await _refuse(scope, send, refusal)
        elif given and scope["type"] == "http":
            await self._remember(scope, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, headers: dict[str, str], given: str) -> str:
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS:
            return "this page answers to 127.0.0.1 and localhost only"
        if "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            return "another page may not call this one"
        if not any(_same(self.token, value) for value in (given, self._kept(headers.get("cookie", "")))):
            return "open the address that `harness ui` printed: it holds the token"
        return ""

    def _kept(self, header: str) -> str:
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found is not None else ""

    async def _remember(self, scope: Scope, send: Send) -> None:
        """Redirect to the address without the token, so that it stays out of the browser's history."""
        cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", scope["path"].encode()), (b"set-cookie", cookie.encode())]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _same(wanted: str, given: str) -> bool:
    return hmac.compare_digest(wanted.encode(), given.encode("utf-8", "surrogateescape"))


async def _refuse(scope: Scope, send: Send, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode() + b"\n"})
