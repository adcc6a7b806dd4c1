"""One run as it is watched: its history kept up to date, and what is told of it computed once for every state of it.

What is told is in grid.py and series.py; how a run stands in listing.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar, cast

from vtriune.monitor.files import DamagedRun
from vtriune.monitor.history import History
from vtriune.watch.listing import Stamp, stamp

T = TypeVar("T")

RUNS = 32
"""Runs of which the history is held open: two files and some megabytes each."""

ANSWERS = 64
"""Computed answers kept of a run."""

PATIENCE = 0.3
"""Seconds that a request reads on in metrics.jsonl; what is left is read in the background."""

SLICE = 0.1
"""Seconds that the background reads before requests have their turn."""


class Watched:
    """A run's history and the answers computed from it. `lock` is held by whoever uses either."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.tasks: dict[str, str] = {}
        """Of its sources, as far as they were looked up in rollout files."""
        self.looked_into: set[Path] = set()
        self._history: History | None = None
        self._seen: Stamp = None
        self._reading: threading.Thread | None = None
        self._answers: OrderedDict[Hashable, tuple[object, object]] = OrderedDict()

    def history(self) -> History:
        """The history, up to date but for what the background still reads.

        Raises:
            DamagedRun: metrics.jsonl can't be read.
        """
        seen = stamp(self.folder / "metrics.jsonl")
        if self._history is None or (seen != self._seen and not self._history.holds()):
            self._history = History.reading(self.folder)
            self._answers.clear()
        if seen != self._seen and not self.is_reading:
            if self._history.extend(PATIENCE):
                self._seen = seen
            else:
                self._reading = threading.Thread(target=self._read_on, args=(self._history,), daemon=True)
                self._reading.start()
        return self._history

    @property
    def is_reading(self) -> bool:
        """Whether the background still reads."""
        return self._reading is not None and self._reading.is_alive()

    def once(self, question: Hashable, state: object, compute: Callable[[], T]) -> T:
        """The answer to `question`, computed anew if `state` is not that of the last time."""
        known = self._answers.get(question)
        if known is None or known[0] != state:
            known = state, compute()
        self._answers[question] = known
        self._answers.move_to_end(question)
        if len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)
        return cast("T", known[1])

    def _read_on(self, history: History) -> None:
        """Read to the end; requests have their turn between two slices."""
        try:
            while True:
                with self.lock:
                    if history is not self._history or history.extend(SLICE):
                        return
                time.sleep(0.02)
        except (OSError, DamagedRun) as fault:  # the next request meets it too, and says it
            logging.getLogger("vtriune.watch").warning("%s", fault)


class WatchedRuns:
    """The runs that were asked for lately."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[Path, Watched] = OrderedDict()

    def get(self, folder: Path) -> Watched:
        """The run in `folder`."""
        with self._lock:
            run = self._runs.setdefault(folder, Watched(folder))
            self._runs.move_to_end(folder)
            if len(self._runs) > RUNS:
                self._runs.popitem(last=False)
            return run
