"""What stands before every request: who may ask, how much, and while the server still serves. Pure ASGI.

Nothing here knows what is asked.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("vtriune.serve")
OPEN = frozenset({"/healthz"})
"""Paths that need no token."""


BODIES = 8
"""Bodies of the greatest size whose bytes may be held at a time, by however many requests."""


@dataclass(slots=True)
class Guard:
    """Answers 413, 401, 421, 429 and 503 by itself, with `{"detail": why}`; passes on what is in order; logs all of it.

    Args:
        app: What is guarded.
        max_body: Bytes of a request's body.
        token: Wanted as `Authorization: Bearer ...`; empty: none is.
        local_only: Refuse requests addressed to another host name, as a hostile web page makes a browser send them.
        draining: Whether the server is about to end.
    """

    app: ASGIApp
    max_body: int
    token: str
    local_only: bool
    draining: Callable[[], bool]
    held: int = field(default=0, init=False)
    """Bytes of bodies of requests that are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = dict(scope["headers"])
        refused = self._refused(scope["path"], headers)
        if refused:
            await _answer(noting, *refused)
        else:
            size = [0]
            try:
                await self.app(scope, self._counted(receive, size), noting)
            finally:
                self.held -= size[0]
        # The path comes from outside and may hold anything, line breaks included.
        took = 1000 * (time.perf_counter() - began)
        LOG.info("%s %s %d %.1f ms", scope["method"], ascii(scope["path"])[:200], status, took)

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self.local_only and not _is_local(headers.get(b"host", b"").decode("latin-1")):
            return (
                421,
                "this server answers to 127.0.0.1 and localhost only; start it with --host to be reached by name",
            )
        if self.token and path not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                return 401, "a token is wanted: Authorization: Bearer ..."
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.max_body:
            return 413, self._too_large()
        if self.draining() and path not in OPEN:
            return 503, "the server is about to end; ask another one"
        return None

    def _too_large(self) -> str:
        return f"the body is larger than {self.max_body} bytes; send fewer items"

    def _counted(self, receive: Receive, size: list[int]) -> Receive:
        """`receive` with an eye on how much comes in. An HTTPException is what the application answers as it stands."""

        async def counting() -> Message:
            message = await receive()
            more = len(message.get("body", b""))
            size[0] += more
            self.held += more
            if size[0] > self.max_body:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            if self.held > BODIES * self.max_body:
                headers = {"Connection": "close", "Retry-After": "1"}
                raise HTTPException(429, "too much is waiting; ask again later", headers)
            return message

        return counting


def _is_local(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name in ("localhost", "127.0.0.1", "[::1]")


async def _answer(send: Send, status: int, detail: str) -> None:
    body = orjson.dumps({"detail": detail})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (413, 503):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
