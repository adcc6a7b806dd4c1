"""A worker process, spoken to as the pool does."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vtriune.reward.judge import JudgeItem
from vtriune.reward.wire import decode_verdict, encode_item, frame, join, receive_frame
from vtriune.reward.worker import DROP, READY
from vtriune.types import Progress, RewardSpec

SERVE = "import socket; from vtriune.reward.worker import serve; serve(socket.socket(fileno=0), 20.0, 4 * 2**30)"


def told(answer: str, gold: str) -> bytes:
    spec = RewardSpec("mathverify", rf"\boxed{{{gold}}}", preset="official_code")
    return frame(join([encode_item(JudgeItem(rf"\boxed{{{answer}}}", spec, Progress(0, 1, "test")))]))


@pytest.fixture
def channel() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", SERVE], stdin=theirs.fileno())
    with ours:
        yield ours
    process.wait()


def test_an_answer_handed_over_after_a_slow_one_is_judged_though_what_follows_it_is_dropped(
    channel: socket.socket,
) -> None:
    assert receive_frame(channel) == READY
    # No two are alike, and each takes far more than UNHURRIED: after the first the worker looks for a DROP.
    channel.sendall(told(r"(-\infty, 3) \cup (5, \infty)", r"(-\infty, 2) \cup (7, \infty)"))
    decode_verdict(receive_frame(channel))
    channel.sendall(told(r"(-\infty, 4) \cup (6, \infty)", r"(-\infty, 4) \cup (6, \infty)") + frame(DROP))
    verdict = receive_frame(channel)
    assert verdict != READY and decode_verdict(verdict).reward == 1
    assert receive_frame(channel) == READY


def test_what_waits_behind_a_slow_answer_is_dropped_whatever_has_come_in_after_it(channel: socket.socket) -> None:
    assert receive_frame(channel) == READY
    slow = told("+".join(f"x_{{{k}}}" for k in range(100)), "x + 1")
    # One frame of two answers, a later one, and the word to forget all but the first.
    two = frame(join([*(slow[5:-1],), told("4", "4")[5:-1]]))
    channel.sendall(two + told("5", "5") + frame(DROP))
    decode_verdict(receive_frame(channel))
    assert receive_frame(channel) == READY
    channel.sendall(told("6", "6"))
    assert decode_verdict(receive_frame(channel)).reward == 1
