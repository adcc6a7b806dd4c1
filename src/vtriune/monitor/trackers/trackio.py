"""Figures to trackio (0.43). Settings are trackio's own: TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL, ..."""

from __future__ import annotations

from collections.abc import Mapping

import trackio

from vtriune.monitor.runs import RowSplit
from vtriune.monitor.trackers.base import TrackedRun, tags


class Trackio:
    """One run of trackio, `<name>-<id>`, since it knows runs by name; a resumed run goes on with it. Steps that are
    repeated after a checkpoint are shown twice, with equal figures.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._run = trackio.init(
            project=run.project, name=f"{run.name}-{run.id}", config=dict(run.recipe), resume="allow", embed=False
        )

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Hand the figures of a step to trackio, which stores them in the background."""
        self._run.log(tags(split, figures), step=step)

    def close(self, *, finished: bool) -> None:
        """Wait until all is stored or sent."""
        self._run.finish()


open_tracker = Trackio
