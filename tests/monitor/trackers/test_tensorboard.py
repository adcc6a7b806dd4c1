import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from vtriune.monitor.trackers.tensorboard import TensorBoard


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_every_figure_under_its_metric(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    for step in (1, 2):
        tracker.write(step, "train", {"math/reward": step / 4, "org/coco/iou_50": 0.5, "all/reward": step})
    tracker.write(2, "eval", {"math/score": 55.0})
    tracker.close(finished=True)
    events = EventAccumulator(str(tmp_path / "train"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"reward/math", "iou_50/org/coco", "reward/all"}
    assert curve(tmp_path / "train", "reward/math") == [(1, 0.25), (2, 0.5)]
    assert curve(tmp_path / "eval", "score/math") == [(2, 55.0)]


def test_figures_are_on_the_disk_before_the_writer_is_closed(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    tracker.write(1, "train", {"all/reward": 0.25})
    assert curve(tmp_path / "train", "reward/all") == [(1, 0.25)]
    tracker.close(finished=True)


def test_a_resumed_run_withdraws_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        tracker.write(step, "train", {"all/reward": 1.0})
    tracker.close(finished=True)
    tracker = TensorBoard(tmp_path, resumed_at=2)
    tracker.write(3, "train", {"all/reward": 0.5})
    tracker.close(finished=True)
    assert curve(tmp_path / "train", "reward/all") == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_figures_that_are_not_finite_are_shown_too(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    tracker.write(1, "train", {"optim/norm": math.inf})
    tracker.close(finished=True)
    assert curve(tmp_path / "train", "norm/optim") == [(1, math.inf)]
