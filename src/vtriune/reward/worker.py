"""What a worker process of `pool.AsyncJudgePool` does: judge the items it is sent, one by one, within limits.

The limits are the kernel's, so that they hold inside one long call into C as well: a timer of CPU time whose
signal kills the process, and a cap of its address space. How the process ended tells the pool whose fault:

    SIGVTALRM   gold took too long to parse: the sample is unscorable
    SIGPROF     the answer took too long to judge: it is scored 0
    exit code 0 nobody's: memory is full of what was judged before, the rest is for a fresh worker

Nothing here decides what becomes of the items that a dead worker leaves; the pool does. Where workers come from is
`forkserver.py`.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

from vtriune.reward.judge import JudgeItem, Phase, judge_item, ran_out_of_memory
from vtriune.reward.wire import decode_item, encode_verdict, receive_frame, send_frame
from vtriune.types import Progress, RewardSpec, Status

DROP = READY = b""
"""The empty frame. From the pool: forget what you have been sent. From the worker: I have nothing left to do."""

UNHURRIED = 0.005
"""Seconds that an answer takes, computing or waiting, before its worker looks whether the rest was taken away."""

_ANSWERED, _WANTED = (
    f'[{{"bbox_2d": [0, 0, 9, 9], "label": "a"}}, {{"bbox_2d": [0, 0, 9, {y}], "label": "a"}}]' for y in (8, 10)
)
"""Of each list the first box overlaps both of the other most, so that the matching has to be computed, with scipy."""

_FIRST = (("mathverify", r"\boxed{2}", r"\frac{1}{2}"), ("mathverify", r"\boxed{\sqrt{12}}", r"2\sqrt{3}"))
"""Verifier, answer and gold: what most answers need."""
_LATER = (
    ("detection", _ANSWERED, _WANTED),
    ("mathverify", r"\boxed{x^2+2x+1}", "(x+1)^2"),
    ("mathverify", r"\boxed{x \in (1,2) \cup (3,4)}", r"(1,2) \cup (3,4)"),
    ("mathverify", r"\boxed{\lim_{x\to 0} \sin(x)/x}", "1"),
    ("mathverify", r"\boxed{\int_0^1 x dx}", "1/2"),
    ("mathverify", r"\boxed{5000 m}", "5 km"),
    ("mathverify", r"\boxed{\frac{\sqrt{3}}{2}\pi}", r"30^\circ"),
    ("mathverify", r"\boxed{6.5 \times 10^{-3}}", r"12 \text{ cm}"),
    ("mathverify", r"\boxed{y = 2x + 1}", r"(x, y) = (1, \frac{3}{2})"),
    ("mathverify", r"\boxed{\{\sqrt{2}, \frac{1}{2}\}}", r"[0.5, \frac{3}{2}) \cup \{3\}"),
    ("ocr", "aim", "aid"),
    ("table", "<table><tr><td>1</td></tr></table>", "<table><tr><td>2</td></tr></table>"),
    ("mask", '{"size": [2, 2], "counts": [0, 4]}', '{"size": [2, 2], "counts": [1, 3]}'),
)
"""What some need: sympy imports many modules late, other verifiers have libraries of their own."""


def serve(channel: socket.socket, cpu_limit: float, memory_limit: int) -> None:
    """Judge what comes in through `channel`, in order, until it is closed. The process is to end after it."""
    _set_limits(memory_limit)
    _make_pages_its_own()
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    comm = os.open("/proc/self/comm", os.O_WRONLY)

    now: Phase = "answer"

    def entering(phase: Phase) -> None:
        nonlocal now
        if phase != now:
            os.write(comm, phase.encode())  # the process's name: where the pool looks what is slow
        if now == "gold":
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        now = phase
        signal.setitimer(signal.ITIMER_VIRTUAL if phase == "gold" else signal.ITIMER_PROF, cpu_limit)

    pending: deque[dict[str, Any]] = deque()
    fresh, unhurried, judged = True, False, 0
    send_frame(channel, READY)
    try:
        while True:
            if not pending or (unhurried and select.select([channel], [], [], 0)[0]):
                data = receive_frame(channel)
                if data != DROP:
                    # If nothing was left, the next DROP is about what follows the first of these.
                    unhurried = unhurried and bool(pending)
                    pending.extend(orjson.loads(data))
                else:
                    pending.clear()
                    send_frame(channel, READY)
                continue
            item = decode_item(pending.popleft())
            began = time.monotonic()
            verdict = judge_item(item, entering)
            signal.setitimer(signal.ITIMER_VIRTUAL if now == "gold" else signal.ITIMER_PROF, 0)
            unhurried = time.monotonic() - began > UNHURRIED
            if ran_out_of_memory(verdict) and not fresh:
                # Perhaps because of what earlier answers left behind: unanswered, it goes to another worker first.
                return
            fresh = False
            send_frame(channel, encode_verdict(verdict))
            # What an answer leaves behind (sympy caches results) would count against its neighbours.
            judged += 1
            if (unhurried or judged % 16 == 0) and _address_space(statm) > memory_limit * 3 // 4:
                return
    except (EOFError, OSError):  # the pool has gone
        return


def warm_up() -> Iterator[None]:
    """Have imported and set up what verifiers need late, so that no answer and no gold pays for it.

    Goes step by step; after the first, most answers can be judged.

    Raises:
        RuntimeError: something does not work here.
    """
    for case in _FIRST:
        _judge_once(*case)
    yield
    for case in _LATER:
        _judge_once(*case)
        yield


def _make_pages_its_own() -> None:
    """Judge something new, since memory that is shared until it is written to makes a first answer slow."""
    number = os.getpid()  # what its parent has judged is remembered, not judged again
    for answer in (rf"\frac{{{number}}}{{7}}", rf"{number}\sqrt{{3}}", f"{number}x + 1"):
        _judge_once("mathverify", rf"\boxed{{{answer}}}", rf"\frac{{{number}}}{{11}}")
    _judge_once("detection", *(boxes.replace(", 9, ", f", {number}, ") for boxes in (_ANSWERED, _WANTED)))


def _judge_once(verifier: str, answer: str, gold: str) -> None:
    verdict = judge_item(JudgeItem(answer, RewardSpec(verifier, gold), Progress(0, 1, "test")))
    if verdict.status is not Status.SCORED:
        raise RuntimeError(f"warming up: {verdict.reason}")


def _set_limits(memory_limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGPROF, signal.SIGVTALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF, signal.SIGVTALRM))


def _address_space(statm: int) -> int:
    """Bytes held now: what RLIMIT_AS counts."""
    return int(os.pread(statm, 128, 0).split()[0]) * resource.getpagesize()
