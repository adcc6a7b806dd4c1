"""With wandb itself, offline; what it would send is read from the file that it writes (LevelDB's log format)."""

import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from vtriune.monitor.trackers.base import TrackedRun
from vtriune.types import UserError

wandb = pytest.importorskip("wandb", reason="pip install wandb")
from wandb.proto import wandb_internal_pb2  # noqa: E402

from vtriune.monitor.trackers.wandb import STEP, Wandb  # noqa: E402

_BLOCK, _HEADER = 32768, 7


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def records(path: Path) -> list[Any]:
    """The records of a .wandb file. wandb's own process may still be writing it when `finish` returns."""
    found = list(_read(path))
    while not any(record.WhichOneof("record_type") == "exit" for record in found):
        time.sleep(0.05)
        found = list(_read(path))
    return found


def _read(path: Path) -> Iterator[Any]:
    """Records as far as they are written: fragments with a header (checksum, length, kind), none across blocks."""
    content, at, parts = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if at + _HEADER + length > len(content):
            return
        parts += content[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def history(path: Path) -> list[dict[str, float]]:
    rows = [record.history for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(i.nested_key) or i.key: orjson.loads(i.value_json) for i in row.item} for row in rows]


def files(run: TrackedRun) -> list[Path]:
    return sorted(run.folder.glob("wandb/offline-run-*/*.wandb"))


def test_wandb_is_given_every_figure_the_recipe_and_how_the_run_ended(tracked: Callable[..., TrackedRun]) -> None:
    run = tracked()
    tracker = Wandb(run)
    many = {f"source_{i}/reward": i / 7 for i in range(5000)}  # more than a block of the file
    tracker.write(1, "train", {"math/reward": 0.25, "org/coco/iou_50": 0.5} | many)
    tracker.write(1, "eval", {"math/score": 55.0})
    tracker.write(2, "train", {"math/reward": 0.5})
    tracker.close(finished=False)
    (path,) = files(run)
    first, second, third = history(path)
    assert {name: value for name, value in first.items() if not name.startswith("_")} == {
        "reward/math": 0.25,
        "iou_50/org/coco": 0.5,
        STEP: 1,
    } | {f"reward/source_{i}": i / 7 for i in range(5000)}
    assert (second["eval_score/math"], second[STEP]) == (55.0, 1)
    assert (third["reward/math"], third[STEP]) == (0.5, 2)
    found = {record.WhichOneof("record_type"): record for record in records(path)}
    about = found["run"].run
    assert (about.run_id, about.project, about.display_name) == (run.id, "test-project", "demo")
    config = {item.key: orjson.loads(item.value_json) for item in about.config.update}
    assert {key: config[key] for key in run.recipe} == run.recipe
    assert found["exit"].exit.exit_code == 1
    metric = found["metric"].metric
    assert (metric.glob_name, metric.step_metric) == ("*", STEP)


def test_a_resumed_run_goes_on_with_the_same_run_of_wandb(tracked: Callable[..., TrackedRun]) -> None:
    for run, step in ((tracked(), 1), (replace(tracked(), resumed_at=1), 2)):
        tracker = Wandb(run)
        tracker.write(step, "train", {"math/reward": step / 4})
        tracker.close(finished=True)
    ids = {record.run.run_id for path in files(run) for record in records(path) if record.HasField("run")}
    assert ids == {run.id}
    assert [row[STEP] for path in files(run) for row in history(path)] == [1, 2]


def test_wandb_without_a_key_asks_nobody_and_says_what_to_do(
    tracked: Callable[..., TrackedRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb.teardown()  # it reads its settings once a process
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    try:
        with pytest.raises(UserError, match="run `wandb login`, or set WANDB_MODE=offline"):
            Wandb(tracked())
    finally:
        wandb.teardown()
