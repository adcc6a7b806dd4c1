"""The dashboard as a process: its address and how it starts. `vtriune watch` runs it; endpoints are app.py's."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from vtriune.types import UserError
from vtriune.watch.app import create_app
from vtriune.watch.guard import is_loopback

LOOPBACK = "127.0.0.1"


def serve(root: Path, *, host: str = LOOPBACK, port: int, announce: Callable[[str], None]) -> None:
    """Serve the runs in `root` until Ctrl-C or SIGTERM; `announce` is called with the address once it listens.

    Raises:
        UserError: the folder or the address can't be used.
    """
    app = create_app(root, any_host=not is_loopback(host))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}; choose another --host or --port") from error
    config = uvicorn.Config(
        app,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends, and then raises it once more
    announce(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
