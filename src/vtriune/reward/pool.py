"""Judging in worker processes that can be killed: a poisonous answer costs itself its score, and nobody else anything.

Who judges what, what is set aside, replacement and the meaning of a worker's death live here; where workers come from
is `forkserver.py`, what one does `worker.py`, the pool's side of both `processes.py`; what a verdict is `judge.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import orjson

from vtriune.reward.blocking import BlockingJudge, OnVerdict
from vtriune.reward.judge import JudgeItem, exhausted, gold_exhausted
from vtriune.reward.processes import ForkServer, Worker, cpu_seconds, ending, reads_gold
from vtriune.reward.submission import Submission, Task
from vtriune.reward.wire import decode_verdict, encode_item
from vtriune.reward.worker import READY
from vtriune.types import Status, Verdict

LOG = logging.getLogger(__name__)

GROUP = 8
"""Answers that are handed over together, if so many wait: groups of 8 stay together, since gold is parsed once then."""

MAX_CHUNK = 64
"""Answers handed over at a time: few enough that the workers finish together."""

MAX_CHUNK_BYTES = 2**20
"""What is handed over at a time ends with the answer that exceeds this, for the sake of the workers' memory."""

LOW_WATER = 8
"""A worker with so few answers left gets more, so that it need not wait for them."""

SLOW = 0.020
"""Seconds of CPU time after which an answer has its worker to itself: what waits behind it goes elsewhere."""

HEAVY = 0.25
"""Seconds of CPU time after which it goes on at low priority, and only so many such at a time."""

PATIENCE = 1.0
"""Seconds after which an answer that waits without computing, as for another service, has its worker to itself."""

TICK = 0.0025
"""Seconds between looks at how long the answers at work have taken."""

SPARES = 2
"""Workers that are kept ready to step in for those that are busy with something slow, or die."""

MAX_WAITING = 8
"""For each of `workers`, so many more that wait without computing."""

MIN_MEMORY = 1024 * 2**20
"""Bytes; the libraries alone take half of it as address space."""

STUCK = 10.0
"""Seconds after which a worker that is to be dead, and of which nothing is heard, proves that the fork server is."""

START_LIMIT = 300.0
"""Seconds that the workers' libraries have to load: two on a free core, a hundred have been seen on a crowded one."""

CLOSED = "the judge pool was closed"

End = Literal["cpu limit", "gold cpu limit", "hung", "crashed", "retired"]
"""What a worker died of."""

COUNTERS: tuple[str, ...] = ("judged", "reused", "started", "heavy", *get_args(End))


class AsyncJudgePool:
    """Worker processes that judge answers within limits of CPU time and memory, for an event loop.

    An answer that exceeds a limit is `scored` 0 with the reason `cpu limit` or `memory limit`; gold that does is
    `unscorable`. CPU time is what counts, so that verdicts don't depend on the load of the machine, and neither the
    import of libraries nor the parse of gold counts against an answer. If a worker dies of anything else, its
    answer is tried once more in a fresh one and then `failed`; its neighbours notice nothing.

    Nobody waits for a slow answer but those who asked for it: what stands behind it goes to a spare worker. Heavy ones
    go on at low priority, at most `max(4, 2 * workers)` at a time. Requests take turns: a large one does not hold up a
    small one.

    Workers warm up in the background. They end with this process, however it ends.

    Args:
        workers: Number of processes that judge at a time. Each takes some 20 MiB beside the 150 MiB that all share.
        cpu_limit: Seconds of CPU time per answer, and per parse of gold.
        memory_limit: Bytes of address space per worker (RLIMIT_AS).
        wall_limit: Seconds without computing after which a worker counts as hung and its answer is `failed`:
            a backstop for what waits for ever.
        load: Verifiers of the user's own, as `module:attribute` (`registry.register`).
        remotes: Names and addresses of the services that the verifier `remote` may ask.
    """

    def __init__(
        self,
        workers: int = 2,
        cpu_limit: float = 2.0,
        memory_limit: int = 2 * 2**30,
        wall_limit: float = 60.0,
        *,
        load: Sequence[str] = (),
        remotes: Mapping[str, str] | None = None,
    ) -> None:
        if workers < 1 or cpu_limit <= 0 or wall_limit <= 0 or memory_limit < MIN_MEMORY:
            raise ValueError(
                f"a judge pool needs workers >= 1, limits above 0 and memory_limit >= {MIN_MEMORY}: "
                f"got {workers=}, {cpu_limit=}, {wall_limit=}, {memory_limit=}"
            )
        settings = {
            "cpu_limit": cpu_limit,
            "memory_limit": memory_limit,
            "load": list(load),
            "remotes": dict(remotes or {}),
        }
        self._settings = orjson.dumps(settings).decode()
        self._size = workers
        self._wall_limit = wall_limit
        self._heavy_places = max(4, 2 * workers)
        self._counters: Counter[str] = Counter()
        self._closed = False
        self._depth = 0
        self._queue: deque[Submission] = deque()
        """Submissions that have tasks waiting; they take turns."""
        self._again: deque[Task] = deque()
        """What a worker left behind: goes first."""
        self._later: deque[Task] = deque()
        """Heavy answers that found no place."""
        self._bad_gold: deque[Task] = deque(maxlen=64)
        """Of each sample whose gold has lately exhausted a worker, one task."""
        self._workers: set[Worker] = set()
        self._forking: deque[socket.socket] = deque()
        """Our ends of the channels of workers that have been asked for."""
        self._forks: ForkServer | None = None
        self._false_starts = 0
        self.fault = ""
        """Why there are no workers, if that is so."""
        self._warm = False
        self._ticking = False
        self._tasks: set[asyncio.Task[None]] = set()

    def warm_up(self) -> None:
        """Begin to warm up before there is an event loop, for who has something else to load meanwhile."""
        with contextlib.suppress(OSError):  # `start` will meet it again
            self._forks = ForkServer(self._settings)

    async def start(self) -> None:
        """Begin. Must be called in the event loop that the pool is used in."""
        self._loop = asyncio.get_running_loop()
        if self._forks is None:
            self._launch()
        else:
            self._attend(self._forks)

    async def judge(self, items: Sequence[JudgeItem], on_verdict: OnVerdict | None = None) -> list[Verdict]:
        """One verdict per item, in order; what could not be judged is a verdict that says why. Equal items are judged
        once. If it is cancelled, what has not begun is dropped.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the judge pool is closed")
        submission = Submission(len(items), on_verdict, self._loop.create_future())
        tasks: dict[bytes, Task] = {}
        for position, item in enumerate(items):
            if position % 256 == 255:
                await asyncio.sleep(0)  # others have their turn while many are written
            try:
                data = encode_item(item)
            except ValueError as error:
                submission.settle([position], Verdict(Status.UNSCORABLE, reason=f"not to be written as JSON: {error}"))
                continue
            tasks.setdefault(data, Task(submission, item, data)).positions.append(position)
        submission.waiting.extend(tasks.values())
        self._counters["judged"] += len(tasks)
        self._counters["reused"] += sum(len(task.positions) - 1 for task in tasks.values())
        self._depth += len(tasks)
        self._enqueue(submission)
        return await submission.future

    @property
    def ready(self) -> bool:
        """Have the workers warmed up?"""
        return self._warm

    @property
    def depth(self) -> int:
        """Answers that wait or are being judged."""
        return self._depth

    def counters(self) -> dict[str, int]:
        """What has happened so far, for the monitor.

        `judged` and `reused`: answers handed to workers, and answers that took the verdict of an equal one.
        `started`: worker processes. `heavy`: answers that went on at low priority. Ends of workers by reason:
        `cpu limit`, `gold cpu limit`, `hung`, `crashed` (a signal from elsewhere or an error of ours) and `retired`
        (swollen by an answer, ended in order).
        """
        return {name: self._counters[name] for name in COUNTERS}

    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        return sorted(worker.pid for worker in list(self._workers))

    async def close(self) -> None:
        """End the workers at once. What has no verdict yet is `failed`."""
        if self._closed:
            return
        self._closed = True
        if self._forks:
            self._loop.remove_reader(self._forks.control)
            self._forks.end()
        for worker in self._workers:
            worker.transport.abort()
            self._fail(deque([*worker.tasks, *worker.held]), CLOSED)
        self._fail_waiting(CLOSED)
        while self._forking:
            self._forking.popleft().close()

    # What is judged where.

    def _enqueue(self, submission: Submission) -> None:
        if self._closed:  # in the meantime
            self._fail(submission.waiting, CLOSED)
        elif submission.waiting:
            self._queue.append(submission)
            if self._forks is None:
                self._false_starts = 0
                self._launch()
            self._dispatch()

    def _dispatch(self) -> None:
        """Hand out what waits, to whoever is free."""
        while self._again or self._queue:
            worker = self._available()
            if worker is None:
                break
            worker.assign(self._take())
        self._start_later()
        self._replenish()
        if not self._ticking and any(worker.tasks for worker in self._workers):
            self._ticking = True
            self._loop.call_later(TICK, self._tick)

    def _available(self) -> Worker | None:
        active = [worker for worker in self._workers if not worker.aside]
        busy = [worker for worker in active if worker.tasks]
        if len(busy) < self._size and len(busy) < len(active):
            # The most experienced: it knows most gold by heart.
            idle = (worker for worker in active if not worker.tasks)
            return max(idle, key=lambda worker: (worker.warm, worker.progress))
        return next((worker for worker in busy if len(worker.tasks) <= LOW_WATER), None)

    def _take(self) -> list[Task]:
        """The next tasks for one worker: what was left behind first, then a group of each submission in turn."""
        most = min(max(math.ceil(self._depth / (2 * self._size)), GROUP), MAX_CHUNK)
        chunk: list[Task] = []
        size = 0
        while len(chunk) < most and size < MAX_CHUNK_BYTES:
            if self._again:
                tasks = [self._again.popleft()]
            elif self._queue:
                submission = self._queue.popleft()
                tasks = [submission.waiting.popleft()]
                while submission.waiting and len(tasks) < GROUP and tasks[-1].same_sample(submission.waiting[0]):
                    tasks.append(submission.waiting.popleft())
                if submission.waiting:
                    self._queue.append(submission)
            else:
                break
            for task in tasks:
                if task.submission.future.done():  # nobody waits for it any more
                    self._depth -= 1
                elif any(task.same_sample(bad) for bad in self._bad_gold):
                    self._settle(task, gold_exhausted("cpu limit"))
                else:
                    chunk.append(task)
                    size += len(task.data)
        return chunk

    def _settle(self, task: Task, verdict: Verdict) -> None:
        self._depth -= 1
        task.submission.settle(task.positions, verdict)

    def _fail(self, tasks: deque[Task], reason: str) -> None:
        while tasks:
            self._settle(tasks.popleft(), Verdict(Status.FAILED, reason=reason))

    def _give_up(self, reason: str) -> None:
        """There are no workers, and why; the next request is another try."""
        self.fault = f"no judge worker can be started: {reason}"
        LOG.error("%s", self.fault)
        self._fail_waiting(self.fault)

    def _fail_waiting(self, reason: str) -> None:
        for tasks in (self._again, self._later, *(submission.waiting for submission in self._queue)):
            self._fail(tasks, reason)
        self._queue.clear()

    # Slow answers.

    def _tick(self) -> None:
        """Look at whoever is at work: free what waits behind a slow answer, give up whoever hangs."""
        now = self._loop.time()
        for worker in [worker for worker in self._workers if worker.tasks and not worker.dying]:
            spent = cpu_seconds(worker.pid)
            if worker.progress != worker.seen:
                worker.seen, worker.since, worker.spent = worker.progress, now, spent
                worker.checked = now, spent
                continue
            computing = spent - worker.spent
            waiting = now - worker.since > PATIENCE and computing < SLOW
            if not worker.aside and (computing > SLOW or waiting):
                self._set_aside(worker)
            if waiting and not worker.waiting:
                worker.waiting = True
                self._replenish()
            if computing > HEAVY and not worker.heavy:
                self._put_last(worker)
            checked, spent_then = worker.checked
            if now - checked > self._wall_limit:
                worker.checked = now, spent
                # One that gets little of a crowded machine is no one that hangs.
                if spent - spent_then < self._wall_limit / 1000:
                    worker.hung = True
                    self._kill(worker)
        self._ticking = any(worker.tasks for worker in self._workers)
        if self._ticking:
            self._loop.call_later(TICK, self._tick)

    def _set_aside(self, worker: Worker) -> None:
        """Take away from it all but the answer it is at work on."""
        task, *rest = worker.tasks
        worker.tasks = deque([task])
        if reads_gold(worker.pid):
            # Wherever they went, they would wait for the same.
            worker.held = [one for one in rest if one.same_sample(task)]
            rest = [one for one in rest if not one.same_sample(task)]
        self._again.extendleft(reversed(rest))
        worker.drop()
        self._dispatch()

    def _put_last(self, worker: Worker) -> None:
        """It goes on at low priority, or, if too many do, another time."""
        if self._has_heavy_place():
            worker.heavy = True
            self._counters["heavy"] += 1
            self._order(lower=worker.pid)
            self._replenish()
        else:
            worker.postponed = True
            self._kill(worker)

    def _has_heavy_place(self) -> bool:
        return sum(worker.heavy for worker in self._workers) < self._heavy_places

    def _start_later(self) -> None:
        """Begin with heavy answers for which there is a place now."""
        while self._later and self._has_heavy_place():
            idle = next((worker for worker in self._workers if not worker.tasks and not worker.aside), None)
            if idle is None:
                return
            idle.assign([self._later.popleft()])
            idle.drop()
            idle.heavy = True
            self._order(lower=idle.pid)

    # Workers: begin, verdicts, end.

    def _launch(self) -> None:
        """Start the fork server; twice in a row without success is enough for now."""
        while self._false_starts < 2:
            try:
                self._forks = ForkServer(self._settings)
            except OSError as error:
                self._false_starts += 1
                fault = f"{type(error).__name__}: {error}"
            else:
                self._attend(self._forks)
                return
        self._forks = None
        self._give_up(fault)

    def _attend(self, forks: ForkServer) -> None:
        self._loop.add_reader(forks.control, self._listen)
        self._loop.call_later(START_LIMIT, forks.kill_unless_ready)

    def _listen(self) -> None:
        """Read what the fork server tells."""
        forks = self._forks
        while forks and forks is self._forks:
            try:
                data = forks.control.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._forks_lost(forks)
                return
            told = orjson.loads(data)
            if "ready" in told:
                forks.ready = True
                self.fault = ""
                self._false_starts = 0
                self._replenish()
            elif "warm" in told:
                forks.warm = True
                self._replenish()
            elif "forked" in told:
                self._counters["started"] += 1
                task = self._loop.create_task(self._connect(self._forking.popleft(), told["forked"], forks.warm))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif "not_forked" in told:
                self._forking.popleft().close()
                self._loop.call_later(0.5, self._replenish)
                if not self._workers:
                    self._give_up(told["not_forked"])
            elif "ended" in told:
                forks.codes[told["ended"]] = told["code"]
                for worker in [worker for worker in self._workers if worker.pid == told["ended"]]:
                    self._bury_if_known(worker)
            else:
                forks.fault = told["error"]

    def _forks_lost(self, forks: ForkServer) -> None:
        """The fork server has gone, and its workers with it."""
        self._loop.remove_reader(forks.control)
        code = forks.end()
        self._forks = None
        if not forks.ready:
            self._false_starts += 1
        while self._forking:
            self._forking.popleft().close()
        for worker in list(self._workers):
            worker.dying = True
            self._workers.discard(worker)
            worker.transport.abort()
            self._again.extendleft(reversed([*worker.tasks, *worker.held]))
        self._warm = False
        if self._false_starts < 2:
            self._launch()
        else:
            self._give_up(forks.fault or ending(code))

    async def _connect(self, channel: socket.socket, pid: int, warm: bool) -> None:
        worker = Worker(self, pid, warm)
        await self._loop.create_unix_connection(lambda: worker, sock=channel)
        if self._closed:
            worker.transport.abort()
            return
        self._workers.add(worker)

    def _replenish(self) -> None:
        """Ask for workers until there are enough beside those that are done for."""
        if self._forks is None or not self._forks.ready or self._closed:
            return
        early = self._forks.warm
        gone = sum(worker.heavy or worker.dying or (early and not worker.warm) for worker in self._workers)
        # Those that wait don't take a core from others, but each takes memory.
        gone += min(sum(worker.waiting for worker in self._workers), MAX_WAITING * self._size)
        alive = len(self._workers) - gone + len(self._forking)
        for _ in range(self._size + SPARES - alive):
            ours, theirs = socket.socketpair()
            with theirs:
                self._forking.append(ours)
                self._order(theirs, fork=True)

    def _order(self, channel: socket.socket | None = None, **order: object) -> None:
        if self._forks:
            self._forks.order(orjson.dumps(order), channel)

    def _kill(self, worker: Worker) -> None:
        worker.aside = worker.dying = worker.killed = True
        self._loop.call_later(STUCK, self._expect_burial, worker)
        self._order(kill=worker.pid)

    def received(self, worker: Worker, data: bytes) -> None:
        """A worker's verdict on its first task, or the news that it has nothing left to do."""
        if data == READY:
            worker.drops -= 1
            self._warm = True
            # It has been told to forget the rest before it began with what it was to keep.
            self._again.extendleft(reversed(worker.tasks))
            worker.tasks.clear()
            if worker.heavy or worker.dying:
                self._kill(worker)  # its priority can't be raised again
            elif not worker.drops:
                worker.aside = worker.waiting = False
                worker.assign(worker.held)
                worker.held = []
                self._retire_one()
            self._dispatch()
        elif worker.tasks:
            task = worker.tasks.popleft()
            worker.progress += 1
            try:
                verdict = decode_verdict(data)
            except Exception as error:  # a fault of ours must not leave anybody without a verdict
                verdict = Verdict(Status.FAILED, reason=f"judge pool: {type(error).__name__}: {error}")
            self._settle(task, verdict)
            if not worker.aside and len(worker.tasks) <= LOW_WATER:
                self._dispatch()
                if not worker.warm:
                    self._retire_one()
        # Else it has not yet read that the rest was taken away.

    def _retire_one(self) -> None:
        """End an idle worker that does not know all libraries, where another one does, or one that is too many."""
        idle = [worker for worker in self._workers if not worker.tasks and not worker.aside]
        early = next((worker for worker in idle if not worker.warm), None)
        if early and any(worker.warm for worker in idle):
            self._kill(early)
        elif len(idle) > self._size + SPARES:
            self._kill(min(idle, key=lambda worker: worker.progress))

    def lost(self, worker: Worker) -> None:
        """A worker's channel has closed: all of its verdicts have been read."""
        worker.lost = worker.aside = worker.dying = True
        self._loop.call_later(STUCK, self._expect_burial, worker)
        self._bury_if_known(worker)

    def _expect_burial(self, worker: Worker) -> None:
        if worker in self._workers and self._forks:
            self._forks.kill()  # it does not do what it is told

    def _bury_if_known(self, worker: Worker) -> None:
        if worker.lost and worker in self._workers and self._forks and worker.pid in self._forks.codes:
            self._workers.discard(worker)
            self._bury(worker, self._forks.codes.pop(worker.pid))
            self._dispatch()

    def _bury(self, worker: Worker, code: int) -> None:
        """Settle what a dead worker leaves: the first unanswered task is what it died of, the others go on."""
        end: End
        if not worker.tasks:
            self._again.extendleft(reversed(worker.held))
            if not worker.killed:
                self._counters["crashed" if code else "retired"] += 1
            return
        culprit, *rest = [*worker.tasks, *worker.held]
        if worker.hung:
            end = "hung"
            reason = f"no verdict, and nothing computed, for {self._wall_limit:g} s"
            self._settle(culprit, Verdict(Status.FAILED, reason=reason))
        elif code in (-signal.SIGPROF, -signal.SIGVTALRM) and not worker.warm:
            # It may have been busy with an import: one that has all libraries is to say.
            self._again.extendleft(reversed([culprit, *rest]))
            return
        elif code == -signal.SIGPROF:
            end = "cpu limit"
            self._settle(culprit, exhausted("cpu limit"))
        elif code == -signal.SIGVTALRM:
            end = "gold cpu limit"
            self._settle(culprit, gold_exhausted("cpu limit"))
            self._bad_gold.append(culprit)
        elif worker.postponed:
            self._later.append(culprit)
            self._again.extendleft(reversed(rest))
            return
        elif code == 0:
            end = "retired"
            rest = [culprit, *rest]
        else:
            end = "crashed"
            culprit.crashes += 1
            if culprit.crashes > 1:
                reason = f"the judge died of it twice: {ending(code)}"
                self._settle(culprit, Verdict(Status.FAILED, reason=reason))
            else:
                rest = [culprit, *rest]
        self._counters[end] += 1
        self._again.extendleft(reversed(rest))


class JudgePool(BlockingJudge[AsyncJudgePool]):
    """`AsyncJudgePool` for code without an event loop; the arguments are the same."""

    def __init__(
        self,
        workers: int = 2,
        cpu_limit: float = 2.0,
        memory_limit: int = 2 * 2**30,
        wall_limit: float = 60.0,
        *,
        load: Sequence[str] = (),
        remotes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(AsyncJudgePool(workers, cpu_limit, memory_limit, wall_limit, load=load, remotes=remotes))

    def counters(self) -> dict[str, int]:
        """See `AsyncJudgePool.counters`."""
        return self.judge.counters()

    def pids(self) -> list[int]:
        """See `AsyncJudgePool.pids`."""
        return self.judge.pids()
