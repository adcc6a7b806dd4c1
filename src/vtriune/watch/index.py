"""Which rollouts a run has, as one array in memory: built in the background from the files, kept up with them.

Only what is filtered and sorted by is kept, 40 bytes a row; texts stay in the files. Queries are search.py's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vtriune.monitor.rollouts import Decoding
from vtriune.monitor.runs import RowSplit, rollout_file
from vtriune.types import FinishReason, Status
from vtriune.watch.listing import Stamp, stamp

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
WAIT = 0.8
"""Seconds that a request waits for what is still being read."""
MAX_ROWS = 2_500_000
"""Rows kept of all runs together, 100 MB: the runs that were asked for longest ago are dropped. A single run is kept
whatever its size."""
SHOWN_FAULTS = 10

_ENUMS = {"decoding": DECODINGS, "status": STATUSES, "finish": FINISHES}
_NUMBERS = ("step", "group", "answer", "tokens")


@dataclass(frozen=True, slots=True)
class FileRows:
    """A rollout file as it was read, and where its rows are in a snapshot."""

    path: Path
    stamp: Stamp
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rollouts of one split as far as they have been read; nobody changes it any more."""

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
                fault = f"{path.name}: {' '.join(str(error).split())[:300] or type(error).__name__}"
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
            files[step] = FileRows(rollout_file(self._folder, self._split, step), seen, start, stop)
            self._blocks[step] = seen, rows[start:stop]  # a view: the rows are held once
            start = stop
        left = len(self._todo)
        total = len(rows) + (round(left * len(rows) / len(steps)) if steps else left)
        faults = tuple(fault for _, (_, fault) in sorted(self._faults.items()))
        return Snapshot(rows, tuple(self._names), files, total, not left, faults)


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
    prefix = rollout_file(folder, split, 0).name.partition("-")[0] + "-"
    found: dict[int, Stamp] = {}
    try:
        entries = os.scandir(folder / "rollouts")
    except OSError:
        return found
    with entries:
        for entry in entries:
            number = entry.name.removeprefix(prefix).removesuffix(".parquet")
            if number.isascii() and number.isdecimal() and len(number) < 10:
                path = rollout_file(folder, split, int(number))
                if path.name == entry.name and entry.is_file(follow_symlinks=False):
                    found[int(number)] = stamp(path)
    return found


def _read(path: Path, step: int, code: Callable[[str], int]) -> np.ndarray:
    """The rows of a file. Raises whatever a damaged file leads to."""
    names = {"source": code, "task": code} | {name: kinds.index for name, kinds in _ENUMS.items()}
    with pq.ParquetFile(path) as file:
        table = file.read(columns=[*_NUMBERS, *names, "reward", "correct"])
    rows = np.empty(len(table), ROW)
    for name in _NUMBERS:
        rows[name] = _numbers(table, name, pa.int32())
    for name, encode in names.items():
        texts = _whole(table, name).dictionary_encode()
        codes = np.array([encode(text) for text in texts.dictionary.cast(pa.string()).to_pylist()], np.int32)
        rows[name] = codes[texts.indices.to_numpy()]
    rows["reward"] = table.column("reward").cast(pa.float64()).fill_null(float("nan")).to_numpy()
    rows["correct"] = table.column("correct").cast(pa.int8()).fill_null(-1).to_numpy()
    rows["place"] = np.arange(len(rows))
    if (rows["step"] != step).any():
        raise ValueError(f"holds rows of other steps than {step}")
    return rows[np.lexsort((rows["decoding"], rows["answer"], rows["group"]))]


def _numbers(table: pa.Table, name: str, kind: Any) -> np.ndarray:
    numbers: np.ndarray = _whole(table, name).cast(kind).to_numpy()
    return numbers


def _whole(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"{name} is missing in {column.null_count} rows")
    return column.combine_chunks()
