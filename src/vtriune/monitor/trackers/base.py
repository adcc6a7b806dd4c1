"""What a tracker is, the recipe's section about them, and the guard that keeps one that breaks or hangs from training.

Each tracker stands in the module of its name. The whole record of a run is the run folder's (store.py): a tracker only
shows it.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from vtriune.monitor.runs import RowSplit
from vtriune.types import UserError

_log = logging.getLogger(__name__)

Extra = Literal["wandb", "mlflow", "trackio"]
PACKAGES: dict[Extra, str] = {"wandb": "wandb", "mlflow": "mlflow-skinny sqlalchemy alembic", "trackio": "trackio"}
"""What pip installs for each: the project's extras of the same names."""
WAITING = 1000
"""Rows that may wait for a tracker; further ones are dropped and counted."""
CLOSING_S = 60.0
"""Seconds that a tracker has at the end to show what waits."""


class TrackingConfig(BaseModel):
    """Who shows the figures while they come in, beside TensorBoard. Servers and accounts are set as their own manuals
    say, e.g. by WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID.
    """

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    with_: list[Extra] = Field([], alias="with", description="Any of wandb, mlflow, trackio.")
    project: str = Field("vtriune", min_length=1, description="What they call project or experiment.")
    name: str | None = Field(None, min_length=1, description="Name of the run there; null: that of its folder.")


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of the run that it shows."""

    folder: Path
    id: str
    """Of run.json; a resumed run has the id that it had, so that its curves go on."""
    project: str
    name: str
    recipe: Mapping[str, Any]
    """As resolved, plain values."""
    resumed_at: int | None
    """The training step of the checkpoint that a resumed run goes on from; None for a new run."""


class Tracker(Protocol):
    """Something that shows figures while they come in. All calls come from one thread."""

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Show the figures of a step, keyed `<source>/<figure>`."""

    def close(self, *, finished: bool) -> None:
        """Show all that was written, and end; `finished`: the run reached its last step."""


def tag(key: str) -> str:
    """`<source>/<figure>` as `<figure>/<source>`.

    Trackers group charts by what comes before the first `/`, and one figure of all sources side by side is what one
    wants to compare.

    >>> tag("coco_val_multi_test/iou_50")
    'iou_50/coco_val_multi_test'
    """
    source, slash, figure = key.rpartition("/")
    return f"{figure}{slash}{source}"


def tags(split: RowSplit, figures: Mapping[str, float]) -> dict[str, float]:
    """Figures by tag for a tracker that has no place of its own for evaluations.

    >>> tags("eval", {"math/score": 50.0})
    {'eval_score/math': 50.0}
    """
    prefix = "eval_" if split == "eval" else ""
    return {prefix + tag(key): value for key, value in figures.items()}


def check_installed(config: TrackingConfig) -> None:
    """Raise UserError if the package of a tracker that the recipe names is missing."""
    for name in config.with_:
        if find_spec(name) is None:
            raise UserError(
                f"tracking.with: {name} is not installed; take it out, or install it: pip install {PACKAGES[name]}"
            )


def open_trackers(
    config: TrackingConfig, folder: Path, run_id: str, recipe: Mapping[str, Any], *, resumed_at: int | None
) -> Trackers:
    """TensorBoard and the trackers that a recipe names; they open and write apart from training (see TrackedRun)."""
    name = config.name or folder.resolve().name
    run = TrackedRun(folder, run_id, config.project, name, recipe, resumed_at)
    return Trackers([Unfailing(one, partial(_open, one, run)) for one in ("tensorboard", *dict.fromkeys(config.with_))])


def _open(name: str, run: TrackedRun) -> Tracker:
    # Importing one of them takes seconds, and it may not be installed.
    tracker: Tracker = importlib.import_module(f"vtriune.monitor.trackers.{name}").open_tracker(run)
    return tracker


class Trackers:
    """All trackers of a run; leaving the context closes them and says which of them failed, and how often."""

    def __init__(self, trackers: Sequence[Unfailing]) -> None:
        self._trackers = trackers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.end(finished=kind is None)
        for tracker in self._trackers:
            tracker.wait()
        for name, count in self.failures.items():
            _log.warning("%s failed %d times in this run; metrics.jsonl in its folder has all figures", name, count)

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Have every tracker show the figures of a step; returns at once."""
        for tracker in self._trackers:
            tracker.write(step, split, dict(figures))

    @property
    def failures(self) -> dict[str, int]:
        """How many calls of each tracker failed so far, of those with any."""
        return {tracker.name: tracker.failures for tracker in self._trackers if tracker.failures}


class Unfailing:
    """A tracker in a thread of its own: its errors are logged once and counted, and it may hang.

    One that can't be opened is not tried again: every row for it counts as a failure.
    """

    def __init__(self, name: str, open_: Callable[[], Tracker], *, closing_s: float = CLOSING_S) -> None:
        self.name = name
        self.failures = 0
        """How many calls failed so far."""
        self._open = open_
        self._closing_s = closing_s
        self._finished = False
        self._rows: queue.SimpleQueue[tuple[int, RowSplit, Mapping[str, float]] | None] = queue.SimpleQueue()
        """What the thread has not yet passed on; None is the end."""
        self._lock = threading.Lock()
        # A daemon: the process may end while it hangs.
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Have the figures passed on."""
        if self._rows.qsize() < WAITING:
            self._rows.put((step, split, figures))
        else:
            self._count(f"is too slow: {WAITING} rows wait")

    def end(self, *, finished: bool) -> None:
        """Have the tracker closed when all that waits is passed on."""
        self._finished = finished
        self._rows.put(None)

    def wait(self) -> None:
        """Return when the tracker is closed; one that takes too long is left alone, with a failure."""
        self._thread.join(self._closing_s)
        if self._thread.is_alive():
            self._count(f"did not end within {self._closing_s:g} s")

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            tracker = self._open()
        except BaseException as error:  # a library may want to exit: that is its thread's end only, in silence
            self._count(error)
        while (row := self._rows.get()) is not None:
            try:
                if tracker is None:
                    self._count("was not opened")
                else:
                    tracker.write(*row)
            except BaseException as error:
                self._count(error)
        try:
            if tracker is not None:
                tracker.close(finished=self._finished)
        except BaseException as error:
            self._count(error)

    def _count(self, problem: BaseException | str) -> None:
        with self._lock:
            self.failures += 1
            first = self.failures == 1
        if first:
            error = problem if isinstance(problem, BaseException) else None
            said = "failed" if error else problem
            _log.warning("%s %s, training goes on; later failures are only counted", self.name, said, exc_info=error)
