"""Worker processes under real hostile answers, real signals and a real death of the parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vtriune.reward.judge import MAX_CHARACTERS, JudgeItem, judge_item
from vtriune.reward.pool import MIN_MEMORY, AsyncJudgePool, JudgePool
from vtriune.reward.processes import cpu_seconds
from vtriune.reward.wire import decode_verdict, encode_item, join, receive_frame, send_frame
from vtriune.reward.worker import READY
from vtriune.types import ImageSize, Preset, Progress, RewardSpec, Status, Verdict

TEST = Progress(0, 1, "test")
TOWER = r"\boxed{9^{9^{9^9}}}"
BOX_GOLD = "<answer>\n[{'bbox_2d': [100, 100, 300, 300], 'label': 'shiba dog'}]\n</answer>"
PRESETS: tuple[Preset, ...] = ("paper", "official_code", "modern")
CRASHES = [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM]


def math_item(response: str, gold: str = r"\boxed{4}", preset: Preset = "modern") -> JudgeItem:
    return JudgeItem(response, RewardSpec("mathverify", gold, preset=preset), TEST)


def mixed_items() -> list[JudgeItem]:
    """Answers of both verifiers, all presets and both splits, some of them unscorable."""
    texts = [
        r"\boxed{4}", r"\boxed{4.0}", r"\boxed{\frac{8}{2}}", r"\boxed{5}", r"\boxed{x}", "4", "", r"\boxed{",
        "\\boxed{\u0664}",
        r"<think>\boxed{4}</think><answer>\boxed{2^2}</answer>", r"\boxed{\{1, 2\}}", r"\boxed{4} or \boxed{5}",
        f"<think>.</think>{BOX_GOLD}", BOX_GOLD.replace("300", "320"), BOX_GOLD.replace("'", '"'),
        "<answer>[]</answer>",
    ]  # fmt: skip
    ratio = {"det_reward_ratio": {"iou_max_label_first": 1.0, "iou_completeness": 0.3}}
    specs = [
        RewardSpec("mathverify", gold, 1.0, 0.5, preset=preset) for gold in (r"\boxed{4}", "") for preset in PRESETS
    ]
    specs += [RewardSpec("detection", BOX_GOLD, 1.0, 0.1, ratio, preset) for preset in PRESETS]
    specs += [
        RewardSpec("detecton", BOX_GOLD),
        RewardSpec("detection", BOX_GOLD, parameters={"iou_treshold": 1}),
        RewardSpec("detection", BOX_GOLD, parameters={"det_verifier_normalized": True}),
    ]
    places = [
        (Progress(0, 10, "train"), ()),
        (Progress(9, 10, "train"), (ImageSize((640, 480), (644, 476)),)),
        (Progress(9, 10, "test"), ()),
        (Progress(9, 0, "train"), ()),
    ]
    return [JudgeItem(text, spec, *place) for text in texts for spec in specs for place in places]


def wait_until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def pool() -> Iterator[JudgePool]:
    with JudgePool(workers=2, cpu_limit=1.0, wall_limit=3600) as pool:
        yield pool


def one_busy_worker(pool: JudgePool) -> int:
    """The worker that has been handed a runaway answer, once it is at work on it."""
    before = {pid: cpu_seconds(pid) for pid in pool.pids()}
    busy: list[int] = []

    def found() -> bool:
        busy[:] = [pid for pid in pool.pids() if cpu_seconds(pid) > before.get(pid, 0) + 0.15]
        return bool(busy)

    wait_until(found)
    return busy[0]


@pytest.mark.parametrize("preset", ["modern", "official_code"])
@pytest.mark.parametrize(
    "poison",
    [
        pytest.param(TOWER, id="tower of powers"),
        pytest.param(r"\boxed{(((5!)!)!)}", id="repeated factorials"),
        pytest.param(r"\boxed{2^{10^9}}", id="a power with 10^9 digits"),
        pytest.param(r"\boxed{" + "{" * 1000 + "4" + "}" * 1000 + "}", id="1000 nested braces"),
    ],
)
def test_a_poisonous_answer_costs_itself_its_score_and_nobody_else_anything(
    pool: JudgePool, poison: str, preset: Preset
) -> None:
    neighbours = [math_item(rf"\boxed{{{n}}}", preset=preset) for n in range(15)]
    before = pool.counters()
    verdicts = pool.submit([*neighbours[:3], math_item(poison, preset=preset), *neighbours[3:]]).result()
    poisoned = verdicts.pop(3)
    assert (poisoned.status, poisoned.reward, poisoned.correct) == (Status.SCORED, 0.0, False)
    assert poisoned.reason == "cpu limit"
    assert verdicts == [judge_item(item) for item in neighbours]
    assert pool.counters()["cpu limit"] == before["cpu limit"] + 1
    assert pool.counters()["crashed"] == before["crashed"]


@pytest.mark.parametrize(
    "heavy",
    [
        pytest.param(r"\boxed{" + "9" * 1_000_000 + "}", id="an integer of 1M digits"),
        pytest.param(r"\boxed{" + "+".join(["x"] * 1990) + "}", id="a sum of 2000 terms"),
        pytest.param("<answer>" * 40_000, id="40000 tags"),
        pytest.param("[" * 300_000, id="300000 brackets"),
        pytest.param("x" * (10 * MAX_CHARACTERS), id="4M characters"),
    ],
)
def test_a_heavy_answer_is_scored_0_one_way_or_the_other(pool: JudgePool, heavy: str) -> None:
    items = [math_item(heavy), JudgeItem(heavy, RewardSpec("detection", BOX_GOLD), TEST), math_item(r"\boxed{4}")]
    verdicts = pool.submit(items).result()
    assert [verdict.status for verdict in verdicts] == [Status.SCORED] * 3
    assert [verdict.reward for verdict in verdicts] == [0.0, 0.0, 1.0]


def test_several_poisonous_answers_in_a_batch_cost_only_themselves(pool: JudgePool) -> None:
    items = [math_item(TOWER + " " * n if n % 20 == 7 else rf"\boxed{{{n}}}") for n in range(60)]
    verdicts = pool.submit(items).result()
    for n, verdict in enumerate(verdicts):
        assert verdict.reward == (1.0 if n == 4 else 0.0)
        assert (verdict.reason == "cpu limit") == (n % 20 == 7)


def test_gold_that_never_ends_parsing_is_unscorable_and_paid_for_once_per_group(pool: JudgePool) -> None:
    gold = r"\boxed{" + "{" * 1000 + "4" + "}" * 1000 + "}"
    before = pool.counters()
    verdicts = pool.submit([*(math_item(rf"\boxed{{{n}}}", gold) for n in range(7)), math_item(r"\boxed{4}")]).result()
    assert [verdict.status for verdict in verdicts[:7]] == [Status.UNSCORABLE] * 7
    assert all(verdict.reward is None and "ground_truth" in verdict.reason for verdict in verdicts[:7])
    assert verdicts[7].reward == 1.0
    assert pool.counters()["gold cpu limit"] == before["gold cpu limit"] + 1


def test_pool_and_embedded_judge_agree_on_everything_in_order(pool: JudgePool) -> None:
    items = mixed_items()
    assert pool.submit(items).result() == [judge_item(item) for item in items]


def test_verdicts_do_not_depend_on_what_else_is_being_judged(pool: JudgePool) -> None:
    items = mixed_items()[::7]
    alone = pool.submit(items).result()
    together: dict[int, object] = {}

    def judge(number: int) -> None:
        together[number] = [pool.submit([item]).result()[0] for item in items]

    poison = pool.submit([math_item(TOWER + " " * n) for n in range(3)])
    threads = [threading.Thread(target=judge, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    poison.result()
    assert together == dict.fromkeys(range(4), alone)


def test_equal_answers_to_the_same_sample_are_judged_once(pool: JudgePool) -> None:
    right, wrong = math_item(r"\boxed{\frac{8}{2}}"), math_item(r"\boxed{\frac{7}{2}}")
    other_sample = math_item(r"\boxed{\frac{8}{2}}", gold="5")
    other_size = replace(right, image_sizes=(ImageSize((8, 8), (28, 28)),))
    before = pool.counters()
    verdicts = pool.submit([right, wrong, right, other_sample, right, other_size, wrong]).result()
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    after = pool.counters()
    assert after["judged"] - before["judged"] == 4
    assert after["reused"] - before["reused"] == 3


def test_equal_poisonous_answers_are_paid_for_once(pool: JudgePool) -> None:
    before = pool.counters()["cpu limit"]
    assert [verdict.reason for verdict in pool.submit([math_item(TOWER)] * 8).result()] == ["cpu limit"] * 8
    assert pool.counters()["cpu limit"] == before + 1


def test_the_time_limit_holds_for_each_answer_and_not_for_their_sum(pool: JudgePool) -> None:
    tenth_of_a_second = r"\boxed{" + "+".join(["x"] * 1000)
    ends = ("cpu limit", "hung", "crashed", "retired")
    before = pool.counters()
    verdicts = pool.submit([math_item(f"{tenth_of_a_second}+{n}}}") for n in range(16)]).result()
    assert {verdict.reason for verdict in verdicts} == {"not equivalent to gold"}
    after = pool.counters()
    assert [after[end] for end in ends] == [before[end] for end in ends]


def test_a_broken_parameter_is_unscorable_and_its_field_is_named(pool: JudgePool) -> None:
    spec = RewardSpec("detection", BOX_GOLD, parameters={"iou_treshold": 0.5})
    [verdict] = pool.submit([JudgeItem("", spec, TEST)]).result()
    assert verdict.status is Status.UNSCORABLE
    assert "iou_treshold" in verdict.reason


def test_a_sample_that_json_cannot_hold_is_unscorable_and_its_neighbours_are_judged(pool: JudgePool) -> None:
    verdicts = pool.submit([math_item("4", gold="\ud800"), math_item(r"\boxed{4}")]).result()
    assert [verdict.status for verdict in verdicts] == [Status.UNSCORABLE, Status.SCORED]
    assert "JSON" in verdicts[0].reason


def test_an_answer_with_half_a_surrogate_pair_is_the_models_doing_and_scored_0(pool: JudgePool) -> None:
    items = [math_item(r"\boxed{4}" + "\ud83d"), math_item(r"\boxed{4}"), math_item("\ud83d", gold="")]
    verdicts = pool.submit(items).result()
    assert verdicts == [judge_item(item) for item in items]
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0, None]
    assert "no Unicode text" in verdicts[0].reason


# A worker with one verifier more, which takes memory as it is told to.
HUNGRY = """
import socket
from vtriune.reward import worker
from vtriune.verifiers import registry
from vtriune.verifiers.base import Outcome
from vtriune.verifiers.mathverify import MathVerifyParams

class Hungry:
    name = "hungry"
    Params = MathVerifyParams
    kept = []

    def parse_gold(self, gold, params, context):
        return bytearray(int(gold))

    def judge(self, response, gold, params, context):
        self.kept.append(bytearray(int(response)))
        return Outcome(1.0, 1.0, True)

registry._VERIFIERS["hungry"] = Hungry()
worker.serve(socket.socket(fileno=0), 2.0, 2**30)
"""


@pytest.mark.parametrize(("answer", "gold", "status"), [("990", "0", Status.SCORED), ("0", "990", Status.UNSCORABLE)])
def test_what_meets_the_memory_limit_is_left_to_a_fresh_worker_unless_this_one_is(
    answer: str, gold: str, status: Status
) -> None:
    def item(answer: str, gold: str) -> JudgeItem:
        return JudgeItem(answer + "000000", RewardSpec("hungry", gold + "000000"), TEST)

    def serve(*items: JudgeItem) -> tuple[list[Verdict], int]:
        ours, theirs = socket.socketpair()
        with ours, subprocess.Popen([sys.executable, "-c", HUNGRY], stdin=theirs.fileno()) as process:
            theirs.close()
            assert receive_frame(ours) == READY
            send_frame(ours, join([encode_item(one) for one in items]))
            ours.shutdown(socket.SHUT_WR)
            verdicts = []
            with contextlib.suppress(EOFError):
                while True:
                    verdicts.append(decode_verdict(receive_frame(ours)))
            return verdicts, process.wait()

    small, large = item("1", "1"), item(answer, gold)
    verdicts, code = serve(small, large, small)
    assert ([verdict.reward for verdict in verdicts], code) == ([1.0], 0)
    [verdict], code = serve(large)
    assert (verdict.status, code) == (status, 0)
    assert "memory limit" in verdict.reason


def test_nothing_to_judge_is_nothing_to_wait_for(pool: JudgePool) -> None:
    assert pool.submit([]).result() == []


def test_what_is_cancelled_is_dropped_and_what_follows_is_judged() -> None:
    with JudgePool(workers=1, cpu_limit=30) as pool:
        pool.submit([math_item("")]).result()
        future = pool.submit([math_item(rf"\boxed{{\sqrt{{{n}}}}}") for n in range(3000)])
        assert future.cancel()
        assert pool.submit([math_item(r"\boxed{4}")]).result()[0].reward == 1.0
        wait_until(lambda: not pool.judge.depth)


def test_verdicts_are_told_one_by_one_as_they_come_in() -> None:
    async def judge() -> tuple[list[int], list[Verdict]]:
        pool = AsyncJudgePool(workers=1, cpu_limit=1.0)
        await pool.start()
        told: list[tuple[int, Verdict]] = []
        items = [math_item(TOWER), math_item(r"\boxed{4}"), math_item(r"\boxed{5}"), math_item(r"\boxed{4}")]
        verdicts = await pool.judge(items, lambda position, verdict: told.append((position, verdict)))
        await pool.close()
        assert dict(told) == dict(enumerate(verdicts))
        return [position for position, _ in told], verdicts

    order, verdicts = asyncio.run(judge())
    assert order == [1, 3, 2, 0]
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0, 0.0, 1.0]


def test_slow_gold_that_can_be_read_is_read_once_for_all_of_its_answers(pool: JudgePool) -> None:
    gold = r"\boxed{" + "+".join(["x"] * 600) + "}"
    items = [math_item(rf"\boxed{{{n}x}}", gold, "paper") for n in range(594, 602)]
    verdicts = pool.submit(items).result()
    assert [verdict.reward for verdict in verdicts] == [float(n == 600) for n in range(594, 602)]


def test_more_poisonous_answers_than_may_be_heavy_at_a_time_are_all_scored_0() -> None:
    with JudgePool(workers=1, cpu_limit=0.5) as pool:
        verdicts = pool.submit([math_item(TOWER + " " * n) for n in range(6)]).result()
        assert pool.counters()["cpu limit"] == 6
    assert {verdict.reason for verdict in verdicts} == {"cpu limit"}


def test_a_small_request_does_not_wait_for_a_large_one_before_it() -> None:
    with JudgePool(workers=1) as pool:
        pool.submit([math_item("")]).result()
        large = pool.submit([math_item(rf"\boxed{{\frac{{{n}}}{{7}}+\sqrt{{{n}}}}}") for n in range(400)])
        small = pool.submit([math_item(r"\boxed{4}")])
        assert small.result()[0].reward == 1.0
        assert not large.done()


OWN = """
import time
from pathlib import Path

def echo(response: str, gold: str) -> float:
    end = time.process_time() + 0.008
    while response.startswith("slow") and time.process_time() < end:
        pass
    return float(response.split()[1])

def nap(response: str, gold: str) -> float:
    with Path("calls").open("a") as log:
        log.write(response + " ")
    time.sleep(2)
    return 1.0
"""


@pytest.fixture
def own_verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of verifiers of the user's own."""
    (tmp_path / "own_pool_verifiers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_worker_that_is_stopped_right_after_a_slow_verdict_mixes_nothing_up(
    own_verifiers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed = [False]

    def go_on(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # one that was needed no more
            os.kill(pid, signal.SIGCONT)

    received = AsyncJudgePool.received

    def stopping(pool: AsyncJudgePool, worker: Any, data: bytes) -> None:
        if armed[0] and data:
            armed[0] = False
            os.kill(worker.pid, signal.SIGSTOP)
            threading.Timer(1.3, go_on, [worker.pid]).start()
        received(pool, worker, data)

    monkeypatch.setattr(AsyncJudgePool, "received", stopping)
    with JudgePool(1, load=["own_pool_verifiers:echo"]) as pool:
        for n in range(5):
            armed[0] = True
            first = [f"slow{n} 0.5", f"x{n} 0.1", f"y{n} 0.2"]
            second = [f"m{n}{k} 0.{k}" for k in range(3, 9)]
            futures = []
            for answers in (first, second):
                items = [JudgeItem(answer, RewardSpec("echo", "g"), TEST) for answer in answers]
                futures.append((answers, pool.submit(items)))
                time.sleep(1.5)
            for answers, future in futures:
                assert [verdict.reward for verdict in future.result()] == [float(one.split()[1]) for one in answers]


def test_answers_that_wait_hold_up_nobody_and_are_judged_once(own_verifiers: Path) -> None:
    with JudgePool(2, load=["own_pool_verifiers:nap"]) as pool:
        pool.submit([math_item("")]).result()
        waiting = pool.submit([JudgeItem(f"nap{n}", RewardSpec("nap", f"{n}"), TEST) for n in range(6)])
        wait_until((own_verifiers / "calls").exists)
        for n in range(20):
            assert pool.submit([math_item(rf"\boxed{{{n}}}")]).result()[0].reward == float(n == 4)
        assert not waiting.done()
        assert {verdict.reward for verdict in waiting.result()} == {1.0}
    calls = (own_verifiers / "calls").read_text().split()
    assert sorted(calls) == [f"nap{n}" for n in range(6)]


def test_a_fork_server_that_is_stuck_is_replaced() -> None:
    with JudgePool(workers=1, cpu_limit=0.5) as pool:
        pool.submit([math_item("")]).result()
        wait_until(lambda: pool.counters()["started"] >= 6)  # warm: nothing is left for it to do
        fork_server = int(Path(f"/proc/{pool.pids()[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(fork_server, signal.SIGSTOP)
        for pid in pool.pids():
            os.kill(pid, signal.SIGKILL)
        verdicts = pool.submit([math_item(TOWER), math_item(r"\boxed{4}")]).result()
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0]


def test_poison_is_scored_0_on_a_crowded_machine_too() -> None:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        with JudgePool(workers=2, cpu_limit=0.3, wall_limit=10) as pool:
            answers = [TOWER + " " * n if n % 4 == 0 else rf"\boxed{{{n}}}" for n in range(20)]
            verdicts = pool.submit([math_item(answer) for answer in answers]).result()
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert {verdict.reason for verdict in verdicts[::4]} == {"cpu limit"}
    assert {verdict.status for verdict in verdicts} == {Status.SCORED}


def test_the_fork_servers_death_costs_no_answer_its_verdict() -> None:
    with JudgePool(workers=1) as pool:
        pool.submit([math_item("")]).result()
        future = pool.submit([math_item(rf"\boxed{{\frac{{{4 * n}}}{{{n}}}}}") for n in range(1, 200)])
        parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pool.pids()}
        [fork_server] = parents
        os.kill(fork_server, signal.SIGKILL)
        assert {verdict.reward for verdict in future.result()} == {1.0}


def test_workers_keep_their_channel_from_verifiers_that_print_or_read(pool: JudgePool) -> None:
    pool.submit([math_item(r"\boxed{4}")]).result()
    for pid in pool.pids():
        descriptors = Path(f"/proc/{pid}/fd")
        assert (descriptors / "0").readlink() == Path(os.devnull)
        assert (descriptors / "1").readlink() == (descriptors / "2").readlink()


def test_workers_have_their_memory_capped() -> None:
    with JudgePool(workers=1, memory_limit=MIN_MEMORY) as pool:
        pool.submit([math_item(r"\boxed{4}")]).result()
        pid = pool.pids()[0]
        [line] = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "address space" in line]
        assert line.split()[3:5] == [str(MIN_MEMORY)] * 2


def test_a_swollen_worker_retires_and_no_answer_is_lost() -> None:
    spec = RewardSpec("detection", "", preset="paper")
    items = [
        JudgeItem(BOX_GOLD, replace(spec, gold=chr(0x1F600 + n) * (MAX_CHARACTERS - 1) + BOX_GOLD[:1]), TEST)
        for n in range(400)
    ]
    items.append(JudgeItem(BOX_GOLD, replace(spec, gold=BOX_GOLD), TEST))
    with JudgePool(workers=1, memory_limit=MIN_MEMORY) as pool:
        verdicts = pool.submit(items).result()
        counters = pool.counters()
    assert {verdict.status for verdict in verdicts[:-1]} == {Status.UNSCORABLE}
    assert verdicts[-1].accuracy == 1.0
    assert counters["retired"] >= 1
    assert counters["crashed"] == 0


@pytest.mark.parametrize("number", CRASHES)
def test_a_worker_killed_in_the_middle_of_a_batch_loses_nothing(number: signal.Signals) -> None:
    slow = r"\boxed{" + "+".join(["x"] * 1500) + "+"
    items = [math_item(slow + f"{n}}}") for n in range(6)] + [math_item(r"\boxed{4}")]
    with JudgePool(workers=1, cpu_limit=30) as pool:
        pool.submit([math_item("")]).result()
        future = pool.submit(items)
        os.kill(one_busy_worker(pool), number)
        verdicts = future.result()
        assert pool.counters()["crashed"] == 1
    assert [verdict.status for verdict in verdicts] == [Status.SCORED] * 7
    assert [verdict.reward for verdict in verdicts] == [0.0] * 6 + [1.0]


def test_idle_workers_that_are_killed_are_replaced() -> None:
    with JudgePool(workers=1) as pool:
        pool.submit([math_item("")]).result()
        killed = pool.pids()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(is_running(pid) for pid in killed))
        assert pool.submit([math_item(r"\boxed{4}")]).result()[0].reward == 1.0


def test_an_answer_that_two_workers_died_of_is_failed_with_the_signal_and_its_neighbours_are_judged() -> None:
    with JudgePool(workers=1, cpu_limit=30) as pool:
        pool.submit([math_item("")]).result()
        future = pool.submit([math_item(TOWER), math_item(r"\boxed{4}")])
        os.kill(one_busy_worker(pool), signal.SIGSEGV)
        wait_until(lambda: pool.counters()["crashed"] == 1)
        os.kill(one_busy_worker(pool), signal.SIGSEGV)
        verdicts = future.result()
    assert (verdicts[0].status, verdicts[0].reward) == (Status.FAILED, None)
    assert "SIGSEGV" in verdicts[0].reason
    assert verdicts[1].reward == 1.0


def test_a_worker_that_hangs_without_computing_is_given_up_and_its_answer_is_failed() -> None:
    with JudgePool(workers=1, cpu_limit=30, wall_limit=4) as pool:
        pool.submit([math_item("")]).result()
        future = pool.submit([math_item(TOWER), math_item(r"\boxed{4}")])
        os.kill(one_busy_worker(pool), signal.SIGSTOP)
        verdicts = future.result()
        assert pool.counters()["hung"] == 1
    assert (verdicts[0].status, verdicts[0].reward) == (Status.FAILED, None)
    assert "4 s" in verdicts[0].reason
    assert verdicts[1].reward == 1.0


def test_what_has_no_verdict_when_the_pool_is_closed_is_failed() -> None:
    with JudgePool(workers=1, cpu_limit=30) as pool:
        pool.submit([math_item("")]).result()
        future = pool.submit([math_item(TOWER + " " * n) for n in range(9)])
        pid = one_busy_worker(pool)
    for verdict in future.result():
        assert (verdict.status, verdict.reason) == (Status.FAILED, "the judge pool was closed")
    assert not is_running(pid)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit([math_item(r"\boxed{4}")])


def test_workers_that_do_not_start_make_failed_verdicts_and_no_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, fault in (("/bin/false", "exit code 1"), ("/no/such/python", "No such file")):
        monkeypatch.setattr(sys, "executable", program)
        with JudgePool(workers=1) as pool:
            [verdict] = pool.submit([math_item(r"\boxed{4}")]).result()
        assert (verdict.status, verdict.reward) == (Status.FAILED, None)
        assert fault in verdict.reason


def test_workers_end_with_their_parent_even_in_the_middle_of_an_answer() -> None:
    program = """
import sys, time
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import JudgePool
from vtriune.types import Progress, RewardSpec
pool = JudgePool(workers=2)
spec = RewardSpec("mathverify", "4")
pool.submit([JudgeItem(f"{n}", spec, Progress(0, 1, "test")) for n in range(32)]).result()
pool.submit([JudgeItem(sys.argv[1], spec, Progress(0, 1, "test"))])
print(*pool.pids(), flush=True)
time.sleep(3600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program, TOWER], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    with parent, parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        parent.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_ctrl_c_ends_training_and_workers_without_a_word_from_them() -> None:
    program = """
import sys
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import JudgePool
from vtriune.types import Progress, RewardSpec
with JudgePool(workers=2, cpu_limit=3600) as pool:
    spec = RewardSpec("mathverify", "4")
    pool.submit([JudgeItem(f"{n}", spec, Progress(0, 1, "test")) for n in range(32)]).result()
    print(*pool.pids(), flush=True)
    pool.submit([JudgeItem(sys.argv[1], spec, Progress(0, 1, "test"))]).result()
"""
    trainer = subprocess.Popen(
        [sys.executable, "-c", program, TOWER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert trainer.stdout
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    before = [cpu_seconds(pid) for pid in pids]
    wait_until(lambda: any(cpu_seconds(pid) > spent + 0.1 for pid, spent in zip(pids, before, strict=True)))
    os.killpg(trainer.pid, signal.SIGINT)
    _, complaints = trainer.communicate()
    assert trainer.returncode == -signal.SIGINT
    assert complaints.count("Traceback") == complaints.count("KeyboardInterrupt") == 1
    assert not any(is_running(pid) for pid in pids)


LATE = (
    (r"\sqrt{12}", r"2\sqrt{3}"), ("x^2+2x+1", "(x+1)^2"), (r"\int_0^1 x dx", "1/2"), (r"\sum_{n=1}^{5} n", "15"),
    (r"\lim_{x\to 0} \sin(x)/x", "1"), ("(1,2]", "(1,2]"), (r"x \in (1,2) \cup (3,4)", r"(1,2) \cup (3,4)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"), (r"x<4", "x<5"),
    (r"\frac{d}{dx} x^2", "2x"), (r"\log_2 8", "3"), ("x^3-1=0", "x^3=1"), ("3+4i", "4i+3"), (r"50\%", "0.5"),
)  # fmt: skip
"""Answers and golds of many kinds, most of which sympy has a module of its own for."""
RIVALS, WANTED = (
    f"<answer>[{{'bbox_2d':[0,0,100,100],'label':'a'}},{{'bbox_2d':[0,0,{x},100],'label':'a'}}]</answer>"
    for x in (90, 110)
)
"""Of each list the first box overlaps both of the other most."""


def test_what_is_imported_late_is_imported_before_the_first_answer() -> None:
    items = [math_item(rf"\boxed{{{answer}}}", f"${gold}$", preset) for preset in PRESETS for answer, gold in LATE]
    ratio = {"det_reward_ratio": {"map": 1.0, "iou_max_label_first": 1.0, "iou_max_iou_first": 1.0}}
    rivals = [JudgeItem(RIVALS, RewardSpec("detection", WANTED, parameters=ratio, preset=p), TEST) for p in PRESETS]
    program = """
import sys, orjson
from vtriune.reward import worker
list(worker.warm_up())
before = set(sys.modules)
verdicts = [worker.judge_item(worker.decode_item(fields)) for fields in orjson.loads(sys.stdin.buffer.read())]
print(*(set(sys.modules) - before), *{str(verdict.status) for verdict in verdicts})
"""
    data = join([encode_item(item) for item in [*items, *mixed_items(), *rivals]])
    judged = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert set(judged.stdout.decode().split()) == {"scored", "unscorable", "failed"}


def test_boxes_that_compete_do_not_pay_for_an_import() -> None:
    with JudgePool(workers=1, cpu_limit=0.1) as pool:
        [verdict] = pool.submit(
            [JudgeItem(RIVALS, RewardSpec("detection", WANTED, parameters={"eval_iou_threshold": 0}), TEST)]
        ).result()
    assert (round(verdict.accuracy or 0, 3), verdict.reason) == (0.909, "")


def test_workers_stay_free_of_torch_and_transformers() -> None:
    program = "import sys, vtriune.reward.pool, vtriune.reward.worker as w; list(w.warm_up()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "math_verify" in loaded
    assert not {"torch", "transformers", "datasets"} & set(loaded)


@pytest.mark.parametrize(
    "arguments", [{"workers": 0}, {"cpu_limit": 0}, {"wall_limit": -1}, {"memory_limit": MIN_MEMORY - 1}]
)
def test_limits_that_cannot_work_are_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        JudgePool(**arguments)
