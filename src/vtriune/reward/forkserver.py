"""The process that workers are forked from: it has imported and set up all that verifiers need, once.

A fork takes milliseconds where a start takes seconds, so that a killed worker is replaced at once, and workers share
the memory of the libraries. This process judges nothing, runs no threads and ends, with all of its workers, when the
pool's end of the control channel closes, however that happens.

It is ready when it can fork workers for most answers, and warm when it has got all libraries; workers forked before
that are to be replaced. Messages are JSON, one per packet.

From the pool: {"fork": true} with a socket attached, {"kill": pid}, {"lower": pid} (its priority). To the pool:
{"ready": true}, {"warm": true}, {"forked": pid} or {"not_forked": reason} in the order of the requests,
{"ended": pid, "code": exit code, negative for a signal}, {"error": reason} if it can't begin.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator

import orjson

from vtriune.reward.worker import serve, warm_up
from vtriune.types import UserError
from vtriune.verifiers import registry, remote

LOW_PRIORITY = 7
"""Niceness of a worker that is stuck with one answer: others go first, and it still gets a fifth of a busy core."""

Limits = tuple[float, int]
"""Seconds of CPU time per answer, bytes of address space."""

MAX_MESSAGE = 4096
DONE = object()

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Set up, then fork, kill and report until the control channel, which is standard input, closes."""
    settings = orjson.loads(sys.argv[1])
    control = _take_control()
    try:
        for place in settings["load"]:
            registry.register(place)
        remote.configure(settings["remotes"])
        steps = warm_up()
        next(steps)
    except (UserError, RuntimeError) as error:
        _tell(control, error=str(error))
        return
    warming: Iterator[None] | None = steps
    _keep_shared()
    children: set[int] = set()
    wakeup, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    _tell(control, ready=True)
    try:
        while True:
            readable, _, _ = select.select([control.fileno(), wakeup], [], [], 0 if warming else None)
            if warming and not readable and next(warming, DONE) is DONE:
                warming = None
                _keep_shared()
                _tell(control, warm=True)
            if wakeup in readable:
                os.read(wakeup, 4096)
                _reap(control, children)
            limits = settings["cpu_limit"], settings["memory_limit"]
            if control.fileno() in readable and not _obey(control, children, (wakeup, waker), limits):
                return
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _keep_shared() -> None:
    """What there is now shall not be touched, and thereby copied, by the garbage collection of any worker."""
    gc.collect()
    gc.freeze()


def _obey(control: socket.socket, children: set[int], wakeups: tuple[int, int], limits: Limits) -> bool:
    """Carry out one message of the pool. Returns whether the pool is still there."""
    data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1)
    if not data:
        return False
    order = orjson.loads(data)
    # A child that has not been reaped keeps its number, so that no stranger can be met.
    if order.get("kill") in children:
        os.kill(order["kill"], signal.SIGKILL)
    if order.get("lower") in children:
        os.setpriority(os.PRIO_PROCESS, order["lower"], LOW_PRIORITY)
    if "fork" in order:
        channel = socket.socket(fileno=descriptors[0])
        try:
            pid = os.fork()
        except OSError as error:
            channel.close()
            _tell(control, not_forked=str(error))
            return True
        if not pid:
            _become_worker(control, channel, wakeups, limits)
        channel.close()
        children.add(pid)
        _tell(control, forked=pid)
    return True


def _become_worker(control: socket.socket, channel: socket.socket, wakeups: tuple[int, int], limits: Limits) -> None:
    code = 1
    try:
        # Should the parent be killed, nobody could tell any more how this process ended.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        control.close()
        for descriptor in wakeups:
            os.close(descriptor)
        serve(channel, *limits)
        code = 0
    except BaseException:  # it must not return into the loop of its parent
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _reap(control: socket.socket, children: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        children.discard(pid)
        _tell(control, ended=pid, code=os.waitstatus_to_exitcode(status))


def _tell(control: socket.socket, **message: object) -> None:
    with contextlib.suppress(OSError):  # the pool has gone, which the next read will tell
        control.send(orjson.dumps(message))


def _take_control() -> socket.socket:
    """The control channel, moved away from where a verifier's print() or input() could reach it."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return control


if __name__ == "__main__":
    main()
