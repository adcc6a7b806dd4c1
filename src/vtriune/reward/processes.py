"""The pool's side of its processes: the fork server, each worker, and what the kernel tells of them.

What they do is `forkserver.py` and `worker.py`; what is decided about them is `pool.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from vtriune.reward.submission import Task
from vtriune.reward.wire import frame, frames, join
from vtriune.reward.worker import DROP

GATHER = 0.001
"""Seconds in which verdicts of a worker gather: to be woken for each costs as much as a third of a verdict."""

GATHERED = 4
"""A worker with no more answers than this left is listened to without a pause."""


class Owner(Protocol):
    """Who hears of a worker."""

    def received(self, worker: Worker, data: bytes) -> None:
        """A frame has come."""

    def lost(self, worker: Worker) -> None:
        """Its channel has closed."""


class Worker(asyncio.Protocol):
    """A worker process, as the pool sees it."""

    transport: asyncio.Transport

    def __init__(self, pool: Owner, pid: int, warm: bool) -> None:
        self.pid = pid
        self.tasks: deque[Task] = deque()
        """What it has been sent and not answered; it is at work on the first."""
        self.held: Sequence[Task] = ()
        """What waits for the same gold as its only task."""
        self.aside = True
        """It gets nothing to do: it warms up, is busy with a slow answer, or on its way out."""
        self.drops = 1
        """How often it is still to say that it has nothing left to do."""
        self.warm = warm
        """It was forked when all libraries were there."""
        self.waiting = False
        """It waits without computing."""
        self.heavy = self.postponed = self.hung = self.killed = self.dying = self.lost = False
        self.progress = 0
        self.seen, self.since, self.spent = -1, 0.0, 0.0
        """Progress when last looked at, since when it has been so, and the CPU time spent until then."""
        self.checked = 0.0, 0.0
        self._pool = pool
        self._buffer = bytearray()

    def assign(self, tasks: Sequence[Task]) -> None:
        """Send it tasks."""
        if tasks:
            self.progress += not self.tasks
            self.tasks.extend(tasks)
            self.transport.write(frame(join([task.data for task in tasks])))

    def drop(self) -> None:
        """Have it forget all but what it is at work on, and give it nothing until it says so."""
        self.aside = True
        self.drops += 1
        self.transport.write(frame(DROP))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass whole frames on, and let some more gather before the next look, unless it soon needs more to do."""
        self._buffer += data
        for content in list(frames(self._buffer)):
            self._pool.received(self, content)
        if len(self.tasks) > GATHERED and not self.transport.is_closing():
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(GATHER, self._look)

    def _look(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Pass it on."""
        self._pool.lost(self)


class ForkServer:
    """The fork server's process and the channel to it. Raises OSError if it can't be started."""

    def __init__(self, settings: str) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self.ready = self.warm = False
        self.fault = ""
        self.codes: dict[int, int] = {}
        """Exit codes of workers that have ended and are not buried."""
        with theirs:
            # An exec, never a bare fork: this process may hold threads and torch. -P, since the folder that training
            # is started in may hold a signal.py. A process group of its own: Ctrl-C is for the parent to handle.
            # One hash seed, since the order of sympy's sets is the order in which it tries things.
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "vtriune.reward.forkserver", settings],
                    stdin=theirs.fileno(),
                    stdout=2,
                    env={**os.environ, **threads, "PYTHONHASHSEED": "0"},
                    process_group=0,
                )
            except OSError:
                self.control.close()
                raise

    def order(self, message: bytes, channel: socket.socket | None) -> None:
        """Tell it what to do, with a socket if it is to fork."""
        try:
            if channel is None:
                self.control.send(message)
            else:
                socket.send_fds(self.control, [message], [channel.fileno()])
        except OSError:  # it is gone, or stuck: in either case its end will be noticed
            self.kill()

    def kill(self) -> None:
        """End it at once, and thereby its workers."""
        self._process.kill()

    def kill_unless_ready(self) -> None:
        """It has had its time to start."""
        if not self.ready:
            self.kill()

    def end(self) -> int:
        """Close the channel, which it takes as its end, and wait for it. Returns its exit code."""
        self.control.close()
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time that a process of ours has used; 0 if it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) does on Linux
    except OSError:
        return 0.0


def reads_gold(pid: int) -> bool:
    """Is it at work on gold, rather than on an answer? A worker names its process by its phase."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "gold\n"
    except OSError:
        return False


def ending(code: int) -> str:
    """How a process ended, by its exit code."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
