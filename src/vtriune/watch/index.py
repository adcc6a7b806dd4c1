"""Which rollouts a run has, as one array in memory: built in the background from the files, kept up with them.

Only what is filtered and sorted by is kept, 40 bytes a row; texts stay in the files. Queries are search.py's.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from vtriune.monitor.rollouts import Decoding, read_columns
from vtriune.monitor.runs import RowSplit, rollout_file
from vtriune.types import FinishReason, Status
from vtriune.watch.listing import Stamp

ROW = np.dtype(
    [
        ("reward", np.float64),  # NaN: there is none
        ("step", np.int32),
        ("group", np.int32),
        ("answer", np.int32),
        ("tokens", np.int32),
        ("place", np.int32),  # row of the file
        ("source", np.int32),  # place in `Snapshot.names`
        ("task", np.int32),
        ("decoding", np.int8),  # place in DECODINGS
        ("status", np.int8),  # in STATUSES
        ("finish", np.int8),  # in FINISHES
        ("correct", np.int8),  # 1, 0, or -1: not said
    ]
)
DECODINGS: tuple[str, ...] = get_args(Decoding)
STATUSES: tuple[str, ...] = tuple(Status)
FINISHES: tuple[str, ...] = tuple(FinishReason)

FRESH = 1.0
"""Seconds for which the folder is not looked at again."""
WAIT = 0.5
"""Seconds that a request waits for what is still being read."""
FIRST_WAIT = 5.0
"""Seconds beyond which it doesn't wait either where nothing at all has been read yet: Arrow may have to load."""
MAX_ROWS = 2_500_000
"""Rows kept of all runs together, 100 MB: the runs that were asked for longest ago are dropped. A single run is kept
whatever its size."""
_ENUMS = {"decoding": DECODINGS, "status": STATUSES, "finish": FINISHES}
_NUMBERS = ("step", "group", "answer", "tokens")


@dataclass(frozen=True, slots=True)
class FileRows:
    """A rollout file as it was read, and where its rows are in a snapshot."""

    stamp: Stamp
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rollouts of one split as far as they have been read; nobody changes it any more."""

    folder: Path
    split: RowSplit
    rows: np.ndarray
    """(N,) of ROW, by (step, group, answer, decoding)."""
    names: tuple[str, ...]
    """Sources and tasks."""
    files: dict[int, FileRows]
    """By step, in order."""
    total: int
    """N, and an estimate of what has not been read yet."""
    complete: bool
    """Has everything been read?"""
    faults: tuple[str, ...]
    """Why files were left out."""

    def path(self, step: int) -> Path:
        """The file of a step."""
        return rollout_file(self.folder, self.split, step)


class RolloutIndex:
    """The rollouts of one split of a run. May be used from any thread."""

    def __init__(self, folder: Path, split: RowSplit) -> None:
        self._folder, self._split = folder, split
        self._changed = threading.Condition()
        self._blocks: dict[int, tuple[Stamp, np.ndarray]] = {}
        self._faults: dict[int, tuple[Stamp, str]] = {}
        self._todo: dict[int, Stamp] = {}
        self._names: dict[str, int] = {}
        self._looked = -FRESH
        self._builder: threading.Thread | None = None
        self._snapshot: Snapshot | None = None

    @property
    def size(self) -> int:
        """Rows in memory."""
        with self._changed:
            return sum(len(rows) for _, rows in self._blocks.values())

    def snapshot(self, wait: float = WAIT) -> Snapshot:
        """What there is, after at most `wait` seconds for what is being read."""
        with self._changed:
            if time.monotonic() - self._looked >= FRESH:
                self._look()
            self._changed.wait_for(lambda: not self._todo, wait)
            self._changed.wait_for(lambda: self._blocks or not self._todo, FIRST_WAIT)
            if self._snapshot is None:
                self._snapshot = self._join()
            return self._snapshot

    def _look(self) -> None:
        """Note which files are new, changed or gone, and have the first two read."""
        found = _stamps(self._folder, self._split)
        self._looked = time.monotonic()
        known = {step: seen for kept in (self._blocks, self._faults) for step, (seen, _) in kept.items()}
        for step in known.keys() - found.keys():
            self._blocks.pop(step, None)
            self._faults.pop(step, None)
            self._snapshot = None
        # The newest first: they are what is looked at.
        self._todo = {step: found[step] for step in sorted(found, reverse=True) if known.get(step) != found[step]}
        if self._todo and self._builder is None:
            self._builder = threading.Thread(target=self._build, name="rollouts", daemon=True)
            self._builder.start()

    def _build(self) -> None:
        while True:
            with self._changed:
                if not self._todo:
                    self._builder = None
                    return
                step, seen = next(iter(self._todo.items()))
            path = rollout_file(self._folder, self._split, step)
            rows, fault = None, ""
            try:
                rows = _read(path, step, self._code)
            except Exception as error:  # whatever a damaged file leads Arrow to
                fault = " ".join(str(error).split())[:300] or type(error).__name__
                fault = fault if str(path) in fault else f"{path}: {fault}"
            with self._changed:
                if self._todo.get(step) != seen:  # changed again, or gone, in the meantime
                    continue
                del self._todo[step]
                self._blocks.pop(step, None)
                self._faults.pop(step, None)
                if rows is not None:
                    self._blocks[step] = seen, rows
                else:
                    self._faults[step] = seen, fault
                self._snapshot = None
                self._changed.notify_all()

    def _code(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def _join(self) -> Snapshot:
        steps = sorted(self._blocks)
        rows = np.concatenate([np.empty(0, ROW), *(self._blocks[step][1] for step in steps)])
        files, start = {}, 0
        for step in steps:
            seen, own = self._blocks[step]
            stop = start + len(own)
            files[step] = FileRows(seen, start, stop)
            self._blocks[step] = seen, rows[start:stop]  # a view: the rows are held once
            start = stop
        left = len(self._todo)
        total = len(rows) + (round(left * len(rows) / len(steps)) if steps else left)
        faults = tuple(fault for _, (_, fault) in sorted(self._faults.items()))
        return Snapshot(self._folder, self._split, rows, tuple(self._names), files, total, not left, faults)


class Indexes:
    """The indexes of the runs that were asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[Path, RowSplit], RolloutIndex] = {}

    def of(self, folder: Path, split: RowSplit) -> RolloutIndex:
        """The index of a run's split."""
        key = folder, split
        with self._lock:
            index = self._kept.pop(key) if key in self._kept else RolloutIndex(folder, split)
            self._kept[key] = index  # the last now
            sizes = {one: kept.size for one, kept in self._kept.items()}
            for one in list(self._kept):
                if one != key and sum(sizes.values()) > MAX_ROWS:
                    del self._kept[one], sizes[one]
            return index


def _stamps(folder: Path, split: RowSplit) -> dict[int, Stamp]:
    """The rollout files of a split by step. Not `rollout_files`: with 10,000 of them its paths take a second."""
    prefix, suffix = rollout_file(folder, split, 0).name.split("000000")
    found: dict[int, Stamp] = {}
    try:
        entries = os.scandir(folder / "rollouts")
    except OSError:
        return found
    with entries:
        for entry in entries:
            number = entry.name.removeprefix(prefix).removesuffix(suffix)
            if number.isascii() and number.isdecimal() and entry.name == f"{prefix}{int(number):06d}{suffix}":
                with contextlib.suppress(OSError):  # gone in the meantime
                    # A link could lead out of the run.
                    if entry.is_file(follow_symlinks=False):
                        now = entry.stat(follow_symlinks=False)
                        found[int(number)] = now.st_ino, now.st_size, now.st_mtime_ns
    return found


def _read(path: Path, step: int, code: Callable[[str], int]) -> np.ndarray:
    """The rows of a file. Raises whatever a damaged file leads to."""
    names = {"source": code, "task": code} | {name: kinds.index for name, kinds in _ENUMS.items()}
    table = read_columns(path, [*_NUMBERS, *names, "reward", "correct"])
    rows = np.empty(len(table), ROW)
    for name in _NUMBERS:
        rows[name] = numbers(_whole(table, name).cast(pa.int32()))
    for name, encode in names.items():
        texts = _whole(table, name).dictionary_encode()
        codes = np.array([encode(text) for text in texts.dictionary.cast(pa.string()).to_pylist()], np.int32)
        rows[name] = codes[numbers(texts.indices)]
    for name, kind, missing in (("reward", pa.float64(), np.nan), ("correct", pa.int8(), -1)):
        column = table.column(name).combine_chunks().cast(kind)
        rows[name] = missing
        rows[name][truths(column.is_valid())] = numbers(column.drop_null())
    rows["place"] = np.arange(len(rows))
    if (rows["step"] != step).any():
        raise ValueError(f"holds rows of other steps than {step}")
    return rows[np.lexsort((rows["decoding"], rows["answer"], rows["group"]))]


def _whole(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"{name} is missing in {column.null_count} rows")
    return column.combine_chunks()


def numbers(array: Any) -> np.ndarray:
    """An Arrow array of numbers without nulls. Its own `to_numpy` would import pandas: a second and 50 MiB."""
    return np.from_dlpack(array)


def truths(array: Any) -> np.ndarray:
    """An Arrow array of booleans without nulls."""
    return numbers(array.cast(pa.int8())).astype(bool)
