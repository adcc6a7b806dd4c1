"""Figures to TensorBoard, into the run folder.

Uses the event writer of the tensorboard package itself, so that neither torch nor tensorflow is imported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

from vtriune.monitor.runs import RowSplit
from vtriune.monitor.trackers.base import TrackedRun, tag


def open_tracker(run: TrackedRun) -> TensorBoard:
    """The tracker of a run: `tensorboard` in its folder."""
    return TensorBoard(run.folder / "tensorboard", resumed_at=run.resumed_at)


class TensorBoard:
    """Writes `<folder>/train` and `<folder>/eval`, two runs of TensorBoard, so that their curves share a chart.

    Of a resumed run, what was shown after step `resumed_at` is withdrawn.
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

    def close(self, *, finished: bool) -> None:
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
