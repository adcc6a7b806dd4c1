"""Items in, verdicts out: queue, deadline, memory and shared answers of a server, around its pool. No HTTP."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson

from vtriune.reward.blocking import OnVerdict
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import AsyncJudgePool
from vtriune.reward.service_metrics import ServiceMetrics
from vtriune.types import Preset, Status, UserError, Verdict

LOOPBACK = ("127.0.0.1", "localhost", "::1")

REMEMBERED = 4096
"""Verdicts kept for clients that lost the connection and ask again."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is started with."""

    host: str = "127.0.0.1"
    port: int = 8192
    max_body: int = 32 * 2**20
    """Bytes of a request's body."""
    queue: int = 16384
    """Answers that may wait; more are refused with 429."""
    deadline: float = 120.0
    """Seconds for a request; what has no verdict by then is `failed`."""
    grace: float = 30.0
    """Seconds for what is under way when the server is told to end."""
    token: str = ""
    insecure: bool = False
    """Serve another address than the loopback without a token."""
    judge_preset: Preset = "official_code"
    """How `POST /judge` judges."""
    silent_zeros: bool = False
    """Have `POST /judge` answer errors as the released server does: 200, and a reward of 0."""

    def check(self) -> None:
        """Raises UserError: strangers could ask this server."""
        if self.host not in LOOPBACK and not self.token and not self.insecure:
            raise UserError(
                f"--host {self.host}: others could ask this server; give it a --token-file, "
                "or --insecure if the network keeps strangers out"
            )


@dataclass(slots=True, eq=False)
class _Job:
    """An answer that is judged, for all who ask for it."""

    key: tuple[str, int] | None
    batch: _Batch
    settled: bool = False
    askers: list[tuple[_Asked, int]] = field(default_factory=list)
    """Requests that wait for it, and its position in each."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Answers that the pool was handed together. What is judged for several requests ends when none is left."""

    left: int = 0
    """Answers without a verdict."""
    askers: int = 0
    """Requests that wait for one of them."""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Asked:
    """A request, as far as it is answered."""

    verdicts: list[Verdict | None]
    on_verdict: OnVerdict | None
    complete: asyncio.Future[None]
    batches: set[_Batch] = field(default_factory=set)
    left: int = 0

    def tell(self, position: int, verdict: Verdict) -> None:
        if self.verdicts[position] is not None:
            return
        self.verdicts[position] = verdict
        self.left -= 1
        if self.on_verdict:
            self.on_verdict(position, verdict)
        if not self.left and not self.complete.done():
            self.complete.set_result(None)


class Service:
    """Items in, verdicts out: limits, deadline and memory of a server around its pool."""

    def __init__(self, pool: AsyncJudgePool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.metrics = ServiceMetrics(pool)
        self.draining = False
        self.waiting = 0
        """Answers of requests that are not answered yet. What they take of memory is bounded by `Guard`."""
        self._known: OrderedDict[tuple[str, int], _Job | Verdict] = OrderedDict()
        """What is being judged, and what has been: of that, no more than the verdict is kept."""

    def is_full(self, count: int) -> bool:
        """Would `count` more answers be too many?"""
        return self.waiting > 0 and self.waiting + count > self.settings.queue

    async def judge(self, items: Sequence[JudgeItem], names: Sequence[str] = ()) -> list[Verdict]:
        """`ask` and `answer`; nobody else comes between `is_full` and this."""
        return await self.answer(self.ask(items, names))

    def ask(self, items: Sequence[JudgeItem], names: Sequence[str] = (), on_verdict: OnVerdict | None = None) -> _Asked:
        """Begin to judge; `answer` must follow. An item with the name and content of an earlier one, which a client
        sends that has lost the connection, is not judged again.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked([None] * len(items), on_verdict, loop.create_future(), left=len(items))
        self.waiting += len(items)
        batch = _Batch()
        jobs: list[_Job] = []
        new: list[JudgeItem] = []
        for position, item in enumerate(items):
            key = (names[position], _content(item)) if names else None
            known = self._known.get(key) if key else None
            if isinstance(known, Verdict):
                asked.tell(position, known)
                continue
            job = known or _Job(key, batch)
            if not known:
                jobs.append(job)
                new.append(item)
                if key:
                    self._remember(key, job)
            job.askers.append((asked, position))
            asked.batches.add(job.batch)
        batch.left = len(jobs)
        for one in asked.batches:
            one.askers += 1
        if new:
            batch.task = loop.create_task(self._judge(new, jobs))
        return asked

    async def answer(self, asked: _Asked) -> list[Verdict]:
        """Its verdicts in order, by the deadline."""
        try:
            async with asyncio.timeout(self.settings.deadline):
                await asked.complete
        except TimeoutError:
            late = Verdict(Status.FAILED, reason=f"no verdict within {self.settings.deadline:g} s")
            for position in range(len(asked.verdicts)):
                asked.tell(position, late)
        finally:
            asked.on_verdict = None
            self.waiting -= len(asked.verdicts)
            for batch in asked.batches:
                batch.askers -= 1
                if not batch.askers and batch.left and batch.task:
                    batch.task.cancel()
        return cast(list[Verdict], asked.verdicts)

    async def _judge(self, items: Sequence[JudgeItem], jobs: Sequence[_Job]) -> None:
        def settle(position: int, verdict: Verdict) -> None:
            job = jobs[position]
            if not job.settled:
                self._settle(job, verdict)
                self.metrics.count(items[position], verdict)

        missing = "whoever asked for it has gone"
        try:
            await self.pool.judge(items, settle)
        except RuntimeError as error:
            missing = str(error)
        finally:
            for position in range(len(jobs)):
                settle(position, Verdict(Status.FAILED, reason=missing))

    def _settle(self, job: _Job, verdict: Verdict) -> None:
        job.settled = True
        job.batch.left -= 1
        if job.key and self._known.get(job.key) is job:
            if verdict.status is Status.FAILED:
                del self._known[job.key]
            else:
                self._known[job.key] = verdict
        askers, job.askers = job.askers, []
        for asked, position in askers:
            asked.tell(position, verdict)

    def _remember(self, key: tuple[str, int], job: _Job) -> None:
        self._known[key] = job
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def _content(item: JudgeItem) -> int:
    """Tells apart items that differ in anything that a verdict depends on."""
    spec = item.spec
    try:
        parameters: object = orjson.dumps(spec.parameters)
    except TypeError:  # whole numbers of more than 64 bits
        parameters = repr(spec.parameters)
    weights = spec.accuracy_weight, spec.format_weight
    sample = spec.verifier, spec.gold, weights, parameters, spec.preset, item.image_sizes
    return hash((item.response, sample, item.progress, item.response_tokens))
