"""Judging in worker processes that can be killed: a poisonous answer costs itself its score, and nobody else anything.

Who judges what, replacement and the meaning of a worker's death live here; what a worker does is `worker.py`,
what a verdict is `judge.py`.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Literal, Self, cast, get_args

from vtriune.reward.judge import JudgeItem, exhausted, gold_exhausted
from vtriune.reward.wire import decode_verdict, encode_item, join, receive_frame, send_frame
from vtriune.types import Status, Verdict

MIN_CHUNK, MAX_CHUNK = 8, 32
"""Answers handed over at a time: a group of 8 stays together, since every worker parses gold for itself; a large
batch comes in pieces small enough that the workers finish together."""

MAX_CHUNK_BYTES = 2**20
"""What is handed over at a time ends with the answer that exceeds this, for the sake of the workers' memory."""

MIN_MEMORY = 512 * 2**20
"""Bytes; the libraries alone take 270-350 MiB of address space."""

START_LIMIT = 300.0
"""Seconds that a worker has to get ready: two on a free core, a hundred have been seen on a crowded one."""

End = Literal["cpu limit", "gold cpu limit", "hung", "crashed", "retired"]
"""What a worker died of."""

COUNTERS: tuple[str, ...] = ("judged", "reused", "started", *get_args(End))


class JudgePool:
    """Worker processes that judge answers within limits of CPU time and memory.

    An answer that exceeds a limit is `scored` 0 with the reason `cpu limit` or `memory limit`; gold that does is
    `unscorable`. CPU time is what counts, so that verdicts don't depend on the load of the machine, and neither the
    import of libraries nor the parse of gold counts against an answer. If a worker dies of anything else, its
    answer is tried once more in a fresh one and then `failed`; its neighbours notice nothing.

    The workers are started at once and warm up in the background. They end with this process, however it ends.
    The pool may be used from any thread.

    Args:
        workers: Number of processes, of about 120 MiB each.
        cpu_limit: Seconds of CPU time per answer, and per parse of gold.
        memory_limit: Bytes of address space per worker (RLIMIT_AS).
        wall_limit: Seconds without a verdict after which a worker counts as hung and its answer is `failed`:
            a backstop for what waits without computing.
    """

    def __init__(
        self, workers: int = 2, cpu_limit: float = 2.0, memory_limit: int = 2 * 2**30, wall_limit: float = 60.0
    ) -> None:
        if workers < 1 or cpu_limit <= 0 or wall_limit <= 0 or memory_limit < MIN_MEMORY:
            raise ValueError(
                f"a judge pool needs workers >= 1, limits above 0 and memory_limit >= {MIN_MEMORY}: "
                f"got {workers=}, {cpu_limit=}, {wall_limit=}, {memory_limit=}"
            )
        self._arguments = (str(cpu_limit), str(memory_limit))
        self._wall_limit = wall_limit
        self._changed = threading.Condition()
        """Guards the queue, the counters, the set of live workers and whether the pool is closed."""
        self._queue: deque[list[_Task]] = deque()
        self._counters: Counter[str] = Counter()
        self._live: set[_Worker] = set()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"judge-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, items: Sequence[JudgeItem]) -> Future[list[Verdict]]:
        """Judge `items`; the future holds their verdicts in the same order. Equal items are judged once.

        The future never raises and can't be cancelled: what could not be judged is a verdict that says why.

        Raises:
            RuntimeError: the pool is closed.
        """
        submission = _Submission(len(items))
        tasks: dict[bytes, _Task] = {}
        for position, item in enumerate(items):
            try:
                data = encode_item(item)
            except ValueError as error:
                submission.settle([position], Verdict(Status.UNSCORABLE, reason=f"not to be written as JSON: {error}"))
                continue
            tasks.setdefault(data, _Task(submission, item, data)).positions.append(position)
        pending = list(tasks.values())
        chunks = _chunks(pending, workers=len(self._threads))
        with self._changed:
            if self._closed:
                raise RuntimeError("the judge pool is closed")
            self._counters["judged"] += len(pending)
            self._counters["reused"] += sum(len(task.positions) - 1 for task in pending)
            self._queue.extend(chunks)
            self._changed.notify_all()
        return submission.future

    def counters(self) -> dict[str, int]:
        """What has happened so far, for the monitor.

        `judged` and `reused`: answers judged by a worker, and answers that took the verdict of an equal one.
        `started`: worker processes that got ready. Their ends by reason: `cpu limit`, `gold cpu limit`, `hung`,
        `crashed` (a signal from elsewhere or an error of ours) and `retired` (swollen by an answer, ended in order).
        """
        with self._changed:
            return {name: self._counters[name] for name in COUNTERS}

    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        with self._changed:
            return sorted(worker.process.pid for worker in self._live)

    def close(self) -> None:
        """End the workers at once. What has no verdict yet is `failed`, so take the results first."""
        with self._changed:
            self._closed = True
            for worker in self._live:
                worker.process.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # One thread per worker: it starts the worker, hands it chunk after chunk, and replaces it.

    def _serve(self) -> None:
        worker: _Worker | None = None
        fault = ""
        while True:
            if worker is None:
                worker, fault = self._start()
            chunk = self._next_chunk()
            if chunk is None:
                break
            if worker is None:
                _fail(chunk, f"no judge worker can be started: {fault}")
            else:
                worker = self._judge(worker, chunk)
        if worker:
            self._end(worker)

    def _next_chunk(self) -> list[_Task] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._closed:
                return self._queue.popleft()
            left = [task for chunk in self._queue for task in chunk]
            self._queue.clear()
        _fail(left, "the judge pool was closed")
        return None

    def _start(self) -> tuple[_Worker | None, str]:
        """A worker that is ready, or why there is none. Tried twice: the first may have met an accident."""
        fault = ""
        for _ in range(2):
            try:
                worker = _Worker(self._arguments)
            except Exception as error:  # whatever it is: without this thread, what is queued would wait for ever
                fault = f"{type(error).__name__}: {error}"
                continue
            with self._changed:
                self._live.add(worker)
                if self._closed:
                    worker.process.kill()
            try:
                worker.await_ready()
            except (OSError, EOFError) as error:
                fault = _name(self._end(worker, kill=isinstance(error, TimeoutError)))
                continue
            with self._changed:
                self._counters["started"] += 1
            return worker, ""
        return None, fault

    def _judge(self, worker: _Worker, chunk: list[_Task]) -> _Worker | None:
        """Have a chunk judged. Returns the worker, or None if it has died of it."""
        done = 0
        try:
            worker.allow(self._wall_limit)
            worker.send(join([task.data for task in chunk]))
            for task in chunk:
                task.settle(decode_verdict(worker.receive()))
                done += 1
        except (OSError, EOFError) as error:
            hung = isinstance(error, TimeoutError)
            self._bury(self._end(worker, kill=hung), hung, chunk[done:])
            return None
        except Exception as error:  # a fault of ours must not leave a future without its result
            self._end(worker, kill=True)
            _fail(chunk[done:], f"judge pool: {type(error).__name__}: {error}")
            return None
        return worker

    def _end(self, worker: _Worker, kill: bool = False) -> int:
        """Reap a worker that has died, or is to. Returns its exit code, negative for a signal."""
        if kill:
            worker.process.kill()
        code = worker.end()
        with self._changed:
            self._live.remove(worker)
        return code

    def _bury(self, code: int, hung: bool, unanswered: list[_Task]) -> None:
        """Settle what a dead worker leaves: the first unanswered task is what it died of, the others go on."""
        culprit, rest = unanswered[0], unanswered[1:]
        again: list[_Task] = []
        end: End
        with self._changed:
            closed = self._closed
        if closed:
            _fail(unanswered, "the judge pool was closed")
            return
        if hung:
            end = "hung"
            culprit.settle(Verdict(Status.FAILED, reason=f"no verdict after {self._wall_limit:g} s"))
        elif code == -signal.SIGPROF:
            end = "cpu limit"
            culprit.settle(exhausted("cpu limit"))
        elif code == -signal.SIGVTALRM:
            end = "gold cpu limit"
            for task in [task for task in unanswered if task.same_sample(culprit)]:
                task.settle(gold_exhausted("cpu limit"))
            rest = [task for task in rest if not task.same_sample(culprit)]
        elif code == 0:
            end = "retired"
            rest = unanswered
        else:
            end = "crashed"
            culprit.crashes += 1
            if culprit.crashes > 1:
                culprit.settle(Verdict(Status.FAILED, reason=f"the judge died of it twice: {_name(code)}"))
            else:
                again = [culprit]
        with self._changed:
            self._counters[end] += 1
            # To the front and for whoever is free: the replacement of this worker takes a while to warm up.
            self._queue.extendleft(chunk for chunk in (rest, again) if chunk)
            self._changed.notify_all()


class _Submission:
    """The verdicts of one `submit`, as they come in from the threads."""

    def __init__(self, size: int) -> None:
        self.future: Future[list[Verdict]] = Future()
        self.future.set_running_or_notify_cancel()  # from here on cancel() says no
        self._verdicts: list[Verdict | None] = [None] * size
        self._missing = size
        self._lock = threading.Lock()
        if not size:
            self.future.set_result([])

    def settle(self, positions: Iterable[int], verdict: Verdict) -> None:
        with self._lock:
            for position in positions:
                self._verdicts[position] = verdict
                self._missing -= 1
            complete = not self._missing
        if complete:
            self.future.set_result(cast(list[Verdict], self._verdicts))


@dataclass(slots=True)
class _Task:
    """One distinct answer of a submission, and where its verdict belongs."""

    submission: _Submission
    item: JudgeItem
    data: bytes
    """The item as it travels."""
    positions: list[int] = field(default_factory=list)
    crashes: int = 0

    def settle(self, verdict: Verdict) -> None:
        self.submission.settle(self.positions, verdict)

    def same_sample(self, other: _Task) -> bool:
        return (self.item.spec, self.item.image_sizes) == (other.item.spec, other.item.image_sizes)


def _chunks(tasks: Sequence[_Task], workers: int) -> list[list[_Task]]:
    """Tasks in the pieces in which they are handed to workers."""
    most = min(max(math.ceil(len(tasks) / (2 * workers)), MIN_CHUNK), MAX_CHUNK)
    chunks: list[list[_Task]] = []
    size = MAX_CHUNK_BYTES
    for task in tasks:
        if size >= MAX_CHUNK_BYTES or len(chunks[-1]) == most:
            chunks.append([])
            size = 0
        chunks[-1].append(task)
        size += len(task.data)
    return chunks


def _fail(tasks: Iterable[_Task], reason: str) -> None:
    for task in tasks:
        task.settle(Verdict(Status.FAILED, reason=reason))


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Worker:
    """A worker process and the channel to it. Raises OSError if it can't be started."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._channel, theirs = socket.socketpair()
        self._stream = cast(BinaryIO, self._channel.makefile("rb"))
        with theirs:
            # An exec, never a bare fork: this process holds threads and torch. -P, since the folder that training
            # is started in may hold a signal.py. A process group of its own: Ctrl-C is for the parent to handle.
            # One hash seed, since the order of sympy's sets is the order in which it tries things.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vtriune.reward.worker", *arguments],
                stdin=theirs.fileno(),
                stdout=2,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
                process_group=0,
            )

    def await_ready(self) -> None:
        self.allow(START_LIMIT)
        self.receive()

    def allow(self, seconds: float) -> None:
        """Let `send` and `receive` wait so long before they raise TimeoutError."""
        self._channel.settimeout(seconds)

    def send(self, data: bytes) -> None:
        send_frame(self._channel, data)

    def receive(self) -> bytes:
        return receive_frame(self._stream)

    def end(self) -> int:
        """Close the channel, which a living worker takes as its end, and wait for it."""
        self._stream.close()
        self._channel.close()
        try:
            return self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
