"""What stands around every request of the dashboard: who may ask, the security headers, and errors as JSON. Pure ASGI.

Nothing here knows what is asked.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtriune.watch.replies import error

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every reply. Text of runs is shown as text; if it ever were not, it could still load and run nothing."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Refuses foreign names in Host, adds the headers, answers 500 for what nobody caught.

    Args:
        app: What is guarded.
        any_host: Answer to every name. Without it a hostile web page whose own name is made to mean 127.0.0.1 (DNS
            rebinding) would be let in by the browser as its own server.
    """

    app: ASGIApp
    any_host: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False
        kept = "no-cache" if scope["path"].startswith("/static/") else "no-store"

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in (HEADERS | {"Cache-Control": kept}).items():
                    headers[name] = value
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if not self.any_host and not _is_local(host):
            reply = error(
                403, "this server answers to 127.0.0.1 and localhost only; start it with --host to reach it by a name"
            )
            await reply(scope, receive, with_headers)
            return
        try:
            await self.app(scope, receive, with_headers)
        except Exception as fault:
            logging.getLogger("vtriune.watch").exception("%s failed", ascii(scope["path"])[:200])
            if started:
                raise
            reply = error(500, f"a fault of the server's own, see its terminal: {type(fault).__name__}")
            await reply(scope, receive, with_headers)


def _is_local(host: str) -> bool:
    name = host if host.endswith("]") else host.rsplit(":", 1)[0]
    return is_loopback(name.removeprefix("[").removesuffix("]"))


def is_loopback(host: str) -> bool:
    """Does `host`, a name or an address, mean this machine and that to itself alone?

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
