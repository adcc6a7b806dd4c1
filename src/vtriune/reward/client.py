"""Judging by reward servers over HTTP: balanced, retried, and never a number that no server gave.

What a server does is `server.py`; what is sent is `wire.py`'s item with an id. Verdicts equal the embedded pool's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
from pydantic import ValidationError

from vtriune.reward.api import JudgeReply, explain
from vtriune.reward.blocking import BlockingJudge, OnVerdict
from vtriune.reward.judge import JudgeItem
from vtriune.reward.wire import encode_item
from vtriune.types import Status, UserError, Verdict

LOG = logging.getLogger(__name__)

SILENCE = 3.0
"""Seconds without any server before the user is told."""

BATCH = 256
"""Answers per request: several servers share a large batch, and little is lost with a connection."""

REPETITIONS = 2
"""How often an answer that a server itself calls `failed` is asked again, elsewhere if there is an elsewhere."""

BREAK_AFTER = 3
"""Faults in a row after which a server gets no answers until it says that it is ready."""

BACKOFF, MAX_BACKOFF = 0.1, 2.0
"""Seconds before the first repetition, doubled each time, and at most."""

MAX_REPLY = 64 * 2**20
"""Bytes read of one reply."""

COUNTERS = ("requests", "faults", "repeated", "failed")


class AsyncRewardClient:
    """Servers that judge answers, for an event loop. One client is shared by all who ask.

    Requests go to the server with the fewest answers under way, over connections that are kept. What a server does not
    answer, answers with nonsense or calls `failed` is asked again, of another server if there is one, under the same
    id, until the deadline. A server with several faults in a row gets nothing more until it answers
    `GET /readyz`, which is asked in the background. What has no verdict by the deadline is `failed`, with the
    last fault as its reason.

    Args:
        servers: Addresses, e.g. `http://10.0.0.1:8192`.
        token: For servers that want one.
        deadline: Seconds for one call of `judge`, all repetitions included.
        patience: Seconds to wait for one reply before another server is asked.
    """

    def __init__(
        self, servers: Sequence[str], *, token: str = "", deadline: float = 600.0, patience: float = 150.0
    ) -> None:
        if not servers or deadline <= 0 or patience <= 0:
            raise ValueError(
                f"a reward client needs servers, and times above 0: got {servers=} {deadline=} {patience=}"
            )
        for url in servers:
            if not url.startswith(("http://", "https://")):
                raise UserError(f"reward server {url!r}: is no URL; write it as http://host:port")
        self._servers = [_Server(url.rstrip("/")) for url in servers]
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._deadline = deadline
        self._patience = patience
        self._closed = False
        self._batches: set[asyncio.Task[None]] = set()
        self._probes: set[asyncio.Task[None]] = set()
        self._counters: Counter[str] = Counter()

    async def start(self) -> None:
        """Connect, waiting for servers that are still starting.

        Raises:
            UserError: no server is ready by the deadline, or one refuses the token.
        """
        self._loop = asyncio.get_running_loop()
        self._http = httpx.AsyncClient(headers=self._headers, timeout=self._patience, trust_env=False)
        self._news = asyncio.Condition()
        for server in self._servers:
            self._break(server)
        waiting = self._loop.call_later(SILENCE, self._say_that_it_waits)
        working = await self._choose(self._loop.time() + self._deadline)
        waiting.cancel()
        faults = "; ".join(f"{server.url}: {server.fault}" for server in self._servers if server.fault)
        refused = any(server.refuses for server in self._servers)
        if working is None or refused:
            await self.close()
            remedy = "check the token (reward.token_file)" if refused else "start one with `vtriune serve`"
            raise UserError(f"no reward server can be used: {faults}; {remedy}")

    def _say_that_it_waits(self) -> None:
        faults = "; ".join(f"{server.url}: {server.fault}" for server in self._servers)
        LOG.warning("waiting for a reward server, for %g s at most: %s", self._deadline, faults)

    async def judge(self, items: Sequence[JudgeItem], on_verdict: OnVerdict | None = None) -> list[Verdict]:
        """One verdict per item, in order; never raises for what servers do.

        Raises:
            RuntimeError: the client is closed.
        """
        if self._closed:
            raise RuntimeError("the reward client is closed")
        verdicts: dict[int, Verdict] = {}

        def settle(position: int, verdict: Verdict) -> None:
            verdicts[position] = verdict
            self._counters["failed"] += verdict.status is Status.FAILED
            if on_verdict:
                on_verdict(position, verdict)

        jobs = []
        call = uuid.uuid4().hex
        for position, item in enumerate(items):
            try:
                jobs.append(_Job(position, f"{call}-{position}", encode_item(item)))
            except ValueError as error:
                settle(position, Verdict(Status.UNSCORABLE, reason=f"not to be written as JSON: {error}"))
        deadline = self._loop.time() + self._deadline
        batches = [
            self._loop.create_task(self._judge_batch(jobs[start : start + BATCH], deadline, settle))
            for start in range(0, len(jobs), BATCH)
        ]
        self._batches.update(batches)
        try:
            if batches:
                await asyncio.wait(batches)
        finally:
            for batch in batches:
                batch.cancel()
            self._batches.difference_update(batches)
        closed = Verdict(Status.FAILED, reason="the reward client was closed")
        return [verdicts.get(position, closed) for position in range(len(items))]

    def counters(self) -> dict[str, int]:
        """What has happened so far: `requests` sent, `faults` of servers among them, answers `repeated` (asked once
        more) and `failed` (left without a verdict).
        """
        return {name: self._counters[name] for name in COUNTERS}

    async def close(self) -> None:
        """Drop all connections. What has no verdict yet is `failed`."""
        self._closed = True
        for task in (*self._batches, *self._probes):
            task.cancel()
        await self._http.aclose()

    async def _judge_batch(
        self, jobs: Sequence[_Job], deadline: float, settle: OnVerdict, avoid: _Server | None = None
    ) -> None:
        """Ask until every job has its verdict, or the time is over."""
        pause = BACKOFF
        fault = "no server is ready"
        while jobs:
            server = await self._choose(deadline, avoid)
            if server is None:
                break
            if avoid:
                self._counters["repeated"] += len(jobs)
            avoid = server
            try:
                told = await self._ask(server, jobs, deadline)
            except _TooMuchError as error:
                if len(jobs) == 1:
                    settle(jobs[0].position, Verdict(Status.FAILED, reason=f"{server.url}: {error}"))
                    return
                await asyncio.gather(*(self._judge_batch(half, deadline, settle) for half in _halves(jobs)))
                return
            except _BadItemError as error:
                # Its neighbours can't help it; and where there is one there may be more.
                refused = Verdict(Status.FAILED, reason=f"{server.url}: {error}")
                again = self._settled([jobs[error.position]], [refused], settle)
                rest = [job for position, job in enumerate(jobs) if position != error.position]
                parts = [part for part in (again, *_halves(rest)) if part]
                await asyncio.gather(*(self._judge_batch(part, deadline, settle, server) for part in parts))
                return
            except _LateError as error:
                fault = f"{server.url}: {error}"
            except _BusyError as error:
                fault, pause = f"{server.url}: is busy", max(pause, error.seconds)
            except _FaultError as error:
                fault = f"{server.url}: {error}"
                self._note_fault(server, str(error))
            else:
                server.faults = 0
                jobs = self._settled(jobs, told, settle)
            if jobs:
                await asyncio.sleep(max(0, min(pause * random.uniform(0.5, 1), deadline - self._loop.time())))
                pause = min(2 * pause, MAX_BACKOFF)
        for job in jobs:
            late = Verdict(Status.FAILED, reason=f"no verdict within {self._deadline:g} s; {fault}")
            settle(job.position, job.last or late)

    @staticmethod
    def _settled(jobs: Sequence[_Job], told: Sequence[Verdict], settle: OnVerdict) -> list[_Job]:
        """Pass verdicts on. Returns the jobs to be asked again."""
        again = []
        for job, verdict in zip(jobs, told, strict=True):
            if verdict.status is Status.FAILED and job.repetitions < REPETITIONS:
                job.repetitions += 1
                job.last = verdict
                again.append(job)
            else:
                settle(job.position, verdict)
        return again

    async def _ask(self, server: _Server, jobs: Sequence[_Job], deadline: float) -> list[Verdict]:
        """One request.

        Raises:
            _TooMuchError, _BadItemError, _BusyError, _LateError, _FaultError: there are no verdicts, and why.
        """
        body = b'{"items":[' + b",".join(job.data for job in jobs) + b"]}"
        self._counters["requests"] += 1
        server.under_way += len(jobs)
        left = min(self._patience, deadline - self._loop.time())
        try:
            async with asyncio.timeout(left):
                reply = await _read(self._http, server.url + "/v1/judge", body)
        except _BadItemError as error:
            if error.position < len(jobs):
                raise
            raise _FaultError(f"it refuses an item that there is not: {error}") from None
        except TimeoutError:
            late = f"no reply within {left:.3g} s"
            raise (_LateError(late) if left < self._patience else _FaultError(late)) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _FaultError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        finally:
            server.under_way -= len(jobs)
        try:
            told = JudgeReply.model_validate_json(reply).verdicts
        except ValidationError as error:
            raise _FaultError(f"its reply makes no sense: {explain(error)}") from error
        if [one.id for one in told] != [job.id for job in jobs]:
            raise _FaultError("its reply is to something else")
        return [one.verdict() for one in told]

    # Which server.

    async def _choose(self, deadline: float, avoid: _Server | None = None) -> _Server | None:
        """The least busy server that works, rather another one than `avoid`; None if there is none by the deadline."""

        def working() -> list[_Server]:
            return [server for server in self._servers if not server.broken]

        if self._loop.time() >= deadline:
            return None
        try:
            async with asyncio.timeout_at(deadline), self._news:
                await self._news.wait_for(lambda: working() or all(server.refuses for server in self._servers))
        except TimeoutError:
            return None
        servers = working()
        others = [server for server in servers if server is not avoid]
        return min(others or servers, key=lambda server: server.under_way, default=None)

    def _note_fault(self, server: _Server, fault: str) -> None:
        self._counters["faults"] += 1
        server.faults += 1
        server.fault = fault
        if server.faults >= BREAK_AFTER and not server.broken:
            LOG.warning("reward server %s is asked nothing until it is ready again: %s", server.url, fault)
            self._break(server)

    def _break(self, server: _Server) -> None:
        """Give it nothing more until it is ready."""
        server.broken = True
        probe = self._loop.create_task(self._probe(server))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, server: _Server) -> None:
        pause = BACKOFF
        while server.broken and not server.refuses:
            try:
                reply = await self._http.get(server.url + "/readyz", timeout=MAX_BACKOFF)
                server.fault = f"GET /readyz answers {reply.status_code}"
                server.refuses = reply.status_code == httpx.codes.UNAUTHORIZED
                server.broken = reply.status_code != httpx.codes.OK
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                server.fault = f"{type(error).__name__}: {error}".rstrip(": ")
            if not server.broken:
                server.faults, server.fault = 0, ""
            async with self._news:
                self._news.notify_all()
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_BACKOFF)


def read_token(file: Path) -> str:
    """The token in a file, white space around it aside.

    Raises:
        UserError: the file can't be read or holds nothing.
    """
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: can't be read ({error}); write the servers' token into it") from error
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"{file}: holds no token; write one line of printable ASCII into it")
    return token


class RewardClient(BlockingJudge[AsyncRewardClient]):
    """`AsyncRewardClient` for code without an event loop; the arguments are the same."""

    def __init__(
        self, servers: Sequence[str], *, token: str = "", deadline: float = 600.0, patience: float = 150.0
    ) -> None:
        super().__init__(AsyncRewardClient(servers, token=token, deadline=deadline, patience=patience))

    def counters(self) -> dict[str, int]:
        """See `AsyncRewardClient.counters`."""
        return self.judge.counters()


class _FaultError(Exception):
    """A server did not answer as it should."""


class _TooMuchError(Exception):
    """A server refuses the request as it is; a smaller one may do."""


class _BadItemError(Exception):
    """A server can make no sense of one of the items."""

    def __init__(self, position: int, said: str) -> None:
        super().__init__(said)
        self.position = position


class _LateError(Exception):
    """Our own time is over, which is no fault of the server."""


class _BusyError(Exception):
    """A server has enough to do."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


_NAMED = re.compile(rb'\s*\{\s*"detail"\s*:\s*"items\.([0-9]{1,4})[.:]')
"""The start of a refusal that names an item by its position."""


def _halves(jobs: Sequence[_Job]) -> tuple[Sequence[_Job], Sequence[_Job]]:
    return jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]


async def _read(http: httpx.AsyncClient, url: str, body: bytes) -> bytes:
    """The body of a reply with verdicts."""
    async with http.stream("POST", url, content=body) as reply:
        content = bytearray()
        async for part in reply.aiter_bytes():
            content += part
            if len(content) > MAX_REPLY:
                raise _FaultError(f"its reply is longer than {MAX_REPLY} bytes")
    if reply.status_code == httpx.codes.OK:
        return bytes(content)
    if reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
        wait = reply.headers.get("Retry-After", "")
        raise _BusyError(min(float(wait) if wait.isascii() and wait.isdigit() else 0.0, MAX_BACKOFF))
    said = f"status {reply.status_code}: {bytes(content[:200]).decode(errors='replace')}"
    if reply.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        raise _TooMuchError(said)
    if reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY and (named := _NAMED.match(content)):
        raise _BadItemError(int(named[1]), said)
    raise _FaultError(said)


@dataclass(slots=True, eq=False)
class _Server:
    """A server as the client sees it."""

    url: str
    under_way: int = 0
    """Answers sent and not answered."""
    faults: int = 0
    """In a row."""
    fault: str = ""
    """The last one."""
    broken: bool = False
    refuses: bool = False
    """It does not accept our token."""


@dataclass(slots=True, eq=False)
class _Job:
    """One answer to be judged."""

    position: int
    id: str
    item: bytes
    repetitions: int = 0
    last: Verdict | None = None
    """What the last server said, if it was `failed`."""

    @property
    def data(self) -> bytes:
        return b'{"id":' + orjson.dumps(self.id) + b"," + self.item[1:]
