"""The client beside real servers: equal verdicts, and no wrong ones whatever a server does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import StartServer, judge_workers
from tests.reward.test_pool import mixed_items
from tests.strange_servers import STRANGE, Answer, hanging, strange_server

from vtriune.reward.client import (
    BATCH,
    BREAK_AFTER,
    MAX_BACKOFF,
    AsyncRewardClient,
    RewardClient,
    _BusyError,
    _read,
    read_token,
)
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import JudgePool
from vtriune.types import ImageSize, Progress, RewardSpec, Status, UserError, Verdict

TEST = Progress(0, 1, "test")


@pytest.fixture(scope="module")
def sound(reward_server: StartServer) -> str:
    """The address of a server that nothing happens to."""
    return reward_server("--workers", "1").url


def items(count: int) -> list[JudgeItem]:
    """Answers of which every fourth is right."""
    return [JudgeItem(rf"\boxed{{{n % 4}}} {n}", RewardSpec("mathverify", "3"), TEST) for n in range(count)]


def check(verdicts: list[Verdict], count: int) -> None:
    """Every verdict is the right one."""
    assert [verdict.reward for verdict in verdicts] == [float(n % 4 == 3) for n in range(count)]


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


def beyond_limits() -> list[JudgeItem]:
    """Items of which some part is larger than the judge looks at."""
    spec, size = RewardSpec("mathverify", "4"), ImageSize((9, 9), (9, 9))
    parameters: list[dict[str, Any]] = [
        nested(15),
        nested(17),
        nested(250),
        {"a": "x" * 70_000},
        {"a": [0] * 400_000},
        {"a": 2**70},
    ]
    return [
        JudgeItem("4", spec, TEST, source="x" * 300),
        *(JudgeItem("4", replace(spec, parameters=one), TEST) for one in parameters),
        *(JudgeItem("4", spec, TEST, (size,) * count) for count in (64, 65, 70_000)),
        *(JudgeItem("4", spec, TEST, (size, ImageSize((9, 9), (9, side)))) for side in (10**6, 10**7, -1, 2**70)),
        JudgeItem("4", replace(spec, verifier="x" * 3000), TEST),
        JudgeItem("4", spec, TEST, response_tokens=2**70),
    ]


def test_servers_give_the_embedded_judges_verdicts_to_the_last_bit(sound: str) -> None:
    spec = RewardSpec("mathverify", "4", accuracy_weight=float("nan"))
    asked = [
        *mixed_items(),
        *beyond_limits(),
        JudgeItem("\ud83d", RewardSpec("mathverify", "4"), TEST),
        JudgeItem("4", RewardSpec("mathverify", "\ud800"), TEST),
        JudgeItem("4", spec, TEST),
        JudgeItem("x" * 500_000, RewardSpec("mathverify", "4"), TEST, response_tokens=7, source="long"),
    ]
    with RewardClient([sound]) as client, JudgePool(workers=1) as pool:
        assert client.submit(asked).result() == pool.submit(asked).result()
        assert client.counters()["faults"] == 0


def test_an_item_that_a_server_refuses_costs_its_neighbours_nothing(sound: str) -> None:
    asked = [replace(one, response_tokens=-1 if n in (3, 4, 20) else None) for n, one in enumerate(items(30))]
    with RewardClient([sound]) as client:
        verdicts = client.submit(asked).result()
        assert client.counters()["faults"] == 0
    for n, verdict in enumerate(verdicts):
        if n in (3, 4, 20):
            assert verdict.status is Status.FAILED
            assert "response_tokens" in verdict.reason
        else:
            assert verdict.reward == float(n % 4 == 3)


def test_what_one_server_refuses_another_is_asked(sound: str) -> None:
    def refusing(body: bytes) -> tuple[int, bytes]:
        return 422, b'{"detail":"items.1.response: an answer must be a poem"}'

    with strange_server(refusing) as url, RewardClient([url, sound]) as client:
        while any(server.broken for server in client.judge._servers):
            time.sleep(0.01)
        for _ in range(4):
            check(client.submit(items(8)).result(), 8)


def test_our_own_deadline_is_no_fault_of_a_server() -> None:
    with strange_server(hanging) as url, RewardClient([url], deadline=0.5) as client:
        for _ in range(2 * BREAK_AFTER):
            [verdict] = client.submit(items(1)).result()
            assert "no verdict within 0.5 s" in verdict.reason
        assert client.counters()["faults"] == 0
        assert client.counters()["requests"] == 2 * BREAK_AFTER
        assert not client.judge._servers[0].broken


def test_no_server_is_chosen_when_the_time_is_over(sound: str) -> None:
    async def choose(seconds: float) -> object:
        client = AsyncRewardClient([sound])
        await client.start()
        chosen = await client._choose(asyncio.get_running_loop().time() + seconds)
        await client.close()
        return chosen

    assert asyncio.run(choose(60)) is not None
    assert asyncio.run(choose(0)) is None


@pytest.mark.parametrize(
    ("said", "seconds"), [("1", 1.0), ("0", 0.0), ("9" * 999, MAX_BACKOFF), ("²", 0.0), ("-1", 0.0), ("soon", 0.0)]
)
def test_a_busy_server_is_believed_if_it_says_a_number(said: str, seconds: float) -> None:
    def busy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(429, headers=[(b"Retry-After", said.encode("latin-1"))])

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(busy)) as http:
            await _read(http, "http://127.0.0.1/v1/judge", b"")

    with pytest.raises(_BusyError) as error:
        asyncio.run(ask())
    assert error.value.seconds == seconds


def test_a_large_batch_is_shared_by_all_servers(reward_server: StartServer, sound: str) -> None:
    urls = [sound, reward_server("--workers", "1").url]
    count = 4 * BATCH + 3
    with RewardClient(urls) as client:
        check(client.submit(items(count)).result(), count)
        assert client.counters()["requests"] == 5
        assert client.counters()["faults"] == 0


def test_a_server_killed_in_the_middle_of_a_batch_costs_no_verdict(reward_server: StartServer, sound: str) -> None:
    doomed = reward_server("--workers", "1")
    slow = [
        replace(item, response=rf"\boxed{{\frac{{{3 * n}}}{{{n}}}+\sqrt{{{n}}}-\sqrt{{{n}}}+{n % 4}-3}}")
        for n, item in enumerate(items(4 * BATCH), start=1)
    ]
    with RewardClient([doomed.url, sound]) as client:
        future = client.submit(slow)
        threading.Timer(0.3, doomed.stop, [signal.SIGKILL]).start()
        verdicts = future.result()
        assert client.counters()["failed"] == 0
    assert [verdict.reward for verdict in verdicts] == [float(n % 4 == 3) for n in range(1, 4 * BATCH + 1)]


def test_all_servers_down_and_back_again_costs_time_and_no_verdict(reward_server: StartServer) -> None:
    first = reward_server("--workers", "1")
    with RewardClient([first.url], deadline=120) as client:
        check(client.submit(items(8)).result(), 8)
        first.stop(signal.SIGKILL)
        future = client.submit(items(80))
        time.sleep(3)
        assert not future.done()
        reward_server("--workers", "1", "--port", str(first.port))
        check(future.result(), 80)
        assert client.counters()["faults"] > 0


def test_what_has_no_verdict_by_the_deadline_is_failed_and_never_0(reward_server: StartServer) -> None:
    server = reward_server("--workers", "1")
    with RewardClient([server.url], deadline=4) as client:
        check(client.submit(items(4)).result(), 4)
        server.stop(signal.SIGKILL)
        verdicts = client.submit(items(3)).result()
        assert client.counters()["failed"] == 3
    for verdict in verdicts:
        assert verdict == Verdict(Status.FAILED, reason=verdict.reason)
    assert "no verdict within 4 s" in verdicts[0].reason
    assert server.url in verdicts[0].reason


@pytest.mark.parametrize("answer", STRANGE)
def test_a_server_that_misbehaves_leaves_its_answers_to_another(sound: str, answer: Answer) -> None:
    with strange_server(answer) as url, RewardClient([url, sound], patience=2) as client:
        while any(server.broken for server in client.judge._servers):
            time.sleep(0.01)
        for _ in range(6):
            check(client.submit(items(4)).result(), 4)
        assert client.counters()["repeated"] > 0


@pytest.mark.parametrize("answer", STRANGE)
def test_a_server_that_misbehaves_alone_makes_failed_verdicts_and_no_zeros(
    answer: Answer,
) -> None:
    with strange_server(answer) as url, RewardClient([url], deadline=2, patience=1) as client:
        verdicts: list[Verdict] = client.submit(items(4)).result()
    for verdict in verdicts:
        assert verdict == Verdict(Status.FAILED, reason=verdict.reason)
    assert all(verdict.reason for verdict in verdicts)


def test_a_stopped_server_is_left_alone_until_it_is_ready_again(
    reward_server: StartServer, sound: str, caplog: pytest.LogCaptureFixture
) -> None:
    frozen = reward_server("--workers", "1")
    with RewardClient([frozen.url, sound], patience=1) as client:
        check(client.submit(items(8)).result(), 8)
        assert not caplog.messages
        frozen.process.send_signal(signal.SIGSTOP)
        for _ in range(4):
            check(client.submit(items(2 * BATCH)).result(), 2 * BATCH)
        (told,) = caplog.messages
        assert told.startswith(f"reward server {frozen.url} is asked nothing until it is ready again: no reply within")
        before = client.counters()["faults"]
        check(client.submit(items(2 * BATCH)).result(), 2 * BATCH)
        assert client.counters()["faults"] == before
        frozen.process.send_signal(signal.SIGCONT)
        broken_server = client.judge._servers[0]
        while broken_server.broken:
            time.sleep(0.05)
        check(client.submit(items(2 * BATCH)).result(), 2 * BATCH)


def test_a_busy_server_is_asked_again_when_it_said(reward_server: StartServer) -> None:
    with RewardClient([reward_server("--workers", "1", "--queue", "10").url]) as client:
        futures = [client.submit(items(8)) for _ in range(30)]
        for future in futures:
            check(future.result(), 8)
        assert client.counters()["failed"] == 0


def test_a_batch_that_is_too_large_for_the_server_is_sent_in_parts(reward_server: StartServer) -> None:
    large = [replace(item, response=item.response + " " * 300_000) for item in items(12)]
    with RewardClient([reward_server("--workers", "1", "--max-body", "1").url]) as client:
        check(client.submit(large).result(), 12)


def test_a_token_is_sent_and_a_wrong_one_is_an_error_at_once(reward_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("open sesame\n")
    server = reward_server("--workers", "1", "--token-file", str(file))
    with RewardClient([server.url], token=read_token(file)) as client:
        check(client.submit(items(4)).result(), 4)
    with pytest.raises(UserError, match="token_file"):
        RewardClient([server.url], token="guess")


def test_no_server_at_all_is_an_error_that_says_how_to_start_one() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.*vtriune serve"):
        RewardClient(["http://127.0.0.1:9"], deadline=1)


@pytest.mark.parametrize("content", ["", "  \n", "ä", "a\nb"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(UserError, match="holds no token"):
        read_token(file)
    with pytest.raises(UserError, match="can't be read"):
        read_token(tmp_path / "nothing")


def test_verdicts_are_told_as_they_come_in(sound: str) -> None:
    async def judge() -> dict[int, Verdict]:
        client = AsyncRewardClient([sound])
        await client.start()
        told: dict[int, Verdict] = {}
        verdicts = await client.judge(items(5), told.__setitem__)
        await client.close()
        assert told == dict(enumerate(verdicts))
        return told

    assert len(asyncio.run(judge())) == 5


def test_what_has_no_verdict_when_the_client_is_closed_is_failed() -> None:
    with strange_server(hanging) as url:
        client = RewardClient([url])
        future = client.submit(items(3))
        client.close()
        verdicts = future.result()
    assert {(verdict.status, verdict.reason) for verdict in verdicts} == {
        (Status.FAILED, "the reward client was closed")
    }
    with pytest.raises(RuntimeError, match="closed"):
        client.submit(items(1))


def test_workers_that_a_server_loses_cost_no_verdict(reward_server: StartServer) -> None:
    server = reward_server("--workers", "1")
    with RewardClient([server.url]) as client:
        future = client.submit(items(2000))
        for worker in judge_workers(server.process.pid):
            os.kill(worker, signal.SIGKILL)
        check(future.result(), 2000)
