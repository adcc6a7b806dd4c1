import logging
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from vtriune.monitor.runs import RowSplit
from vtriune.monitor.trackers.base import (
    PACKAGES,
    WAITING,
    Tracker,
    TrackingConfig,
    Unfailing,
    check_installed,
    open_trackers,
)
from vtriune.types import UserError

FIGURES = {"all/reward": 1.0}


class Hanging:
    """Hangs in its first write until it is let go; notes what it was given."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.steps: list[int] = []
        self.finished: bool | None = None

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        self.let_go.wait()
        self.steps.append(step)

    def close(self, *, finished: bool) -> None:
        self.finished = finished


def test_a_tracker_that_fails_is_logged_once_and_counted_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file stands where the folder should be")
    with (
        caplog.at_level(logging.WARNING),
        open_trackers(TrackingConfig(), tmp_path, "id", {}, resumed_at=None) as trackers,
    ):
        for step in (1, 2, 3):
            trackers.write(step, "train", FIGURES)
    assert trackers.failures == {"tensorboard": 3}
    assert [record.getMessage() for record in caplog.records] == [
        "tensorboard failed, training goes on; later failures are only counted",
        "tensorboard failed 3 times in this run; metrics.jsonl in its folder has all figures",
    ]
    assert "tensorboard" in caplog.text
    assert "FileExistsError" in caplog.text or "NotADirectoryError" in caplog.text


def test_a_tracker_that_can_not_be_opened_is_not_tried_again_and_counts_every_row(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = []

    def open_() -> Tracker:
        tries.append(1)
        raise ConnectionError("nobody answers")

    tracker = Unfailing("wandb", open_)
    for step in (1, 2):
        tracker.write(step, "train", FIGURES)
    tracker.end(finished=True)
    tracker.wait()
    assert (len(tries), tracker.failures) == (1, 3)
    assert len(caplog.records) == 1
    assert "nobody answers" in caplog.text


class Exiting:
    """Ends its process, as it thinks, whatever it is asked."""

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        raise SystemExit(1)

    def close(self, *, finished: bool) -> None:
        raise SystemExit(1)


def exiting_at_once() -> Tracker:
    raise SystemExit(1)


@pytest.mark.parametrize("open_", [Exiting, exiting_at_once])
def test_a_tracker_that_wants_to_exit_loses_no_row_uncounted(
    open_: Callable[[], Tracker], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Unfailing("wandb", open_)
    for step in (1, 2, 3):
        tracker.write(step, "train", FIGURES)
    tracker.end(finished=True)
    tracker.wait()
    assert tracker.failures == 4  # three rows, and its opening or closing
    assert len(caplog.records) == 1
    assert "SystemExit" in caplog.text


def test_a_tracker_that_hangs_holds_up_nobody_and_what_it_misses_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hanging = Hanging()
    tracker = Unfailing("mlflow", lambda: hanging, closing_s=0.01)
    for step in range(WAITING + 11):  # one may be on its way, so at least ten find no room
        tracker.write(step, "train", FIGURES)
    dropped = tracker.failures
    assert 10 <= dropped <= 11
    tracker.end(finished=False)
    tracker.wait()
    assert tracker.failures == dropped + 1
    assert len(caplog.records) == 1
    hanging.let_go.set()
    while hanging.finished is None:
        tracker.wait()
    assert hanging.steps == sorted(hanging.steps)
    assert len(hanging.steps) == WAITING + 11 - dropped
    assert hanging.finished is False


@pytest.mark.parametrize("finished", [True, False])
def test_all_that_was_written_is_shown_before_the_end_and_the_tracker_hears_how_it_ended(finished: bool) -> None:
    tracker = Hanging()
    tracker.let_go.set()
    unfailing = Unfailing("trackio", lambda: tracker)
    for step in range(1, 50):
        unfailing.write(step, "train", FIGURES)
    unfailing.end(finished=finished)
    unfailing.wait()
    assert tracker.steps == list(range(1, 50))
    assert (tracker.finished, unfailing.failures) == (finished, 0)


def test_a_run_that_ends_by_an_error_is_closed_as_not_finished_with_its_figures_shown(tmp_path: Path) -> None:
    trackers = open_trackers(TrackingConfig(), tmp_path, "id", {}, resumed_at=None)
    with pytest.raises(KeyError), trackers:
        trackers.write(1, "train", {"math/reward": 0.25})
        raise KeyError
    events = EventAccumulator(str(tmp_path / "tensorboard" / "train"))
    events.Reload()
    assert [event.value for event in events.Scalars("reward/math")] == [0.25]


def test_figures_that_change_after_they_were_handed_over_are_shown_as_they_were(tmp_path: Path) -> None:
    with open_trackers(TrackingConfig(), tmp_path, "id", {}, resumed_at=None) as trackers:
        figures = {"math/reward": 0.25}
        trackers.write(1, "train", figures)
        figures.clear()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "train"))
    events.Reload()
    assert [event.value for event in events.Scalars("reward/math")] == [0.25]


def test_a_tracker_whose_package_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(TrackingConfig())
    missing = next((name for name in PACKAGES if find_spec(name) is None), None)
    if missing is None:  # all are here: one more hides behind an entry that says there is no such module
        missing = "mlflow"
        monkeypatch.setattr("vtriune.monitor.trackers.base.find_spec", lambda name: None)
    config = TrackingConfig.model_validate({"with": [missing]})
    with pytest.raises(
        UserError, match=rf"tracking\.with: {missing} is not installed; .*pip install {PACKAGES[missing]}"
    ):
        check_installed(config)


def test_the_section_is_written_as_it_is_read() -> None:
    fields = {"with": ["wandb", "trackio"], "project": "sweep", "name": "lr 1e-6"}
    assert TrackingConfig.model_validate(fields).model_dump(mode="json") == fields
    with pytest.raises(ValidationError):
        TrackingConfig.model_validate({"with": ["tensorflow"]})


def test_tensorboard_withdraws_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    for resumed_at, steps in ((None, (1, 2, 3)), (1, (2,))):
        with open_trackers(TrackingConfig(), tmp_path, "id", {}, resumed_at=resumed_at) as trackers:
            for step in steps:
                trackers.write(step, "train", {"math/reward": step / 4})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "train"))
    events.Reload()
    assert [event.step for event in events.Scalars("reward/math")] == [1, 2]
