"""The figures of a run by column: what curves are drawn from, without parsing gigabytes of JSON.

history.bin is derived and may be deleted: metrics.jsonl is the truth. A row of it is kept as float32, which is enough
for drawing; exact figures are in metrics.jsonl (runs.py reads it). Which curves are drawn is the dashboard's affair.

The file is a sequence of records, each a header and its content, only ever appended:

    names   a JSON list: the figures that get the next columns of a split
    row     float32 values in the order of the names known by then, NaN where the row lacks a figure; its header says
            which line of metrics.jsonl it is of: where that ends, and the CRC-32 of line and values

So a file that was cut, continued by others or half written is seen to be, and only what fits is used.
"""

from __future__ import annotations

import bisect
import math
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from vtriune.monitor.files import DamagedRun, read_rows_from
from vtriune.monitor.runs import SPLITS, MetricsRow, RowSplit, metrics_row

FILE = "history.bin"

_HEADER = struct.Struct("<4sIqqII")
_NAMES, _ROW = b"name", b"row "
_BLOCK = 1 << 20
"""Bytes of file that are looked at at a time: what is computed of them stays in the processor's cache."""


class _Header(NamedTuple):
    kind: bytes
    size: int
    """Bytes of the content."""
    step: int
    end: int
    """Where the row's line in metrics.jsonl ends."""
    split: int
    crc: int


class _Row(NamedTuple):
    """Where a row lies."""

    file: BinaryIO
    offset: int
    header: _Header
    start: int
    """Where its line in metrics.jsonl begins."""


class _Segment(NamedTuple):
    """Rows of one split that lie in a file one after another and have the same width."""

    file: BinaryIO
    offset: int
    width: int
    rows: int

    @property
    def stride(self) -> int:
        return _HEADER.size + 4 * self.width


@dataclass(frozen=True, slots=True)
class Curves:
    """Figures over steps in buckets of consecutive rows. m buckets, k figures; NaN where a bucket has no value."""

    steps: NDArray[np.int64]
    """(m,) of the row in the middle of each bucket."""
    mean: NDArray[np.float64]
    """(m, k)"""
    low: NDArray[np.float32]
    """(m, k)"""
    high: NDArray[np.float32]
    """(m, k)"""
    first: NDArray[np.float32]
    """(k,) the first value that there is."""
    last: NDArray[np.float32]
    """(k,)"""

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        arrays = self.steps, self.mean, self.low, self.high, self.first, self.last
        return sum(array.nbytes for array in arrays)


class History:
    """The rows of a run's metrics.jsonl up to byte `covered`, by column.

    `extend` and `holds` want one caller at a time; `curves` may be called from other threads meanwhile.
    """

    def __init__(self, folder: Path, stored: BinaryIO | None, added: BinaryIO) -> None:
        """Take what fits from `stored`; later rows are written to `added`, which may be the same file."""
        self._truth = folder / "metrics.jsonl"
        self._added = added
        self._columns: dict[RowSplit, dict[str, int]] = {split: {} for split in SPLITS}
        self._segments: dict[RowSplit, list[_Segment]] = {split: [] for split in SPLITS}
        self._steps: dict[RowSplit, list[int]] = {split: [] for split in SPLITS}
        self._last: _Row | None = None
        self._order: dict[RowSplit, tuple[list[str], NDArray[np.int64]]] = {}
        end = self._take(stored) if stored else 0
        if stored is added:
            os.truncate(added.fileno(), end)
        added.seek(0, os.SEEK_END)

    @classmethod
    def writing(cls, folder: Path) -> History:
        """For the run's only writer: continues history.bin, or makes it; `extend` brings it up to date."""
        (folder / FILE).touch()
        file = (folder / FILE).open("r+b")
        return cls(folder, file, file)

    @classmethod
    def reading(cls, folder: Path) -> History:
        """For everybody else: changes nothing in `folder`. Rows that history.bin lacks are kept in a temporary file
        once `extend` has read them, so that memory stays small whatever their number.
        """
        try:
            stored = (folder / FILE).open("rb")
        except OSError:
            stored = None
        return cls(folder, stored, cast("BinaryIO", tempfile.TemporaryFile()))

    def close(self) -> None:
        """Close the file that is written to."""
        self._added.close()

    @property
    def covered(self) -> int:
        """How many bytes of metrics.jsonl have been read."""
        return self._last.header.end if self._last else 0

    def names(self, split: RowSplit) -> list[str]:
        """The figures that a row of `split` had so far. Those of metrics hold a `/`; those without one are timing."""
        return list(self._columns[split])

    @property
    def memory(self) -> int:
        """Bytes in memory, about: names of figures, steps, and where rows lie; the rows themselves stay in files."""
        names = sum(map(len, self._columns.values()))
        steps = sum(map(len, self._steps.values()))
        return 200 * names + 40 * steps + 200 * sum(map(len, self._segments.values()))

    def holds(self) -> bool:
        """Whether what was read is still there; it is not after a resume that cut it off."""
        return self._last is None or self._fits(self._last)

    def extend(self, seconds: float = math.inf) -> bool:
        """Read rows that were added to metrics.jsonl, for about `seconds`. Returns whether that were all.

        A last line that was not written to its end is left for later.

        Raises:
            DamagedRun: a line is no row of figures.
        """
        until = time.monotonic() + seconds
        for line, row in read_rows_from(self._truth, self.covered):
            self._add(metrics_row(self._truth, row), line)
            if time.monotonic() >= until:
                return False
        return True

    def curves(self, split: RowSplit, names: Sequence[str], buckets: int) -> Curves:
        """`names` over all steps of `split`, in at most `buckets` buckets of (nearly) the same number of rows.

        Raises:
            DamagedRun: the file was cut meanwhile, as a resume does.
        """
        segments, steps = list(self._segments[split]), np.array(self._steps[split], np.int64)
        n = sum(segment.rows for segment in segments)  # a row may just be added
        m, k = min(n, buckets), len(names)
        edges = np.arange(m + 1) * n // max(m, 1)
        total, count = np.zeros((m, k)), np.zeros((m, k), np.int64)
        low, high = np.full((m, k), np.nan, np.float32), np.full((m, k), np.nan, np.float32)
        first, last = np.full(k, np.nan, np.float32), np.full(k, np.nan, np.float32)
        for at, block in _blocks(segments, [self._columns[split].get(name, -1) for name in names]):
            there = np.isfinite(block)  # beyond float32 is as good as absent
            block[~there] = np.nan
            known = np.where(there, block, 0)
            # A bucket at a time: `reduceat` along rows is many times slower.
            for bucket in range(np.searchsorted(edges, at, "right") - 1, np.searchsorted(edges, at + len(block))):
                rows = slice(max(edges[bucket] - at, 0), edges[bucket + 1] - at)
                total[bucket] += np.add.reduce(known[rows], axis=0, dtype=np.float64)
                count[bucket] += np.count_nonzero(there[rows], axis=0)
                low[bucket] = np.fmin(low[bucket], np.fmin.reduce(block[rows], axis=0))
                high[bucket] = np.fmax(high[bucket], np.fmax.reduce(block[rows], axis=0))
            any_there, columns = there.any(axis=0), np.arange(k)
            first = np.where(np.isnan(first), block[there.argmax(axis=0), columns], first)
            last = np.where(any_there, block[len(block) - 1 - there[::-1].argmax(axis=0), columns], last)
        mean = np.divide(total, count, out=np.full((m, k), np.nan), where=count > 0)
        return Curves(steps[(edges[:-1] + edges[1:] - 1) // 2], mean, low, high, first, last)

    def _take(self, stored: BinaryIO) -> int:
        """Take over the records of `stored` that fit metrics.jsonl. Returns where the last of them ends."""
        records, rows, at = list(_records(stored.fileno())), list[_Row](), list[int]()
        for place, record in enumerate(records):
            if record.names is None:
                start = rows[-1].header.end if rows else 0
                rows.append(_Row(stored, record.offset, record.header, start))
                at.append(place)
        # Rows hold measured times, so where the files of two sessions have parted they do not meet again: all rows up
        # to some one fit, and none after it.
        all_fit = bool(rows) and self._fits(rows[-1])
        fitting = len(rows) if all_fit else bisect.bisect(rows, 0, key=lambda row: not self._fits(row))
        taken = records[: at[fitting - 1] + 1] if fitting else []
        for record in taken:
            if record.names is None:
                self._note(stored, record.offset, record.header)
            else:
                self._name(record.header.split, record.names)
        return taken[-1].end if taken else 0

    def _fits(self, row: _Row) -> bool:
        """Whether the row is whole, and is of the line of metrics.jsonl that is where it says."""
        size = row.header.end - row.start
        try:
            with self._truth.open("rb") as file:
                file.seek(row.start)
                line = file.read(size) if size > 0 else b""
        except OSError:
            return False
        content = os.pread(row.file.fileno(), row.header.size, row.offset + _HEADER.size)
        return len(line) == size and _checksum(line, content) == row.header.crc

    def _name(self, split: int, names: Sequence[str]) -> None:
        columns = self._columns[SPLITS[split]]
        for name in names:
            columns[name] = len(columns)

    def _note(self, file: BinaryIO, offset: int, header: _Header) -> None:
        """Remember the row at `offset` of `file`."""
        split, width = SPLITS[header.split], header.size // 4
        self._steps[split].append(header.step)  # first: `curves` wants a step for every row that it sees
        segments = self._segments[split]
        last = segments[-1] if segments else None
        if last and (last.file, last.width, last.offset + last.rows * last.stride) == (file, width, offset):
            segments[-1] = last._replace(rows=last.rows + 1)
        else:
            segments.append(_Segment(file, offset, width, 1))
        self._last = _Row(file, offset, header, self.covered)

    def _add(self, row: MetricsRow, line: bytes) -> None:
        """Write the row of `line` to the file of added rows."""
        split = row["split"]
        if split not in SPLITS or not 0 <= row["step"] < 2**53:
            raise DamagedRun(f"{self._truth}: the row of step {row['step']}, split {split!r} is none of a run's")
        values = row["timing"] | row["metrics"]
        names, columns, record = list(values), self._columns[split], b""
        order, places = self._order.get(split, ([], np.empty(0, np.int64)))
        if names != order:
            new = [name for name in names if name not in columns]
            if new:
                text = orjson.dumps(new)
                record = _HEADER.pack(_NAMES, len(text), 0, 0, SPLITS.index(split), 0) + text
                self._name(SPLITS.index(split), new)
            places = np.array([columns[name] for name in names], np.int64)
            self._order[split] = names, places
        content = np.full(len(columns), np.nan, np.float32)
        with np.errstate(over="ignore"):
            content[places] = np.array(list(values.values()), np.float64)
        data = content.tobytes()
        end, crc = self.covered + len(line), _checksum(line, data)
        header = _Header(_ROW, len(data), row["step"], end, SPLITS.index(split), crc)
        offset = self._added.tell() + len(record)
        self._added.write(record + _HEADER.pack(*header) + data)
        self._added.flush()
        self._note(self._added, offset, header)


class _Record(NamedTuple):
    """A record of history.bin; `names` is None for a row."""

    offset: int
    header: _Header
    names: list[str] | None

    @property
    def end(self) -> int:
        return self.offset + _HEADER.size + self.header.size


def _checksum(line: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(line))


def _records(file: int) -> Iterator[_Record]:
    """The whole records of a file, up to the first that is none."""
    offset, size, widths = 0, os.fstat(file).st_size, [0] * len(SPLITS)
    while offset + _HEADER.size <= size:
        header = _Header(*_HEADER.unpack(os.pread(file, _HEADER.size, offset)))
        if offset + _HEADER.size + header.size > size or header.split >= len(SPLITS):
            return
        names = None
        if header.kind == _NAMES:
            names = _read_names(os.pread(file, header.size, offset + _HEADER.size))
            widths[header.split] += len(names)
        elif header.kind != _ROW or header.size != 4 * widths[header.split]:
            return
        yield _Record(offset, header, names)
        offset += _HEADER.size + header.size


def _read_names(content: bytes) -> list[str]:
    try:
        names = orjson.loads(content)
    except orjson.JSONDecodeError:
        return []  # the next row does not have the width that follows from this
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _blocks(segments: Sequence[_Segment], columns: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, values (rows, k)) of the columns, _BLOCK of file at a time; NaN for a column that is not there."""
    at = 0
    for segment in segments:
        kind: Any = np.dtype([("header", f"V{_HEADER.size}"), ("values", "<f4", (segment.width,))])
        known = np.array([place for place, column in enumerate(columns) if 0 <= column < segment.width], np.int64)
        taken = np.array([column for column in columns if 0 <= column < segment.width], np.int64)
        step = max(1, _BLOCK // segment.stride)
        buffer = bytearray(min(step, segment.rows) * segment.stride)  # once: fresh memory costs more than the reading
        for start in range(0, segment.rows, step):
            count = min(step, segment.rows - start)
            data = memoryview(buffer)[: count * segment.stride]
            if os.preadv(segment.file.fileno(), [data], segment.offset + start * segment.stride) < len(data):
                raise DamagedRun(f"{segment.file.name}: was cut while it was read, as a resume does; look again")
            # In the order of rows: numpy has it in that of columns, in which adding up rows is slow.
            values = np.ascontiguousarray(np.frombuffer(data, kind)["values"][:, taken])
            if len(taken) < len(columns):
                block = np.full((count, len(columns)), np.nan, np.float32)
                block[:, known] = values
                values = block
            yield at, values
            at += count
