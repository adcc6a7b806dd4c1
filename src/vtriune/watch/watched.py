"""One run as it is watched: its history kept up to date, and what is told of it computed once for every state of it.

What is told is in grid.py and series.py; how a run stands in listing.py.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar, cast

from vtriune.monitor.files import DamagedRun
from vtriune.monitor.history import Curves, History
from vtriune.watch.listing import Stamp, stamp
from vtriune.watch.replies import encode

T = TypeVar("T")

RUNS = 32
"""Runs of which the history is held open, each with two files."""
HISTORY_BYTES = 64 << 20
"""Memory of all histories together, beyond which those that were asked for longest ago are dropped. A single one is
kept whatever its size: some megabytes where there are thousands of figures and steps."""
ANSWER_BYTES = 64 << 20
"""Memory of the computed answers of all runs together; those that were asked for longest ago are dropped."""
_OF_JSON = 10
"""Bytes of memory to a byte of the JSON that a value would be: about what dicts of short texts and numbers take."""

PATIENCE = 0.3
"""Seconds that a request reads on in metrics.jsonl; what is left is read in the background."""

SLICE = 0.1
"""Seconds that the background reads before requests have their turn."""


class Answers:
    """What was computed last, of all runs, within ANSWER_BYTES. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[object, object, int]] = OrderedDict()
        self.size = 0
        """Bytes of memory, about."""

    def once(self, question: Hashable, state: object, compute: Callable[[], T]) -> T:
        """The answer to `question`, computed anew if `state` is not that of the last time."""
        with self._lock:
            known = self._kept.get(question)
            if known is not None and known[0] == state:
                self._kept.move_to_end(question)
                return cast("T", known[1])
        answer = compute()
        size = _size(answer)
        with self._lock:
            self._drop(question)
            if size <= ANSWER_BYTES:
                self._kept[question] = state, answer, size
                self.size += size
            while self.size > ANSWER_BYTES:
                self._drop(next(iter(self._kept)))
        return answer

    def _drop(self, question: Hashable) -> None:
        if question in self._kept:
            self.size -= self._kept.pop(question)[2]


def _size(answer: object) -> int:
    if isinstance(answer, Curves):
        return answer.nbytes
    return len(answer) if isinstance(answer, bytes) else _OF_JSON * len(encode(answer))


class Watched:
    """A run's history and the answers computed from it. `lock` is held by whoever uses either."""

    _numbers = itertools.count()

    def __init__(self, folder: Path, answers: Answers) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.tasks: dict[str, str] = {}
        """Of its sources, as far as they were looked up in rollout files."""
        self.looked_into: set[Path] = set()
        self._history: History | None = None
        self._seen: Stamp = None
        self._reading: threading.Thread | None = None
        self._answers = answers
        self._number = -1
        """Of the history: what was computed from another one says nothing of this."""

    def history(self) -> History:
        """The history, up to date but for what the background still reads.

        Raises:
            DamagedRun: metrics.jsonl can't be read.
        """
        seen = stamp(self.folder / "metrics.jsonl")
        if self._history is None or (seen != self._seen and not self._history.holds()):
            self._history, self._number = History.reading(self.folder), next(self._numbers)
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
        return self._answers.once((self.folder, question), (self._number, state), compute)

    @property
    def size(self) -> int:
        """Bytes of memory that the history takes, about."""
        return 0 if self._history is None else self._history.memory

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
    """The runs that were asked for lately, and what was computed of them."""

    def __init__(self) -> None:
        self.answers = Answers()
        self._lock = threading.Lock()
        self._runs: OrderedDict[Path, Watched] = OrderedDict()

    def get(self, folder: Path) -> Watched:
        """The run in `folder`."""
        with self._lock:
            run = self._runs.setdefault(folder, Watched(folder, self.answers))
            self._runs.move_to_end(folder)
            sizes = {one: kept.size for one, kept in self._runs.items()}
            while len(sizes) > 1 and (len(sizes) > RUNS or sum(sizes.values()) > HISTORY_BYTES):
                oldest = next(iter(self._runs))
                del self._runs[oldest], sizes[oldest]
            return run
