import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import orjson
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
import yaml

from vtriune.monitor.alerts import Alert, Alerts
from vtriune.monitor.evaluation import Evaluation, Summary, evaluate_metrics
from vtriune.monitor.files import DamagedRun
from vtriune.monitor.rollouts import read_evaluation
from vtriune.monitor.runs import (
    RunState,
    find_runs,
    inspect,
    latest_rows,
    read_alerts,
    read_metrics,
    read_recipe,
    rollout_file,
    rollout_files,
    watched,
)
from vtriune.monitor.store import RunStore, truncate_to
from vtriune.types import JudgedGroup, Progress, UserError

Judged = Callable[..., JudgedGroup]

RECIPE = {"model": "playground/base", "seed": 3, "data": [{"path": "été.parquet", "weight": 1.5}], "limit": None}
SUMMARY: Summary = {"sources": {}, "mean_before": 20.0, "mean_after": 31.0, "minutes": 1.0, "steps": 4, "seed": 3}


def create(folder: Path, total_steps: int = 4) -> RunStore:
    return RunStore.create(folder, recipe=RECIPE, total_steps=total_steps, threads=1)


def train(store: RunStore, steps: range, judged: Judged) -> None:
    """What the loop does to its store, without the learning."""
    for step in steps:
        group = judged([1.0, step / 8], sample_id=f"math.parquet#{step}")
        store.write_rollouts(step, [group], Progress(step - 1, 4, "train"))
        if step == 3:
            store.quarantine(step, group.group.sample.id, "the picture is corrupt")
            store.skip(step, [group.group.sample.id, "other#1"], "loss nan")
        if step > 1:
            store.alert(step, Alert("math", "failed", 1, "a crash", until=None if step == 2 else step))
        store.log(step, "train", {"all/reward": 0.1 + step / 7, "all/entropy": 1 / step}, {"tokens_per_s": 1000.0})
        if step % 2 == 0:
            store.write_evaluation(step, [group], [judged([1.0])], Progress(step, 4, "test"))
            store.log(step, "eval", {"all/score": step / 3})


def contents(folder: Path) -> dict[str, object]:
    """All that a run claims to repeat exactly: everything but times."""
    found: dict[str, object] = {
        str(path.relative_to(folder)): pq.read_table(path).to_pylist() for path in folder.glob("rollouts/*")
    }
    found["metrics"] = [{k: v for k, v in row.items() if k != "timing"} for row in read_metrics(folder)]
    found["quarantine"] = (folder / "quarantine.jsonl").read_bytes()
    found["skipped"] = (folder / "skipped.jsonl").read_bytes()
    found["alerts"] = (folder / "alerts.jsonl").read_bytes()
    found["recipe"] = (folder / "recipe.yaml").read_bytes()
    found["names"] = sorted(path.name for path in folder.iterdir())
    return found


def test_a_run_is_a_folder_that_anybody_can_read(tmp_path: Path, judged: Judged) -> None:
    folder = tmp_path / "runs" / "demo"
    with create(folder) as store:
        train(store, range(1, 5), judged)
        store.finish(SUMMARY)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == RECIPE == read_recipe(folder)
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["torch"] == version("torch")
    assert versions["python"] == sys.version.split()[0]
    assert versions["threads"] == 1
    assert {"transformers", "vtriune", "commit", "platform"} <= versions.keys()
    assert json.loads((folder / "summary.json").read_text()) == SUMMARY
    assert [row["step"] for row in read_metrics(folder)] == [1, 2, 2, 3, 4, 4]
    assert json.loads((folder / "quarantine.jsonl").read_text()) == {
        "step": 3,
        "sample": "math.parquet#3",
        "reason": "the picture is corrupt",
    }
    assert list(rollout_files(folder, "train")) == [1, 2, 3, 4]
    assert list(rollout_files(folder, "eval")) == [2, 4]
    info = inspect(folder)
    assert (info.state, info.step, info.total_steps, info.reward) == (RunState.FINISHED, 4, 4, 0.1 + 4 / 7)


def test_pandas_reads_figures_and_rollouts_in_one_line_each(tmp_path: Path, judged: Judged) -> None:
    with create(tmp_path / "demo") as store:
        train(store, range(1, 5), judged)
    folder = str(tmp_path / "demo")
    figures = pd.json_normalize(map(json.loads, open(f"{folder}/metrics.jsonl")))  # noqa: PTH123, SIM115 - the documented line
    rollouts = pd.read_parquet(f"{folder}/rollouts")
    assert figures[figures.split == "train"]["metrics.all/reward"].tolist() == [0.1 + step / 7 for step in range(1, 5)]
    assert len(rollouts[rollouts.split == "train"]) == 8
    assert set(rollouts[rollouts.split == "test"].decoding) == {"sampled", "greedy"}


@pytest.mark.parametrize("checkpoint", [0, 1, 2, 3])
def test_a_resumed_run_equals_the_uninterrupted_one_but_for_times(
    tmp_path: Path, judged: Judged, checkpoint: int
) -> None:
    with create(tmp_path / "straight") as store:
        train(store, range(1, 5), judged)
    with create(tmp_path / "resumed") as store:
        train(store, range(1, 5), judged)
    (tmp_path / "resumed" / "rollouts" / ".step-000005.parquet.tmp").write_bytes(b"half")
    with (tmp_path / "resumed" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"metrics": {"all/rew')
    with RunStore.resume(tmp_path / "resumed", step=checkpoint, threads=1) as store:
        assert [row["step"] for row in read_metrics(store.folder)] == [s for s in (1, 2, 2, 3) if s <= checkpoint]
        train(store, range(checkpoint + 1, 5), judged)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "straight")


def test_truncation_leaves_everything_up_to_the_step_and_nothing_after(tmp_path: Path, judged: Judged) -> None:
    with create(tmp_path) as store:
        train(store, range(1, 5), judged)
        store.finish(SUMMARY)
    truncate_to(tmp_path, 2)
    assert [(row["step"], row["split"]) for row in read_metrics(tmp_path)] == [(1, "train"), (2, "train"), (2, "eval")]
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
        "eval-000002.parquet",
        "step-000001.parquet",
        "step-000002.parquet",
    ]
    assert (tmp_path / "quarantine.jsonl").read_bytes() == b""
    assert (tmp_path / "skipped.jsonl").read_bytes() == b""
    assert read_alerts(tmp_path) == [Alert("math", "failed", 1, "a crash")]
    assert not (tmp_path / "summary.json").exists()


def test_a_run_keeps_its_id_when_it_is_resumed_and_no_two_runs_share_one(tmp_path: Path) -> None:
    with create(tmp_path / "a") as store:
        first = store.run_id
    with RunStore.resume(tmp_path / "a", step=0, threads=1) as store:
        assert store.run_id == first == json.loads((tmp_path / "a" / "run.json").read_text())["id"]
    with create(tmp_path / "b") as store:
        assert store.run_id != first


def test_an_alert_has_a_line_when_it_begins_and_one_when_it_ends(tmp_path: Path) -> None:
    over, lasts = Alert("m\ud800", "failed", 2, "a crash"), Alert("ocr", "no_spread", 1, "all 40 groups")
    with create(tmp_path) as store:
        store.alert(3, over)
        store.alert(4, lasts)
        store.alert(9, replace(over, until=6))
    lines = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert lines[0] == {
        **{"step": 3, "since": 2, "until": None},
        **{"source": "m?", "kind": "failed", "message": "a crash"},
    }
    assert [(line["step"], line["since"], line["until"]) for line in lines] == [(3, 2, None), (4, 1, None), (9, 2, 6)]
    assert read_alerts(tmp_path) == [Alert("m?", "failed", 2, "a crash", until=6), lasts]


def test_a_run_from_before_there_were_alerts_has_none_and_can_be_resumed(tmp_path: Path, judged: Judged) -> None:
    with create(tmp_path) as store:
        train(store, range(1, 3), judged)
    (tmp_path / "alerts.jsonl").unlink()
    assert read_alerts(tmp_path) == []
    with RunStore.resume(tmp_path, step=2, threads=1) as store:
        store.alert(3, Alert("math", "failed", 1, "a crash", until=2))  # its beginning was never written
    assert read_alerts(tmp_path) == [Alert("math", "failed", 1, "a crash", until=2)]


def test_a_line_that_is_no_alert_is_damage_and_a_torn_last_one_is_none(tmp_path: Path) -> None:
    with create(tmp_path) as store:
        store.alert(1, Alert("math", "failed", 1, "a crash"))
    with (tmp_path / "alerts.jsonl").open("ab") as file:
        file.write(b'{"kind": "fail')
    assert len(read_alerts(tmp_path)) == 1
    (tmp_path / "alerts.jsonl").write_text('{"step": 4, "kind": "failed"}\n')
    with pytest.raises(DamagedRun, match=r"alerts\.jsonl: the row of step 4 is no alert"):
        read_alerts(tmp_path)


def test_a_watcher_made_from_the_rows_of_a_run_goes_on_as_the_one_that_saw_them(tmp_path: Path) -> None:
    seen = Alerts()
    with create(tmp_path, total_steps=20) as store:
        for step in range(1, 7):
            figures = {"math/rollouts": 8.0, "math/failed": 0.02 * step, "math/reward": math.nan}
            store.log(step, "train", figures)
            seen.update(step, "train", figures)
        store.log(6, "eval", {"math/rollouts": 8.0, "math/score": 50.0, "math/score_se": 1.0})
        seen.update(6, "eval", {"math/rollouts": 8.0, "math/score": 50.0, "math/score_se": 1.0})
    again = watched(tmp_path)
    rows: list[tuple[Literal["train", "eval"], dict[str, float]]] = [
        ("train", {"math/rollouts": 8.0, "math/failed": 0.3}),
        ("eval", {"math/rollouts": 8.0, "math/score": 40.0, "math/score_se": 1.0}),
    ]
    for split, figures in rows:
        told = seen.update(7, split, figures)
        assert [alert.since for alert in told] == [{"train": 3, "eval": 7}[split]]
        assert again.update(7, split, figures) == told


def test_timing_adds_up_over_sessions(tmp_path: Path, judged: Judged) -> None:
    with create(tmp_path) as store:
        train(store, range(1, 3), judged)
    before = [row["timing"]["elapsed_s"] for row in read_metrics(tmp_path)]
    with RunStore.resume(tmp_path, step=2, threads=1) as store:
        train(store, range(3, 5), judged)
        assert store.elapsed > before[-1]
    elapsed = [row["timing"]["elapsed_s"] for row in read_metrics(tmp_path)]
    assert elapsed[: len(before)] == before
    assert elapsed == sorted(elapsed)
    assert inspect(tmp_path).minutes == elapsed[-1] / 60


def test_an_evaluation_can_be_compared_after_a_resume(tmp_path: Path, judged: Judged) -> None:
    sampled, greedy = [judged([1.0, 0.0], sample_id="a"), judged([1.0, 1.0], sample_id="b")], [judged([1.0])]
    with create(tmp_path) as store:
        store.write_evaluation(0, sampled, greedy, Progress(0, 4, "test"))
    stored = read_evaluation(rollout_file(tmp_path, "eval", 0))
    assert stored == Evaluation(evaluate_metrics(sampled), evaluate_metrics(greedy))


def test_figures_that_are_not_finite_are_kept_apart(tmp_path: Path) -> None:
    with create(tmp_path) as store:
        store.log(1, "train", {"all/reward": 1.0, "optim/norm": math.inf, "optim/loss": math.nan})
    row = orjson.loads((tmp_path / "metrics.jsonl").read_bytes())
    assert row["metrics"] == {"all/reward": 1.0}
    assert row["not_finite"] == {"optim/norm": "inf", "optim/loss": "nan"}


def test_rows_come_in_order_and_training_counts_from_one(tmp_path: Path) -> None:
    with create(tmp_path) as store:
        store.log(0, "eval", {})
        with pytest.raises(ValueError, match="row of step 0"):
            store.log(0, "train", {})
        store.log(1, "train", {})
        for split in ("train", "eval"):
            with pytest.raises(ValueError, match="row of step"):
                store.log(1 if split == "train" else 0, split, {})
        store.log(1, "eval", {})


def test_a_new_run_refuses_a_folder_that_holds_one(tmp_path: Path, judged: Judged) -> None:
    with create(tmp_path) as store:
        train(store, range(1, 3), judged)
    with pytest.raises(UserError, match=r"already holds a run \(stopped at step 2 of 4\): continue it with --resume"):
        create(tmp_path)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        RunStore.resume(tmp_path, step=0, threads=1)


@pytest.mark.parametrize(
    ("error", "state", "problem"),
    [
        (None, RunState.STOPPED, ""),
        (KeyboardInterrupt(), RunState.STOPPED, ""),
        (UserError("no such picture"), RunState.FAILED, "UserError: no such picture"),
    ],
)
def test_a_run_tells_how_it_ended(tmp_path: Path, error: BaseException | None, state: RunState, problem: str) -> None:
    try:
        with create(tmp_path):
            assert inspect(tmp_path).state is RunState.RUNNING
            if error:
                raise error
    except (KeyboardInterrupt, UserError):
        pass
    assert (inspect(tmp_path).state, inspect(tmp_path).problem) == (state, problem)


def test_a_second_writer_is_kept_out_while_the_first_lives(tmp_path: Path) -> None:
    with create(tmp_path), pytest.raises(UserError, match="another process is writing"):
        RunStore.resume(tmp_path, step=0, threads=1)
    with RunStore.resume(tmp_path, step=0, threads=1):
        pass


def test_resuming_with_other_versions_is_noted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with create(tmp_path):
        pass
    with RunStore.resume(tmp_path, step=0, threads=2):
        pass
    assert "threads 1 -> 2" in caplog.text
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert [session["versions_changed"] for session in sessions] == [{}, {"threads": [1, 2]}]


WRITER = """
import os, sys
from pathlib import Path
from vtriune.monitor.store import RunStore
store = RunStore.create(Path(sys.argv[1]), recipe={}, total_steps=10**6, threads=1)
if sys.argv[2] == "with a worker":
    there, here = os.pipe()
    worker = os.fork()
    if not worker:
        os.write(here, b"!")
        sys.stdin.read()
        os._exit(0)
    os.read(there, 1)  # what follows a fork has been done
    print(worker, flush=True)
figures = {f"source_{i}/reward": i / 7 for i in range(300_000)}  # some megabytes: writing a row takes a while
step = 0
while True:
    step += 1
    store.log(step, "train", {**figures, "all/reward": step / 3})
    print(step, flush=True)
"""


def start_writer(folder: Path, mode: str = "alone") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), mode]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def printed_line(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def ends_in_the_middle_of_a_row(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def kill_in_the_middle_of_an_append(folder: Path, steps: int) -> bool:
    """Kill a real writer (signal 9) after `steps` whole rows, while the next is on its way to the file.

    False if the row was complete before the signal arrived.
    """
    process = start_writer(folder)
    for step in range(1, steps + 1):
        assert printed_line(process) == step
    while not ends_in_the_middle_of_a_row(folder / "metrics.jsonl"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    return ends_in_the_middle_of_a_row(folder / "metrics.jsonl")


def test_a_writer_killed_in_the_middle_of_an_append_loses_no_earlier_step(tmp_path: Path) -> None:
    folder = next(tmp_path / str(i) for i in range(20) if kill_in_the_middle_of_an_append(tmp_path / str(i), 2))
    rows = list(read_metrics(folder))
    assert [row["step"] for row in rows][:2] == [1, 2]
    assert all(row["metrics"]["all/reward"] == row["step"] / 3 and len(row["metrics"]) == 300_001 for row in rows)
    assert next(latest_rows(folder, "train")) == rows[-1]
    assert inspect(folder).state is RunState.KILLED

    with RunStore.resume(folder, step=1, threads=1) as store:
        store.log(2, "train", {"all/reward": 0.5})
    assert [row["step"] for row in read_metrics(folder)] == [1, 2]


def test_a_history_that_can_not_be_opened_is_said_once_and_ends_nothing(
    tmp_path: Path, judged: Judged, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history.bin").mkdir()
    with create(tmp_path) as store:
        train(store, range(1, 5), judged)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert inspect(tmp_path).state is RunState.STOPPED
    assert [record.getMessage() for record in caplog.records if "history.bin" in record.getMessage()] == [
        f"{tmp_path}: history.bin is not kept up to date: [Errno 21] Is a directory: '{tmp_path / 'history.bin'}'"
    ]


TORN = {
    "metrics.jsonl": b'{"metrics": {"all/rew',
    "alerts.jsonl": b'{"kind": "no_sp',
    "quarantine.jsonl": b'{"reason": "',
    "skipped.jsonl": b"{",
    ".run.json.tmp": b'{"total_st',
    ".summary.json.tmp": b"{",
    "rollouts/.step-000005.parquet.tmp": b"PAR1 and no more",
    "history.bin": b"row ",
}


@pytest.mark.parametrize("name", TORN)
def test_a_run_killed_in_the_middle_of_any_write_opens_without_loss_of_earlier_steps(
    tmp_path: Path, judged: Judged, name: str
) -> None:
    with create(tmp_path) as store:
        train(store, range(1, 5), judged)
    before = contents(tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.write(TORN[name])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert [alert.since for alert in read_alerts(tmp_path)] == [1]
    assert (inspect(tmp_path).state, inspect(tmp_path).step) == (RunState.STOPPED, 4)
    assert list(rollout_files(tmp_path, "train")) == [1, 2, 3, 4]
    (tmp_path / "rollouts" / "step-000009.parquet").symlink_to(tmp_path / "rollouts" / "step-000001.parquet")
    assert list(rollout_files(tmp_path, "train")) == [1, 2, 3, 4]  # a link may lead out of the folder
    (tmp_path / "rollouts" / "step-000009.parquet").unlink()
    assert len(pd.read_parquet(tmp_path / "rollouts")) == 8 + 2 * 3
    with RunStore.resume(tmp_path, step=4, threads=1):
        pass
    assert contents(tmp_path) == before


def test_a_worker_that_outlives_its_killed_training_does_not_keep_the_run_locked(tmp_path: Path) -> None:
    process = start_writer(tmp_path, "with a worker")
    worker = printed_line(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(worker, 0)  # the worker lives
    assert inspect(tmp_path).state is RunState.KILLED
    with RunStore.resume(tmp_path, step=0, threads=1):
        pass
    assert process.stdin is not None
    process.stdin.close()


def test_runs_are_found_at_any_depth_and_not_inside_each_other(tmp_path: Path) -> None:
    for name in ("b", "a", "sweep/seed1"):
        with create(tmp_path / name):
            pass
    (tmp_path / "a" / "checkpoints").mkdir()
    (tmp_path / "a" / "checkpoints" / "recipe.yaml").touch()
    (tmp_path / "notes").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b", tmp_path / "sweep" / "seed1"]
    assert find_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", None),
        ("run.json", b"{"),
        ("run.json", b"[]"),
        ("run.json", b'{"total_steps": "many"}'),
        ("metrics.jsonl", None),
        ("metrics.jsonl", b"{}\n"),
        ("metrics.jsonl", b'{"step": 1, "split": "train", "metrics": {"all/reward": "high"}, "timing": {}}\n'),
    ],
)
def test_damage_is_named_when_a_run_is_looked_at(tmp_path: Path, name: str, content: bytes | None) -> None:
    with create(tmp_path):
        pass
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    info = inspect(tmp_path)
    assert info.state is RunState.DAMAGED
    assert name in info.problem


@pytest.mark.parametrize("content", [None, b"a: [", b"- 1"])
def test_a_broken_recipe_is_named(tmp_path: Path, content: bytes | None) -> None:
    with create(tmp_path):
        pass
    (tmp_path / "recipe.yaml").unlink()
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(DamagedRun, match=r"recipe\.yaml"):
        read_recipe(tmp_path)
