"""The reward server as a process: its address, its signals, how it starts and ends. `vtriune serve` runs it.

Endpoints are `app.py`'s, what is behind them `service.py`'s, judging the worker pool's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from vtriune.reward.app import create_app
from vtriune.reward.pool import AsyncJudgePool
from vtriune.reward.service import Service, Settings
from vtriune.types import UserError

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than a step of training between two requests often takes."""

CONNECTIONS = 4096
"""Open connections, idle ones included; beyond them uvicorn answers 503 in plain text."""


def serve(pool: AsyncJudgePool, settings: Settings, *, discovery: Path | None, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way.

    Args:
        pool: The workers, not started.
        settings: What the server is started with.
        discovery: Folder in which a file `IP:PORT` tells the released client where the server is.
        announce: Called with the address once the server listens.

    Raises:
        UserError: the address can't be used.
    """
    settings.check()
    try:
        listener = socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=1024,
        )
    except OSError as error:
        raise UserError(
            f"{settings.host}:{settings.port}: {error.strerror}; choose another --host or --port"
        ) from error
    service = Service(pool, settings)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        create_app(service),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=CONNECTIONS,
        # When grace is over the pool is closed, which settles what is left; this much longer to say so.
        timeout_graceful_shutdown=math.ceil(settings.grace) + 2,
    )
    server = _Server(config, service)
    told = [discovery / f"{_own_address(settings.host)}:{port}"] if discovery else []
    try:
        for file in told:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        announce(f"http://{host}:{port}")
        # What a batch consists of is many objects and no cycles: to look for some every 700 objects, among all that is
        # remembered, is a fifth of the work.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        server.run(sockets=[listener])
    finally:
        for file in told:
            file.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """Uvicorn that answers 503 while it drains, and ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._drain)
        yield

    def _drain(self) -> None:
        self.force_exit = self._service.draining  # told twice
        self._service.draining = self.should_exit = True
        self._loop.call_later(self._service.settings.grace, self._give_up)

    def _give_up(self) -> None:
        self._closing = self._loop.create_task(self._service.pool.close())


def _own_address(host: str) -> str:
    """The address under which others reach a server that listens on `host`."""
    if host not in ("0.0.0.0", "::"):
        return host
    try:
        # Nothing is sent: the kernel only says from where it would go to the world outside.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
