"""Files that survive a crash: written whole and renamed into place, or appended to line by line; and a folder's lock.

What the files of a run mean is in store.py and rollouts.py.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vtriune.types import UserError

_BLOCK = 1 << 20


class DamagedRun(UserError):  # noqa: N818 - named for what the user has, not for what went wrong in the code
    """A run folder whose files cannot be read as this package wrote them; the message names file and place."""


def valid_text(text: str) -> str:
    """`text` with every lone surrogate, which no file can hold as UTF-8, replaced by `?`."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write `path` anew: readers see the old content or the whole new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `path` anew as indented JSON."""
    with replacing(path) as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append `row` as one line of JSON with sorted keys, and see it onto the disk."""
    with path.open("ab") as file:
        file.write(orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines. A last line that was not written to its end is left out.

    Raises:
        DamagedRun: any other line is no JSON object, or the file cannot be opened.
    """
    return (row for _, row in read_rows_from(path, 0))


def read_rows_from(path: Path, start: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Same as `read_rows` from byte `start` on, where a line must begin; each row with its line, line end included."""
    with _opened(path) as file:
        file.seek(start)
        for number, line in enumerate(file, start=1):
            row = _row(line)
            if row is not None:
                yield line, row
            elif not line.endswith(b"\n"):  # half written, even if its writer has gone on meanwhile
                return
            elif file.read(1):
                raise _damaged(path, _lines_before(path, start) + number)


def read_rows_backward(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file of JSON lines from the last to the first, each with the offset where its line ends.

    Reads no more of the file than is asked for; a last line that was not written to its end is left out.

    Raises:
        DamagedRun: any other line is no JSON object, or the file cannot be opened.
    """
    is_last = True
    for start, line in _lines_backward(path):
        row = _row(line)
        if row is not None:
            yield start + len(line), row
        elif not is_last:
            raise _damaged(path, _lines_before(path, start) + 1)
        is_last = False


def cut_rows(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut off the end of a file of JSON lines: all that follows the last row for which `keep` is true."""
    end = next((end for end, row in read_rows_backward(path) if keep(row)), 0)
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())


def _damaged(path: Path, number: int) -> DamagedRun:
    return DamagedRun(f"{path} line {number}: not a JSON object; restore the file, or delete this line")


def _lines_before(path: Path, end: int) -> int:
    """How many lines of a file end before byte `end`."""
    with _opened(path) as file:
        return sum(file.read(min(_BLOCK, end - at)).count(b"\n") for at in range(0, end, _BLOCK))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DamagedRun(f"{path}: {error.strerror}") from error


def _row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _lines_backward(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) from the last line to the first, line ends included; the last may lack its own."""
    with _opened(path) as file:
        start = file.seek(0, os.SEEK_END)
        tail = b""
        while start > 0:
            size = min(_BLOCK, start)
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
            end = len(tail)
            while (newline := tail.rfind(b"\n", 0, end - 1)) >= 0:
                yield start + newline + 1, tail[newline + 1 : end]
                end = newline + 1
            tail = tail[:end]
        if tail:
            yield 0, tail


def lock_folder(folder: Path) -> BinaryIO:
    """Lock `folder` for writing, for as long as the returned file is open."""
    file = (folder / ".lock").open("ab")
    for _ in range(20):  # a reader that asks whether the run is alive holds the lock for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.05)
    else:
        file.close()
        raise UserError(f"{folder}: another process is writing this run; stop it first, or choose another run name")
    # A forked worker that outlives a killed training must not keep the run locked.
    reference = weakref.ref(file)
    os.register_at_fork(after_in_child=lambda: _close(reference()))
    return file


def is_locked(folder: Path) -> bool:
    """Whether a living process writes the run in `folder`."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _close(file: BinaryIO | None) -> None:
    if file is not None:
        file.close()
