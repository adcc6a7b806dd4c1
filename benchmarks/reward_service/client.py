"""Load generators, each run in a process of its own: cheap keep-alive clients, and one that behaves as the released.

What is sent and what the answers are worth is not decided here.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

import httptools
import uvloop
from benchmarks.reward_service.servers import cpu_seconds

P = ParamSpec("P")
T = TypeVar("T")


APART = 0.2
"""Seconds between the first of the requests that are sent beside others: each meets a process that is free, if any."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of the request at `index`: seconds it took, HTTP status (0: connection lost), body."""

    index: int
    seconds: float
    status: int
    body: bytes


@dataclass(slots=True)
class Measured:
    """One run of load: its replies by order of arrival, and what it took."""

    replies: list[Reply] = field(default_factory=list)
    wall: float = 0.0
    server_cpu: float = 0.0
    client_cpu: float = 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._on_part: Callable[[bytes], None] | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def request(self, request: bytes, on_part: Callable[[bytes], None] | None = None) -> tuple[int, bytes]:
        """Status and body; `on_part` sees the body's parts as they come in. Status 0: the server hung up."""
        self._done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._on_part = on_part
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or self.closed:
            return 0, b""
        self._transport.write(request)
        return await self._done, b"".join(self._parts)

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a connection's transport is a Transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if hasattr(self, "_done") and not self._done.done():
            self._done.set_result(0)

    # What the parser calls.

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)
        if self._on_part:
            self._on_part(part)

    def on_message_complete(self) -> None:
        if not self._done.done():
            self._done.set_result(self._parser.get_status_code())


def post(path: str, body: bytes) -> bytes:
    """A whole request, ready to be sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work` in a fresh process, so that a client shares nothing with whoever prepared its load."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def closed_loop(port: int, pid: int, requests: Sequence[bytes], concurrency: int, seconds: float) -> Measured:
    """`concurrency` keep-alive connections, each with the next request as soon as it has its reply."""
    measured = Measured()
    pending = iter(enumerate(requests))

    async def ask(connection: Connection, end: float) -> None:
        for index, request in pending:
            start = time.perf_counter()
            status, body = await connection.request(request)
            measured.replies.append(Reply(index, time.perf_counter() - start, status, body))
            if not status:
                connection = await Connection.open(port)
            if time.perf_counter() > end:
                break
        connection.close()

    async def main() -> None:
        connections = [await Connection.open(port) for _ in range(concurrency)]
        with _Meter(measured, pid):
            end = time.perf_counter() + seconds
            await asyncio.gather(*(ask(connection, end) for connection in connections))

    run(main())
    return measured


def open_loop(
    port: int, pid: int, requests: Sequence[bytes], rate: float, seed: int = 0, beside: Sequence[Sequence[bytes]] = ()
) -> Measured:
    """Requests arrive by a Poisson process of `rate` per second, whether or not earlier ones have been answered.

    A request's time counts from when it was due. `beside`: meanwhile each of these lists is sent, too, on a connection
    of its own, the next request as soon as the last has its reply, until the measured ones are through.
    """
    measured = Measured()
    idle: list[Connection] = []
    rng = random.Random(seed)

    async def ask(index: int, due: float) -> None:
        connection = idle.pop() if idle else await Connection.open(port)
        if connection.closed:  # idle for longer than the server likes
            connection = await Connection.open(port)
        status, body = await connection.request(requests[index])
        measured.replies.append(Reply(index, time.perf_counter() - due, status, body))
        if status:
            idle.append(connection)

    async def keep_busy(others: Sequence[bytes], after: float) -> None:
        await asyncio.sleep(after)
        for request in others:
            connection = await Connection.open(port)
            await connection.request(request)
            connection.close()

    async def main() -> None:
        others = [asyncio.create_task(keep_busy(one, n * APART)) for n, one in enumerate(beside)]
        with _Meter(measured, pid):
            due = time.perf_counter()
            tasks = []
            for index in range(len(requests)):
                due += rng.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(ask(index, due)))
            await asyncio.gather(*tasks)
        for task in others:
            task.cancel()

    run(main())
    return measured


def as_released(port: int, pid: int, requests: Sequence[bytes], concurrency: int, seconds: float) -> Measured:
    """The released client's way: threads, and for each request a new event loop and a new connection.

    Without what aiohttp itself costs, so that the baseline is rather flattered.
    """
    measured = Measured()
    pending = iter(enumerate(requests))
    lock = threading.Lock()

    async def ask(request: bytes) -> tuple[int, bytes]:
        try:
            connection = await Connection.open(port)
        except OSError:
            return 0, b""
        reply = await connection.request(request)
        connection.close()
        return reply

    def serve(end: float) -> None:
        while time.perf_counter() < end:
            with lock:
                index, request = next(pending, (-1, b""))
            if index < 0:
                return
            start = time.perf_counter()
            status, body = asyncio.run(ask(request))
            measured.replies.append(Reply(index, time.perf_counter() - start, status, body))

    with ThreadPoolExecutor(concurrency) as pool, _Meter(measured, pid):
        end = time.perf_counter() + seconds
        for thread in [pool.submit(serve, end) for _ in range(concurrency)]:
            thread.result()
    return measured


class _Meter:
    """Fills in the wall-clock and CPU time of what happens within it."""

    def __init__(self, measured: Measured, pid: int) -> None:
        self._measured, self._pid = measured, pid

    def __enter__(self) -> None:
        self._wall, self._server, self._client = time.perf_counter(), cpu_seconds(self._pid), time.process_time()

    def __exit__(self, *_: object) -> None:
        self._measured.wall = time.perf_counter() - self._wall
        self._measured.server_cpu = cpu_seconds(self._pid) - self._server
        self._measured.client_cpu = time.process_time() - self._client


def poll(port: int, path: str, every: float, stop: Callable[[], bool]) -> list[float]:
    """Seconds of each GET, one every `every` seconds, until `stop` says so."""

    async def main() -> list[float]:
        connection = await Connection.open(port)
        times: list[float] = []
        while not stop():
            start = time.perf_counter()
            status, _ = await connection.request(get(path))
            times.append(time.perf_counter() - start)
            if not status:
                connection = await Connection.open(port)
            await asyncio.sleep(every)
        connection.close()
        return times

    return run(main())


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of all reach at most; NaN of none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan
