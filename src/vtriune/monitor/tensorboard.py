"""Figures to TensorBoard, and the guard that keeps a tracker that breaks from ending a training.

Uses the event writer of the tensorboard package itself, so that neither torch nor tensorflow is imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

from vtriune.monitor.runs import RowSplit

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Something that shows figures while they come in."""

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Show the figures of a step, keyed `<source>/<figure>`."""

    def close(self) -> None:
        """Show all that was written, and end."""


class TensorBoard:
    """Writes `<folder>/train` and `<folder>/eval`, two runs of TensorBoard, so that their curves share a chart.

    A tag is `<figure>/<source>`: TensorBoard groups charts by what comes before the first `/`, and one figure of all
    sources side by side is what one wants to compare. Of a resumed run, what was shown after step `resumed_at` is
    withdrawn.
    """

    def __init__(self, folder: Path, *, resumed_at: int | None = None) -> None:
        self._folder = folder
        self._resumed_at = resumed_at
        self._writers: dict[RowSplit, EventFileWriter] = {}

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Write the figures of a step and see them into the file."""
        writer = self._writers.get(split) or self._open(split)
        values = [Summary.Value(tag=tag(key), simple_value=value) for key, value in figures.items()]
        writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
        writer.flush()

    def close(self) -> None:
        """Write to the end and close the files."""
        for writer in self._writers.values():
            writer.close()

    def _open(self, split: RowSplit) -> EventFileWriter:
        writer = self._writers[split] = EventFileWriter(str(self._folder / split))
        if self._resumed_at is not None:
            # TensorBoard drops what older files of the same run hold from this step on.
            start = SessionLog(status=SessionLog.START)
            writer.add_event(Event(step=self._resumed_at + 1, wall_time=time.time(), session_log=start))
        return writer


def tag(key: str) -> str:
    """`<source>/<figure>` as the tag `<figure>/<source>`.

    >>> tag("coco_val_multi_test/iou_50")
    'iou_50/coco_val_multi_test'
    """
    source, slash, figure = key.rpartition("/")
    return f"{figure}{slash}{source}"


class Unfailing:
    """A tracker whose errors are logged once and counted, and never end a training."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.failures = 0
        """How many calls failed so far."""

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Pass the figures on."""
        try:
            self._tracker.write(step, split, figures)
        except Exception as error:
            self._count(error)

    def close(self) -> None:
        """Close the tracker."""
        try:
            self._tracker.close()
        except Exception as error:
            self._count(error)

    def _count(self, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            name = type(self._tracker).__name__
            _log.warning("%s failed, training goes on; later failures are only counted", name, exc_info=error)
