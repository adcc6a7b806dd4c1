"""A real server process: what it answers, whom it refuses, how it starts and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from tests.reward.conftest import SLOW, Serve, Server, item
from tests.reward.test_pool import TOWER, mixed_items

from vtriune.reward.api import MAX_VALUES
from vtriune.reward.app import create_app
from vtriune.reward.guard import BODIES
from vtriune.reward.judge import judge_item
from vtriune.reward.pool import AsyncJudgePool
from vtriune.reward.released import SILENT_ZERO
from vtriune.reward.service import Service, Settings
from vtriune.reward.wire import encode_item
from vtriune.types import Status, UserError, Verdict

RELEASED = {"is_training": True, "step": 1, "total_steps": 100, "image_grid_thw": [[1, 560, 840]], "image_path": None}
PAYLOAD: dict[str, Any] = {
    "response": "<think>\n2 + 2\n</think>\n<answer>\n\\boxed{4}\n</answer>",
    "prompt": "What is 2 + 2?",
    "answer": "4",
    "solution": r"\boxed{4}",
    "data_source": "mm_math",
    "reward_verifier": "mathverify",
    "reward_verifier_parm": orjson.dumps(RELEASED).decode(),
    "format_ratio": 0.0,
    "accuracy_ratio": 1.0,
}
BOXES: dict[str, Any] = {
    "reward_verifier": "detection",
    "solution": "<answer>\n[{'bbox_2d': [0, 0, 100, 100], 'label': 'cat'}]\n</answer>",
    "response": "<think>\n?\n</think>\n<answer>\n[{'bbox_2d': [0, 0, 90, 100], 'label': 'cat'}]\n</answer>",
    "reward_verifier_parm": orjson.dumps(RELEASED | {"det_reward_ratio": {"iou_max_label_first": 1.0}}).decode(),
}
BRIEF: dict[str, Any] = {
    "reward_verifier": "shaping",
    "reward_verifier_parm": orjson.dumps(
        RELEASED | {"kind": "soft_overlong", "max_tokens": 100, "buffer_tokens": 50}
    ).decode(),
}
"""Full marks up to 50 tokens, none from 100 on."""
BROKEN: dict[str, dict[str, Any]] = {
    "no length": BRIEF,
    "unknown verifier": {"reward_verifier": "mathverfy"},
    "broken parameters": {"reward_verifier_parm": "{"},
    "null parameters": {"reward_verifier_parm": "null"},
    "no steps": {"reward_verifier_parm": orjson.dumps(RELEASED | {"total_steps": 0}).decode()},
    "no width": BOXES | {"reward_verifier_parm": orjson.dumps(RELEASED | {"image_grid_thw": [[1, 9, 0]]}).decode()},
    "unreadable gold": {"solution": "Paris"},
    "weights that sum up to 0": {"accuracy_ratio": 1.0, "format_ratio": -1.0},
    "weights that sum up to almost 0": {"accuracy_ratio": 1.0, "format_ratio": -0.99},
}


def drowsy(name: str, seconds: float = SLOW) -> dict[str, Any]:
    return item(name, "a", "a", spec={"verifier": "drowse", "parameters": {"seconds": seconds}})


def judge(server: Server, *items: dict[str, Any]) -> list[dict[str, Any]]:
    reply = server.http.post("/v1/judge", json={"items": items})
    assert reply.status_code == httpx.codes.OK, reply.text
    verdicts: list[dict[str, Any]] = reply.json()["verdicts"]
    return verdicts


def metric(server: Server, name: str) -> float:
    line = next(line for line in server.http.get("/metrics").text.splitlines() if line.startswith(name))
    return float(line.rpartition(" ")[2])


# /v1


def test_verdicts_over_http_are_those_of_this_process_to_the_last_bit(server: Server) -> None:
    items = mixed_items()
    body = b",".join(b'{"id":"%d",' % n + encode_item(one)[1:] for n, one in enumerate(items))
    reply = server.http.post("/v1/judge", content=b'{"items":[' + body + b"]}")
    assert reply.status_code == httpx.codes.OK, reply.text
    told = orjson.loads(reply.content)["verdicts"]
    assert [one.pop("id") for one in told] == [str(n) for n in range(len(items))]
    verdicts = [Verdict(**{**one, "status": Status(one["status"])}) for one in told]
    assert verdicts == [judge_item(one) for one in items]


def test_a_stream_tells_each_verdict_when_it_is_ready(server: Server) -> None:
    asked = [item("slow", response=TOWER), *(item(f"quick {n}", gold=str(n)) for n in range(4))]
    with server.http.stream("POST", "/v1/judge/stream", json={"items": asked}) as reply:
        lines, seen = [], []
        for line in reply.iter_lines():
            lines.append(orjson.loads(line))
            seen.append(time.monotonic())
    assert [line["index"] for line in lines][-1] == 0
    assert sorted(line["index"] for line in lines) == list(range(5))
    assert all(asked[line["index"]]["id"] == line["id"] for line in lines)
    assert lines[-1]["reason"] == "cpu limit"
    assert seen[-1] - seen[0] > 0.5  # the first was on its way long before the last was known


def test_a_lost_stream_leaves_the_server_as_it_was(server: Server) -> None:
    with server.http.stream("POST", "/v1/judge/stream", json={"items": [drowsy("gone"), item("x")]}) as reply:
        next(reply.iter_lines())
    assert judge(server, drowsy("gone"))[0]["reward"] == 1.0


def test_an_item_that_is_sent_again_is_not_judged_again(server: Server) -> None:
    before = metric(server, "vtriune_pool_judged_total")
    with ThreadPoolExecutor(4) as clients:
        verdicts = list(clients.map(lambda _: judge(server, drowsy("again"))[0], range(4)))
    assert len({orjson.dumps(one) for one in verdicts}) == 1
    assert judge(server, drowsy("again"))[0] == verdicts[0]
    assert metric(server, "vtriune_pool_judged_total") == before + 1


@pytest.mark.parametrize(
    "other",
    [
        item("same", response=r"\boxed{5}"),
        item("same", gold="5"),
        item("same", spec={"accuracy_weight": 0.5}),
        item("same", spec={"preset": "paper", "gold": "5"}),
        item("same", spec={"verifier": "counting", "gold": "5"}),
    ],
)
def test_an_id_with_another_content_is_another_item(server: Server, other: dict[str, Any]) -> None:
    first, second = judge(server, item("same"), other)
    assert first["reward"] == 1.0
    assert second["reward"] != 1.0
    assert [one["reward"] for one in judge(server, other, item("same"))] == [second["reward"], 1.0]


def test_the_same_item_with_another_length_is_another_item(server: Server) -> None:
    parameters = {"kind": "soft_overlong", "max_tokens": 100, "buffer_tokens": 50}
    spec = {"verifier": "shaping", "parameters": parameters}
    verdicts = judge(server, *(item("t", spec=spec, response_tokens=n) for n in (10, 75, 1000)))
    assert [one["accuracy"] for one in verdicts] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"foo": 1}, "items.1.foo"),
        ({"response": 7}, "items.1.response"),
        ({"id": "x" * 201}, "items.1.id"),
        ({"spec": {"gold": None}}, "items.1.spec.gold"),
        ({"spec": {"verifer": "x"}}, "items.1.spec.verifer"),
        ({"spec": {"preset": "old"}}, "items.1.spec.preset"),
        ({"progress": {"step": 0, "total_steps": 1}}, "items.1.progress.split"),
        ({"progress": {"step": 0, "total_steps": 1, "split": "test", "n": 1}}, "items.1.progress.n"),
        ({"image_sizes": [{"original": [1], "resized": [1, 1]}]}, "items.1.image_sizes.0.original"),
        ({"image_sizes": [{"original": [1, 1], "resized": [1, 1], "n": 1}]}, "items.1.image_sizes.0.n"),
        ({"response_tokens": -1}, "items.1.response_tokens"),
        ({"response_tokens": "7"}, "items.1.response_tokens"),
        ({"spec": {"format_weight": False}}, "items.1.spec.format_weight"),
    ],
)
def test_a_refusal_names_item_and_field(server: Server, change: dict[str, Any], where: str) -> None:
    reply = server.http.post("/v1/judge", json={"items": [item(), item("2", **change)]})
    assert reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert reply.json()["detail"].startswith(where)


@pytest.mark.parametrize("path", ["/v1/judge", "/v1/judge/stream"])
def test_a_batch_has_1_to_4096_items(server: Server, path: str) -> None:
    for items in ([], [item(str(n)) for n in range(4097)]):
        reply = server.http.post(path, json={"items": items})
        assert reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    for body in (b"", b"[]", b"{", b"\xff", b'{"items":[' + b"[" * 10**5, b'{"items": 1}', b"null"):
        reply = server.http.post(path, content=body)
        assert reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY
        assert reply.json()["detail"].startswith(("body", "items"))
    reply = server.http.post(path, json={"items": [item()], "more": 1})
    assert reply.json()["detail"].startswith("more")


def test_a_sample_beyond_the_judges_limits_is_unscorable_and_its_neighbours_are_judged(server: Server) -> None:
    nested: Any = 1
    for _ in range(9):
        nested = {"a": [nested]}
    size = {"original": [1, 1], "resized": [1, 1]}
    first, *others, last = judge(
        server,
        item("first"),
        item("deep", spec={"parameters": nested}),
        item("long", spec={"parameters": {"a": "x" * 65536}}),
        item("many", image_sizes=[size] * 65),
        item("large", image_sizes=[size | {"original": [10**6 + 1, 1]}]),
        item("less than none", image_sizes=[size | {"original": [-1, 1]}]),
        item("named", spec={"verifier": "x" * 10_000}),
        item("last"),
    )
    assert (first["reward"], last["reward"]) == (1.0, 1.0)
    assert {one["status"] for one in others} == {"unscorable"}
    assert all(
        word in one["reason"]
        for word, one in zip(["deeper", "longer", "pictures", "sides", "sides", "verifier"], others, strict=True)
    )


SOUND = orjson.dumps(item())[:-1]
FULL = 32 * 2**20
HOSTILE: dict[str, tuple[bytes, int]] = {
    # the shortest of their kind, as many as go into a body
    "unknown fields": (b'{"items":[' + SOUND + b"," + b'"k":0,' * (FULL // 6 - 100) + b'"k":0}]}', 413),
    "as many unknown fields as are read": (
        b'{"items":[' + SOUND + b"".join(b',"k%d":0' % n for n in range(MAX_VALUES - 100)) + b"}]}",
        422,
    ),
    "nothing but unknown fields": (
        b'{"items":[{' + b",".join(b'"k%d":0' % n for n in range(MAX_VALUES - 100)) + b"}]}",
        422,
    ),
    "as many faults as are read": (b'{"items":[' + b"{}," * (MAX_VALUES // 2 - 100) + b"{}]}", 422),
    "parameters": (
        b'{"items":['
        + SOUND.replace(b'"4"}', b'"4","parameters":{"":[' + b"0," * (FULL // 2 - 200) + b"0]}}")
        + b"}]}",
        413,
    ),
    "lists": (b'{"items":[' + b"[]," * (FULL // 3 - 100) + b"[]]}", 413),
    "texts": (b'{"items":[' + b'"",' * (FULL // 3 - 100) + b'""]}', 413),
    "quotes": (b'{"items":[' + b'"' * (FULL - MAX_VALUES - 100) + b"," * (MAX_VALUES + 1) + b"]}", 413),
    "one text": (b'{"items":["' + rb"\\,\"," * (FULL // 6 - 100) + b'"]}', 422),
}


@pytest.fixture(scope="module")
def attacked(serve: Serve) -> Server:
    """A server of whose memory nothing else is asked."""
    return serve()


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("path", ["/v1/judge", "/judge"])
def test_no_body_holds_up_the_others_or_takes_much_memory(attacked: Server, hostile: str, path: str) -> None:
    body, status = HOSTILE[hostile]
    assert len(body) <= FULL
    # The kernel forgets the peak so far.
    Path(f"/proc/{attacked.process.pid}/clear_refs").write_text("5")
    before = resident(attacked, "VmHWM:")
    with ThreadPoolExecutor(1) as other:
        pending = other.submit(attacked.http.post, path, content=body)
        while not pending.done():
            assert attacked.http.get("/healthz").status_code == httpx.codes.OK
        reply = pending.result()
    assert reply.status_code == (413 if path == "/judge" and hostile != "one text" else status), reply.text
    assert reply.json()["detail"]
    assert len(reply.content) < 1000
    # The body in pieces, as a whole and without its texts; and each fault holds what it is a fault of.
    assert resident(attacked, "VmHWM:") < before + 8 * FULL


def test_texts_full_of_commas_count_as_one_value(server: Server) -> None:
    text = r'[{"a\b": 1}, ' * 1000
    asked = [item(str(n), response=text + r"\boxed{4}") for n in range(200)]
    assert len(orjson.dumps(asked)) > MAX_VALUES * 8
    assert {one["reward"] for one in judge(server, *asked)} == {1.0}


def test_poison_is_a_verdict_and_health_does_not_wait_for_it(server: Server) -> None:
    poison = [item(f"tower {n}", response=TOWER + " " * n) for n in range(4)]
    with ThreadPoolExecutor(1) as other:
        pending = other.submit(judge, server, *poison, item("light"))
        healthy = [server.http.get("/healthz").status_code for _ in range(20)]
        verdicts = pending.result()
    assert set(healthy) == {httpx.codes.OK}
    assert [one["reason"] for one in verdicts] == ["cpu limit"] * 4 + [""]
    assert [one["reward"] for one in verdicts] == [0.0] * 4 + [1.0]


def test_an_overlong_text_has_its_verdict(server: Server) -> None:
    [long_answer, long_gold] = judge(server, item("1", response="4" * 400_001), item("2", gold="4" * 400_001))
    assert (long_answer["status"], long_answer["reward"]) == ("scored", 0.0)
    assert long_gold["status"] == "unscorable"


# The released protocol


def test_the_greeting_is_what_the_released_client_looks_for(server: Server) -> None:
    reply = server.http.get("/")
    assert (reply.status_code, reply.json()) == (200, {"message": "Reward Judge Server"})


def test_the_released_payload_is_judged_as_by_the_released_server(server: Server) -> None:
    reply = server.http.post("/judge", json=PAYLOAD)
    assert reply.json() == {
        "rewards": {"format_reward": 1.0, "accuracy_reward": 1.0, "reflection_reward": 0.0, "final_reward": 1.0}
    }
    rewards = server.http.post("/judge", json=PAYLOAD | BOXES | {"format_ratio": 0.1}).json()["rewards"]
    assert rewards["final_reward"] == pytest.approx((0.9 + 0.1) / 1.1, abs=1e-9)
    assert rewards["report_iou_50_label_match_pure_reward"] == pytest.approx(0.9, abs=1e-9)


def test_fields_that_the_released_server_does_not_know_are_passed_over_as_there(server: Server) -> None:
    assert server.http.post("/judge", json=PAYLOAD | {"more": 1}).status_code == httpx.codes.OK


@pytest.mark.parametrize(("tokens", "accuracy"), [(50, 1.0), (75, 0.5), (100, 0.0)])
def test_a_verifier_that_shapes_by_length_is_told_the_payloads_response_tokens(
    server: Server, tokens: int, accuracy: float
) -> None:
    reply = server.http.post("/judge", json=PAYLOAD | BRIEF | {"response_tokens": tokens})
    assert reply.json()["rewards"]["accuracy_reward"] == accuracy


def test_without_response_tokens_the_reply_says_what_to_send(server: Server) -> None:
    reply = server.http.post("/judge", json=PAYLOAD | BRIEF)
    assert reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert "send response_tokens along" in reply.json()["detail"]


@pytest.mark.parametrize("tokens", [-1, "75", 7.5])
def test_a_length_that_is_no_count_is_refused_by_name(server: Server, tokens: object) -> None:
    reply = server.http.post("/judge", json=PAYLOAD | BRIEF | {"response_tokens": tokens})
    assert reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert "response_tokens" in reply.json()["detail"]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_silent_zero_is_an_error_with_its_reason(server: Server, broken: str) -> None:
    reply = server.http.post("/judge", json=PAYLOAD | BROKEN[broken])
    assert reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert list(reply.json()) == ["detail"]
    assert reply.json()["detail"]


@pytest.fixture(scope="module")
def small(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with tight limits that answers as the released one wherever there is no verdict."""
    options = ("--queue", "4", "--max-body", "1", "--deadline", "2", "--silent-zeros", "--judge-preset", "modern")
    started = serve(*options, "--load", "sleepy:drowse")
    started.await_ready()
    return started


@pytest.mark.parametrize("broken", [name for name in BROKEN if name != "unreadable gold"])
def test_silent_zeros_can_be_had(small: Server, broken: str) -> None:
    reply = small.http.post("/judge", json=PAYLOAD | BROKEN[broken])
    assert (reply.status_code, reply.json()) == (200, SILENT_ZERO)


def test_the_preset_of_judge_is_the_servers_to_say(small: Server) -> None:
    # Gold that is a word has a verdict in `modern` only.
    rewards = small.http.post("/judge", json=PAYLOAD | {"solution": "Paris", "response": r"\boxed{Paris}"}).json()
    assert rewards["rewards"]["accuracy_reward"] == 1.0


# Limits


@pytest.mark.parametrize("path", ["/judge", "/v1/judge", "/v1/judge/stream"])
def test_a_body_beyond_the_limit_is_413_whether_it_says_its_length_or_not(small: Server, path: str) -> None:
    whole = b" " * (2**20 + 1)

    def parts() -> Iterator[bytes]:
        yield from (whole[:1000], whole[1000:])

    for content in (whole, parts()):
        reply = small.http.post(path, content=content)
        assert reply.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
        assert "1048576" in reply.json()["detail"]
    assert small.http.post(path, content=whole[:-1]).status_code == httpx.codes.UNPROCESSABLE_ENTITY


def test_a_body_of_any_size_is_not_kept(small: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 2**20

    before = resident(small)
    with contextlib.suppress(httpx.WriteError):  # refused and hung up while we were still sending
        assert small.http.post("/v1/judge", content=endless()).status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    assert resident(small) < before + 16 * 2**20


def test_bodies_that_are_never_finished_do_not_add_up(small: Server) -> None:
    head = b"POST /v1/judge HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1048576\r\n\r\n"
    port = int(small.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for _ in range(BODIES):
            channel = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            channel.sendall(head + b" " * (2**20 - 1))
        while True:  # until all of it has been read
            reply = small.http.post("/v1/judge", content=b" " * 1000)
            if reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
                break
        assert reply.headers["Retry-After"] == "1"
    while small.http.post("/v1/judge", content=b" " * 1000).status_code != httpx.codes.UNPROCESSABLE_ENTITY:
        pass


def test_beyond_the_queue_is_429_with_the_time_to_wait(small: Server) -> None:
    with ThreadPoolExecutor(1) as other:
        pending = other.submit(judge, small, *(drowsy(str(n), 0.3 + n / 1000) for n in range(4)))
        while not metric(small, "vtriune_queue_depth"):
            pass
        for path, body in (("/v1/judge", {"items": [drowsy(str(n)) for n in range(4)]}), ("/judge", PAYLOAD)):
            reply = small.http.post(path, json=body)
            if reply.status_code == httpx.codes.OK:  # there is room for one
                assert path == "/judge"
                continue
            assert reply.status_code == httpx.codes.TOO_MANY_REQUESTS
            assert int(reply.headers["Retry-After"]) >= 1
        assert [one["reward"] for one in pending.result()] == [1.0] * 4


def test_of_requests_that_come_at_once_no_more_are_taken_than_the_queue_holds() -> None:
    async def ask() -> tuple[list[int], int]:
        pool = AsyncJudgePool(workers=1)
        service = Service(pool, Settings(queue=1000))
        await pool.start()
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as http:
            bodies = [{"items": [item(f"{n}-{m}", str(m)) for m in range(900)]} for n in range(8)]
            replies = await asyncio.gather(*(http.post("/v1/judge", json=body) for body in bodies))
            last = await http.post("/v1/judge", json=bodies[0])
        await pool.close()
        return [reply.status_code for reply in (*replies, last)], service.waiting

    *statuses, last = (codes := asyncio.run(ask()))[0]
    assert sorted(statuses) == [200] + [429] * 7
    assert (last, codes[1]) == (200, 0)


def test_what_two_ask_for_has_its_verdict_when_one_hangs_up(server: Server) -> None:
    asked = drowsy("shared", 3)
    with ThreadPoolExecutor(1) as other, contextlib.ExitStack() as stack:
        stack.enter_context(server.http.stream("POST", "/v1/judge/stream", json={"items": [asked, item("light")]}))
        pending = other.submit(judge, server, asked)
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/judge", json={"items": [asked]}, timeout=1.5)
        stack.close()
        assert pending.result()[0]["reward"] == 1.0


def test_what_two_ask_for_has_its_verdict_when_the_time_of_the_first_is_over(small: Server) -> None:
    asked = drowsy("late for one", 3)
    with ThreadPoolExecutor(2) as others:
        first = others.submit(judge, small, asked)
        time.sleep(1.5)
        second = others.submit(judge, small, asked)
        assert first.result()[0]["reason"] == "no verdict within 2 s"
        assert second.result()[0]["reward"] == 1.0


@pytest.mark.parametrize("path", ["/v1/judge", "/v1/judge/stream"])
def test_who_hangs_up_leaves_no_work_behind(serve: Serve, path: str) -> None:
    server = serve("--load", "sleepy:drowse")
    server.await_ready()
    asked = [drowsy(str(n), 0.5 + n / 10**6) for n in range(200)]
    with (
        contextlib.suppress(httpx.ReadTimeout),
        server.http.stream("POST", path, json={"items": asked}, timeout=1.5) as reply,
    ):
        next(reply.iter_lines())
    while metric(server, "vtriune_queue_depth"):
        time.sleep(0.05)
    assert metric(server, 'vtriune_verdicts_total{source="",status="failed",verifier="drowse"}') > 150


def test_what_has_no_verdict_by_the_deadline_is_failed_and_the_rest_is_scored(small: Server) -> None:
    late, light = judge(small, drowsy("late", 30), item("light"))
    assert (late["status"], late["reward"], late["reason"]) == ("failed", None, "no verdict within 2 s")
    assert light["reward"] == 1.0
    # A failure is not remembered: whoever asks again has it judged again.
    assert judge(small, drowsy("late", 0.01))[0]["reward"] == 1.0


# Who may ask


def test_a_token_is_wanted_everywhere_but_for_health(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("sesame\n", encoding="utf-8")
    server = serve("--host", "0.0.0.0", "--token-file", file, token="sesame")
    anyone = httpx.Client(base_url=server.http.base_url, trust_env=False, timeout=60)
    paths = ("/", "/readyz", "/metrics", "/v1/verifiers", "/docs", "/openapi.json", "/nothing")
    for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}):
        assert {anyone.get(path, headers=headers).status_code for path in paths} == {401}
        for path in ("/judge", "/v1/judge", "/v1/judge/stream"):
            reply = anyone.post(path, json=PAYLOAD, headers=headers)
            assert (reply.status_code, list(reply.json())) == (401, ["detail"])
    assert anyone.get("/healthz").status_code == httpx.codes.OK
    server.await_ready()
    assert judge(server, item())[0]["reward"] == 1.0
    assert "sesame" not in server.log.read_text(encoding="utf-8")


def test_another_address_wants_a_token_or_the_word_insecure() -> None:
    with pytest.raises(UserError, match=r"--token-file.*--insecure"):
        Settings(host="0.0.0.0").check()
    Settings(host="0.0.0.0", token="x").check()
    Settings(host="0.0.0.0", insecure=True).check()
    Settings(host="127.0.0.1").check()


def test_a_web_page_of_another_name_is_refused(server: Server) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "[::1", ""):
        assert server.http.get("/", headers={"Host": host}).status_code == 421
    for host in ("localhost", "127.0.0.1:8192", "[::1]:80", "[::1]"):
        assert server.http.get("/", headers={"Host": host}).status_code == httpx.codes.OK
    reply = server.http.get("/", headers={"Origin": "http://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_a_request_is_one_line_of_the_log_whatever_it_holds(server: Server) -> None:
    server.http.get("/x%0a2026-01-01%20INFO%20forged")
    judge(server, item("one\ntwo", response="three\nfour", source="five\nsix", spec={"verifier": "se\nven"}))
    server.http.post("/judge", json=PAYLOAD | {"reward_verifier": "eight\nnine"})
    lines = server.logged()
    ours = re.compile(
        r"[-\d]+ [\d:,]+ INFO (GET|POST|DELETE|PUT|PATCH|OPTIONS|HEAD|TRACE|QUERY) '[^\n]*' \d+ [\d.]+ ms"
    )
    assert [line for line in lines if not ours.fullmatch(line)] == []
    assert any(r"/x\n2026" in line for line in lines)


# What the server tells of itself


def test_the_metrics_count_by_verifier_source_and_status_with_bounded_names(server: Server) -> None:
    judge(server, *(item(f"m{n}", source=f"source {n}") for n in range(250)))
    judge(server, *(item(f"n{n}", spec={"verifier": f"made up {n}"}) for n in range(20)))
    text = server.http.get("/metrics").text
    sources = set(re.findall(r'vtriune_verdicts_total{source="([^"]*)"', text))
    assert "other" in sources
    assert len(sources) <= 201
    verifiers = set(re.findall(r'verifier="([^"]*)"', text))
    assert "unknown" in verifiers
    assert not any(one.startswith("made up") for one in verifiers)
    assert metric(server, 'vtriune_request_seconds_count{path="/v1/judge"}') >= 2
    assert metric(server, "vtriune_queue_depth") == 0
    assert 'vtriune_workers_killed_total{reason="cpu limit"}' in text


def test_the_verifiers_are_told_with_their_parameters(server: Server) -> None:
    told = server.http.get("/v1/verifiers").json()
    by_name = {one["name"]: one for one in told["verifiers"]}
    assert {"mathverify", "detection", "drowse"} <= set(by_name)
    assert by_name["detection"]["parameters"]["properties"]["eval_iou_threshold"]["description"]
    assert by_name["drowse"]["parameters"]["properties"]["seconds"]["type"] == "number"
    assert "math-verify" in told["versions"]


def test_the_documentation_needs_nothing_from_elsewhere(server: Server) -> None:
    page = server.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page.text)
    schema = server.http.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in page.text
    references = set(re.findall(r'"#/components/schemas/(\w+)"', orjson.dumps(schema).decode()))
    assert references <= set(schema["components"]["schemas"])


def test_other_methods_and_paths_are_errors_of_the_one_shape(server: Server) -> None:
    for reply, status in (
        (server.http.get("/judge"), 405),
        (server.http.post("/healthz"), 405),
        (server.http.get("/nothing"), 404),
        (server.http.post("/v1/judge/"), 404),
    ):
        assert (reply.status_code, list(reply.json())) == (status, ["detail"])


# The process


def resident(server: Server, which: str = "VmRSS:") -> int:
    """Bytes of memory of the server's own process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition(which)[2].split()[0]) * 1024


def test_the_server_is_small_and_imports_nothing_heavy(server: Server) -> None:
    assert resident(server) < 200 * 2**20
    code = (
        "import sys, vtriune.reward.server, vtriune.reward.pool\n"
        "from vtriune.reward.app import _verifiers, create_app\n"
        "from vtriune.reward.service import Service, Settings\n"
        "create_app(Service(vtriune.reward.pool.AsyncJudgePool(), Settings()))\n"
        "_verifiers()\n"
        "print(*{'torch', 'transformers', 'sympy', 'scipy', 'math_verify'} & set(sys.modules))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert ran.stdout.strip() == ""


def test_a_port_in_use_is_said_in_one_line(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "vtriune.cli", "serve", "--port", port]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ran.returncode == 2
    assert "choose another --host or --port" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_discovery_file_is_there_while_the_server_is(serve: Serve, tmp_path: Path) -> None:
    server = serve("--discovery-dir", tmp_path / ".reward_server", "--job", "j-1")
    folder = tmp_path / ".reward_server" / "j-1"
    [file] = folder.iterdir()
    # As the released client reads it.
    assert httpx.get(f"http://{file.name}/", trust_env=False).json() == {"message": "Reward Judge Server"}
    assert server.stop() == 0
    assert list(folder.iterdir()) == []


def test_the_discovery_file_of_a_server_for_others_names_no_wildcard(serve: Serve, tmp_path: Path) -> None:
    serve("--host", "0.0.0.0", "--insecure", "--discovery-dir", tmp_path, "--job", "j-2")
    [file] = (tmp_path / "j-2").iterdir()
    address, _, port = file.name.partition(":")
    socket.inet_aton(address)
    assert address != "0.0.0.0"
    assert port.isdigit()


def test_at_its_end_a_server_finishes_what_is_under_way(serve: Serve) -> None:
    server = serve("--load", "sleepy:drowse")
    server.await_ready()
    with ThreadPoolExecutor(1) as other:
        pending = other.submit(judge, server, *(drowsy(str(n), 1 + n / 100) for n in range(3)))
        while not metric(server, "vtriune_queue_depth"):
            pass
        server.process.send_signal(signal.SIGTERM)
        assert [one["reward"] for one in pending.result()] == [1.0] * 3
    assert server.process.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


def test_what_is_not_done_when_grace_is_over_is_answered_as_failed(serve: Serve) -> None:
    server = serve("--load", "sleepy:drowse", "--grace", "3")
    server.await_ready()
    with ThreadPoolExecutor(1) as other:
        pending = other.submit(judge, server, drowsy("1", 50), item("2"))
        while not metric(server, "vtriune_queue_depth"):
            pass
        server.process.send_signal(signal.SIGTERM)
        slow, light = pending.result()
    assert (slow["status"], slow["reason"]) == ("failed", "the judge pool was closed")
    assert light["reward"] == 1.0
    assert server.process.wait() == 0


def test_workers_end_with_a_server_that_is_killed(serve: Serve) -> None:
    server = serve()
    server.await_ready()
    judge(server, item())
    tree = children(server.process.pid)
    assert tree
    server.process.kill()
    server.process.wait()
    while any(Path(f"/proc/{pid}").exists() and not zombie(pid) for pid in tree):
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Ids of all processes below one."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(file.parent.name), *children(int(file.parent.name))]
    return found


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_requests_wait_for_workers_that_warm_up(serve: Serve) -> None:
    server = serve()
    if server.http.get("/readyz").status_code == httpx.codes.SERVICE_UNAVAILABLE:
        assert server.http.get("/healthz").status_code == httpx.codes.OK
    assert judge(server, item())[0]["reward"] == 1.0
    assert server.http.get("/readyz").status_code == httpx.codes.OK


def test_many_clients_at_once_get_their_own_verdicts(server: Server) -> None:
    wrong: list[object] = []

    def ask(client: int) -> None:
        for n in range(20):
            name = f"{client}-{n}"
            [verdict] = judge(server, item(name, response=rf"\boxed{{{n}}}", gold=str(n if client % 2 else n + 1)))
            if (verdict["id"], verdict["reward"]) != (name, float(client % 2)):
                wrong.append(verdict)

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert wrong == []
