import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import vtriune.monitor
from vtriune.monitor.tensorboard import TensorBoard, Unfailing


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_every_figure_under_its_metric(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    for step in (1, 2):
        tracker.write(step, "train", {"math/reward": step / 4, "org/coco/iou_50": 0.5, "all/reward": step})
    tracker.write(2, "eval", {"math/score": 55.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"reward/math", "iou_50/org/coco", "reward/all"}
    assert curve(tmp_path / "train", "reward/math") == [(1, 0.25), (2, 0.5)]
    assert curve(tmp_path / "eval", "score/math") == [(2, 55.0)]


def test_figures_are_on_the_disk_before_the_writer_is_closed(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    tracker.write(1, "train", {"all/reward": 0.25})
    assert curve(tmp_path / "train", "reward/all") == [(1, 0.25)]
    tracker.close()


def test_a_resumed_run_withdraws_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        tracker.write(step, "train", {"all/reward": 1.0})
    tracker.close()
    tracker = TensorBoard(tmp_path, resumed_at=2)
    tracker.write(3, "train", {"all/reward": 0.5})
    tracker.close()
    assert curve(tmp_path / "train", "reward/all") == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_figures_that_are_not_finite_are_shown_too(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    tracker.write(1, "train", {"optim/norm": math.inf})
    tracker.close()
    assert curve(tmp_path / "train", "norm/optim") == [(1, math.inf)]


def test_a_tracker_that_fails_is_logged_once_and_counted_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "events").write_text("a file stands where the folder should be")
    tracker = Unfailing(TensorBoard(tmp_path / "events"))
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            tracker.write(step, "train", {"all/reward": 1.0})
        tracker.close()
    assert tracker.failures == 3
    assert len(caplog.records) == 1
    assert "TensorBoard failed, training goes on" in caplog.text


def test_the_monitor_imports_no_model_library(tmp_path: Path) -> None:
    modules = sorted(path.stem for path in Path(vtriune.monitor.__path__[0]).glob("*.py"))
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module("vtriune.monitor." + name)
sys.exit(" ".join({{"torch", "tensorflow", "transformers", "datasets"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""
