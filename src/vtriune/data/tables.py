"""Random access to the rows of a Parquet file or a Hugging Face folder, in bounded memory; any process can reopen it.

What the rows mean is none of this file's business (see sources.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vtriune.data.seeds import stable_hash
from vtriune.types import UserError

IN_MEMORY_BYTES = 64 * 2**20
"""A Parquet file up to this size is kept in memory. A larger one is copied once to a memory-mapped Arrow file, because
a row group must be decompressed as a whole to reach one picture, and many files have a single row group."""
BATCH_ROWS = 128
_BUFFER = 2**20
"""Bytes of a column that are read at a time where one row is looked for."""


def cache_folder() -> Path:
    """Return where Arrow copies are kept: VTRIUNE_CACHE, else ~/.cache/vtriune. It may be deleted between runs."""
    return Path(os.environ.get("VTRIUNE_CACHE") or Path.home() / ".cache" / "vtriune")


class Rows(Protocol):
    """Rows that came from a file."""

    @property
    def path(self) -> Path:
        """The file."""

    def table(self) -> pa.Table:
        """The rows."""


@dataclass(frozen=True, slots=True)
class LoneRow:
    """One row of a file, taken out of it: the file is not kept open."""

    path: Path
    row: pa.Table

    def table(self) -> pa.Table:
        """The row, a table of its own."""
        return self.row


@dataclass(frozen=True, slots=True)
class TableFile:
    """A data file as it was when first read: cheap to copy and to send to another process, which opens it itself."""

    path: Path
    """A Parquet file, or a folder written by `Dataset.save_to_disk`."""
    modified_ns: int

    @classmethod
    def at(cls, path: Path) -> TableFile:
        """Return the file with its present modification time."""
        return cls(path, _modified(path))

    def table(self) -> pa.Table:
        """Return the rows; the same object at every call in one process.

        Raises:
            UserError: the file is damaged, or was changed after the run had read it.
        """
        return _open(self)

    def lone_row(self, number: int) -> LoneRow | None:
        """Read one row, counted from 0, without keeping anything of the file in memory; None if there is none such.

        Raises:
            UserError: the file is damaged.
        """
        with _readable(self.path):
            if self.path.is_dir():
                table = _open_saved_dataset(self.path)
                return LoneRow(self.path, table.slice(number, 1)) if 0 <= number < table.num_rows else None
            with pq.ParquetFile(self.path, buffer_size=_BUFFER) as parquet:
                return _lone_row(self.path, parquet, number)


def _lone_row(path: Path, parquet: pq.ParquetFile, number: int) -> LoneRow | None:
    if number < 0:
        return None
    for group in range(parquet.num_row_groups):
        size = parquet.metadata.row_group(group).num_rows
        if number < size:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group]):
                if number < batch.num_rows:
                    return LoneRow(path, pa.Table.from_batches([batch.slice(number, 1)]))
                number -= batch.num_rows
        number -= size
    return None


@cache
def _open(file: TableFile) -> pa.Table:
    if _modified(file.path) != file.modified_ns:
        raise UserError(f"{file.path}: changed while it was in use; start the run again")
    with _readable(file.path):
        if file.path.is_dir():
            return _open_saved_dataset(file.path)
        if file.path.stat().st_size <= IN_MEMORY_BYTES:
            with pq.ParquetFile(file.path) as parquet:
                return parquet.read()
        return pa.ipc.open_stream(pa.memory_map(str(_arrow_copy(file)))).read_all()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        kind = "a folder written by save_to_disk" if path.is_dir() else "Parquet"
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as {kind} ({reason}); it is damaged or incomplete: download or write it again"
        ) from error


def _modified(path: Path) -> int:
    return (path / "state.json" if path.is_dir() else path).stat().st_mtime_ns


def _open_saved_dataset(folder: Path) -> pa.Table:
    from datasets import load_from_disk  # noqa: PLC0415  (half a second that Parquet users need not wait)

    table = load_from_disk(str(folder)).data.table
    table.validate()
    return table


def _arrow_copy(file: TableFile) -> Path:
    copy = cache_folder() / f"{stable_hash(str(file.path.resolve()), file.modified_ns):016x}.arrow"
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=copy.parent, suffix=".part")
    try:
        with (
            os.fdopen(descriptor, "wb") as sink,
            pq.ParquetFile(file.path) as parquet,
            pa.ipc.new_stream(sink, parquet.schema_arrow) as writer,
        ):
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                writer.write_batch(batch)
        Path(unfinished).replace(copy)  # atomic: a second process copying the same file sees all or nothing
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return copy


def to_python(scalar: pa.Scalar) -> Any:
    """Return the value as Python objects; a 32-bit float comes back as the decimal that its writer meant (0.1f is 0.1).

    Raises:
        UnicodeDecodeError: text that is not UTF-8 (Parquet does not check).
    """
    return _as_written(scalar.as_py(), scalar.type)


def _as_written(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_float32(kind):
        return float(str(np.float32(value)))
    if pa.types.is_struct(kind):
        return {field.name: _as_written(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_as_written(item, kind.value_type) for item in value]
    return value
