import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from vtriune.monitor.alerts import CALM, WINDOW, Alerts
from vtriune.monitor.trackers.base import TrackingConfig, open_trackers
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


def test_an_alert_is_a_curve_of_1_while_it_lasts_and_0_where_it_ends(tmp_path: Path) -> None:
    alerts = Alerts()
    with open_trackers(TrackingConfig(), tmp_path, "id", {}, resumed_at=None) as trackers:
        for step in range(1, 30):
            broken = 4 <= step < 8
            figures = {"org/coco/rollouts": 8.0, "org/coco/failed": float(broken)}
            changes = alerts.update(step, "train", figures)
            trackers.write(step, "train", figures | alerts.figures("train", changes))
        for step, score in ((5, 50.0), (10, 10.0), (15, 50.0)):
            figures = {"math/rollouts": 8.0, "math/score": score, "math/score_se": 1.0}
            changes = alerts.update(step, "eval", figures)
            trackers.write(step, "eval", figures | alerts.figures("eval", changes))
    train, held_out = (tmp_path / "tensorboard" / split for split in ("train", "eval"))
    told = curve(train, "alert/org/coco/failed")
    end = 7 + WINDOW + CALM - 1  # the fifth step whose window holds none of the broken ones
    assert told == [*((step, 1.0) for step in range(4, end)), (end, 0.0)]
    assert curve(held_out, "alert/math/evaluation_fell") == [(10, 1.0), (15, 0.0)]


def test_figures_that_are_not_finite_are_shown_too(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    tracker.write(1, "train", {"optim/norm": math.inf})
    tracker.close(finished=True)
    assert curve(tmp_path / "train", "norm/optim") == [(1, math.inf)]
