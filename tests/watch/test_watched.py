"""What the dashboard keeps in memory of the runs that it was asked for: not more bytes than it may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtriune.monitor.history import Curves
from vtriune.monitor.store import RunStore
from vtriune.watch import watched
from vtriune.watch.watched import Answers, WatchedRuns


def curves(values: int) -> Curves:
    steps, numbers, few = np.arange(values), np.zeros((values, 1)), np.zeros(1, np.float32)
    return Curves(steps, numbers, numbers.astype(np.float32), numbers.astype(np.float32), few, few)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in "abc"]
    for folder in found:
        with RunStore.create(folder, recipe={}, total_steps=9, threads=1) as store:
            for step in range(1, 9):
                store.log(step, "train", {f"all/{name}": step / 8 for name in ("reward", "accuracy")})
    return found


def test_answers_of_all_runs_together_stay_within_their_bytes_and_the_longest_unasked_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watched, "ANSWER_BYTES", 100_000)
    answers, asked = Answers(), list[int]()

    def ask(question: int, size: int = 1000) -> Curves:
        def compute() -> Curves:
            asked.append(question)
            return curves(size)

        return answers.once(question, "state", compute)

    assert ask(0).nbytes == 24_008
    for question in range(1, 4):
        ask(question)
        ask(0)
        assert answers.size == (question + 1) * 24_008
    ask(4)
    assert answers.size == 4 * 24_008
    assert asked == [0, 1, 2, 3, 4]
    ask(0)
    ask(1)
    assert asked == [0, 1, 2, 3, 4, 1]  # 0 was asked for lately, 1 was not
    ask(5, size=10_000)  # more than there may be: told, and not kept
    assert answers.size == 4 * 24_008
    answers.once("text", 1, lambda: b"x" * 50)
    answers.once("text", 2, lambda: b"x" * 80)
    assert answers.size == 4 * 24_008 + 80


def test_histories_stay_within_their_bytes_and_the_run_that_is_asked_for_is_kept(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = WatchedRuns()
    opened = [runs.get(folder) for folder in folders]
    for run in opened:
        assert "all/reward" in run.history().names("train")
    assert 8 * 40 < opened[0].size < 10_000
    assert [runs.get(folder) for folder in folders] == opened
    monkeypatch.setattr(watched, "HISTORY_BYTES", 2 * opened[0].size)
    assert runs.get(folders[2]) is opened[2]  # drops the one that was asked for longest ago, the first
    assert runs.get(folders[1]) is opened[1]
    assert runs.get(folders[0]) is not opened[0]
    monkeypatch.setattr(watched, "HISTORY_BYTES", 1)
    assert runs.get(folders[1]) is opened[1]
    assert runs.get(folders[2]) is not opened[2]


def test_an_answer_says_nothing_of_a_history_that_was_read_anew(folders: list[Path]) -> None:
    run = WatchedRuns().get(folders[0])
    run.history()
    assert run.once("question", "state", lambda: b"old") == b"old"
    assert run.once("question", "state", lambda: b"new") == b"old"
    (folders[0] / "history.bin").unlink()
    with RunStore.resume(folders[0], step=4, threads=1) as store:
        store.log(5, "train", {"all/reward": 0.0, "all/accuracy": 0.0})
    run.history()
    assert run.once("question", "state", lambda: b"new") == b"new"
