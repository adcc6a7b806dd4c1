"""Finding rollouts in an index: filters, order, pages, and text, which is read from the files as far as time allows.

What is shown of the rows that were found is rollouts.py's.
"""

from __future__ import annotations

import base64
import binascii
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import orjson
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vtriune.monitor.files import DamagedRun
from vtriune.monitor.rollouts import Decoding, read_columns
from vtriune.monitor.runs import RowSplit
from vtriune.types import FinishReason, Status, UserError
from vtriune.watch.index import DECODINGS, FINISHES, STATUSES, FileRows, Snapshot, truths
from vtriune.watch.listing import Stamp

Sort = Literal["step", "-step", "reward", "-reward", "tokens", "-tokens"]
"""Equal rows are by (step, group, answer, decoding); those without a reward come last either way."""

SEARCH_SECONDS = 0.5
"""After so long a search for text answers with what it has."""
REMEMBERED_TEXTS = 4
"""Searched texts of which is kept which rows hold them, a byte a row."""
TEXT_COLUMNS = ("response", "prompt", "gold")
_AT_A_TIME = 4096
_UNKNOWN, _MISS, _HIT = 0, 1, 2

_Step = Annotated[int, Field(ge=0, lt=2**31)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Name = Annotated[str, Field(max_length=1000)]


class Query(BaseModel):
    """What is sought, as the query of the address says it; an empty value is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: _Name | None = None
    task: _Name | None = None
    decoding: Decoding | None = None
    step_from: _Step | None = None
    step_to: _Step | None = None
    status: Status | None = None
    correct: bool | None = None
    finish: FinishReason | None = None
    reward_from: _Finite | None = None
    reward_to: _Finite | None = None
    text: Annotated[str, Field(max_length=500)] | None = None
    """In response, prompt or gold, whatever the case."""
    sort: Sort = "-step"
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str, Field(max_length=500)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if value != ""} if isinstance(values, Mapping) else values


@dataclass(frozen=True, slots=True)
class Found:
    """A page."""

    positions: list[int]
    """Rows of the snapshot."""
    matching: int | None
    """All that match; None as long as not everything has been looked at."""
    next: str | None
    """The cursor that goes on after this page; None at the end."""
    searched: int
    of: int
    """Rows that have been looked at, of so many."""


class _Cursor(BaseModel):
    """The last row that was looked at. `sort` says which of the values it is the place in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sort: Sort
    value: _Finite | None
    """None: there is no reward."""
    row: tuple[_Step, _Step, _Step, Annotated[int, Field(ge=0, le=1)]] | None
    """(step, group, answer, decoding); None: no row yet."""

    def encoded(self) -> str:
        """As it goes into an address."""
        return base64.urlsafe_b64encode(orjson.dumps([self.sort, self.value, self.row])).decode()

    @classmethod
    def read(cls, text: str, sort: Sort) -> Self:
        """Raises UserError if it is none, or one of another order."""
        try:
            match orjson.loads(base64.urlsafe_b64decode(text.encode())):
                case [order, value, row]:
                    row = tuple(row) if isinstance(row, list) else row
                    cursor = cls.model_validate({"sort": order, "value": value, "row": row})
                case _:
                    raise ValueError("not three values")
        except (ValueError, binascii.Error, ValidationError) as error:
            raise UserError("cursor: is none that this server gave; leave it out to begin from the start") from error
        if cursor.sort != sort:
            raise UserError(f"cursor: belongs to sort={cursor.sort}; leave it out when the order changes")
        return cursor


Known = dict[int, tuple[Stamp, np.ndarray]]
"""For the file of each step that has been searched, as it was then: (rows of the file,) bool, which hold the text."""


class TextSearch:
    """Which rows hold which texts, as far as files have been read for it. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[Path, RowSplit, str], Known] = {}

    def of(self, folder: Path, split: RowSplit, text: str) -> Known:
        """What is known of a text in a run; to be added to."""
        key = folder, split, text
        with self._lock:
            known = self._known.pop(key) if key in self._known else {}
            self._known[key] = known  # the last now
            while len(self._known) > REMEMBERED_TEXTS:
                del self._known[next(iter(self._known))]
            return known


def find(snapshot: Snapshot, query: Query, known: Known) -> Found:
    """The page of `query`; `known` is `TextSearch.of` its text.

    Raises:
        UserError: the cursor is none.
    """
    until = time.monotonic() + SEARCH_SECONDS
    candidates = np.flatnonzero(_mask(snapshot, query))
    cursor = _Cursor.read(query.cursor, query.sort) if query.cursor else None
    values = _values(snapshot.rows[candidates], query.sort)
    after = np.ones(len(candidates), bool) if cursor is None else _is_after(cursor, snapshot, candidates, values)
    rest, values = candidates[after], values[after]
    if query.text is None:
        order = _first(rest, values, query.limit)
        positions, examined = order.tolist(), len(order)
        matching = len(candidates) if snapshot.complete else None
        searched, of = len(snapshot.rows), snapshot.total
        last = len(order) == len(rest)
    else:
        order = rest[np.argsort(values, kind="stable")]
        states = _states(snapshot, known)
        positions, examined = _search(snapshot, query, order, states, known, until)
        of_candidates = states[candidates]
        searched = int(np.count_nonzero(of_candidates))
        of = len(candidates) + snapshot.total - len(snapshot.rows)
        all_seen = searched == len(candidates) and snapshot.complete
        matching = int(np.count_nonzero(of_candidates == _HIT)) if all_seen else None
        last = examined == len(order)
    if last:
        going_on = None
    elif examined:
        going_on = _cursor_at(snapshot.rows[order[examined - 1 : examined]], query.sort).encoded()
    else:
        going_on = query.cursor or _Cursor(sort=query.sort, value=None, row=None).encoded()
    return Found(positions, matching, going_on, searched, of)


def _mask(snapshot: Snapshot, query: Query) -> np.ndarray:
    """(N,) bool: which rows pass all filters but that of text."""
    rows = snapshot.rows
    keep = np.ones(len(rows), bool)
    codes = {name: code for code, name in enumerate(snapshot.names)}
    for field, wanted in (("source", query.source), ("task", query.task)):
        if wanted is not None:
            keep &= rows[field] == codes.get(wanted, -1)
    for field, one, kinds in (
        ("decoding", query.decoding, DECODINGS),
        ("status", query.status, STATUSES),
        ("finish", query.finish, FINISHES),
    ):
        if one is not None:
            keep &= rows[field] == kinds.index(one)
    if query.correct is not None:
        keep &= rows["correct"] == query.correct
    for field, least, most in (
        ("step", query.step_from, query.step_to),
        ("reward", query.reward_from, query.reward_to),
    ):
        if least is not None:
            keep &= rows[field] >= least
        if most is not None:
            keep &= rows[field] <= most
    return keep


def _values(rows: np.ndarray, sort: Sort) -> np.ndarray:
    """(N,) float64 to sort by, ascending; infinity where there is none."""
    values = rows[sort.removeprefix("-")].astype(np.float64)
    if sort.startswith("-"):
        values = -values
    values[np.isnan(values)] = math.inf
    return values


def _first(positions: np.ndarray, values: np.ndarray, limit: int) -> np.ndarray:
    """The `limit` positions with the least values, of equals the first, in order."""
    if len(positions) > limit:
        most = np.partition(values, limit - 1)[limit - 1]
        near = values <= most
        positions, values = positions[near], values[near]
    return positions[np.argsort(values, kind="stable")[:limit]]


def _is_after(cursor: _Cursor, snapshot: Snapshot, positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(positions,) bool: which rows come after the cursor's, whether that one still exists or not."""
    if cursor.row is None:
        return np.ones(len(positions), bool)
    value = math.inf if cursor.value is None else cursor.value
    after: np.ndarray = (values > value) | ((values == value) & (positions >= _behind(snapshot, cursor.row)))
    return after


def _behind(snapshot: Snapshot, row: tuple[int, int, int, int]) -> int:
    """Where the rows begin that follow `row`, (step, group, answer, decoding)."""
    step, *own = row
    file = snapshot.files.get(step)
    if file is None:
        return next((one.start for later, one in snapshot.files.items() if later > step), len(snapshot.rows))
    rows = snapshot.rows[file.start : file.stop]
    is_behind, is_equal = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    for field, value in zip(("group", "answer", "decoding"), own, strict=True):
        is_behind |= is_equal & (rows[field] > value)
        is_equal &= rows[field] == value
    return file.start + len(rows) - int(np.count_nonzero(is_behind))


def _cursor_at(rows: np.ndarray, sort: Sort) -> _Cursor:
    """At the only one of `rows`."""
    value = float(_values(rows, sort)[0])
    step, group, answer, decoding = (int(rows[field][0]) for field in ("step", "group", "answer", "decoding"))
    return _Cursor(sort=sort, value=None if math.isinf(value) else value, row=(step, group, answer, decoding))


# --- text -------------------------------------------------------------------------------------------------------------


def _states(snapshot: Snapshot, known: Known) -> np.ndarray:
    """(N,) int8: whether each row is known to hold the text."""
    states = np.full(len(snapshot.rows), _UNKNOWN, np.int8)
    for step, (seen, holds) in list(known.items()):
        file = snapshot.files.get(step)
        if file is not None and seen == file.stamp:
            _note(states, snapshot, file, holds)
    return states


def _note(states: np.ndarray, snapshot: Snapshot, file: FileRows, holds: np.ndarray) -> None:
    places = snapshot.rows["place"][file.start : file.stop]
    states[file.start : file.stop] = np.where(holds[places], _HIT, _MISS)


def _search(
    snapshot: Snapshot,
    query: Query,
    order: np.ndarray,
    states: np.ndarray,
    known: Known,
    until: float,
) -> tuple[list[int], int]:
    """Read files in the order in which they are needed, until the page is full or time is up.

    Returns:
        The rows that hold the text, and how many of `order` have been looked at for them, all from its start.
    """
    found: list[int] = []
    examined, read = 0, 0
    while examined < len(order):
        chunk = order[examined : examined + _AT_A_TIME]
        unknown = np.flatnonzero(states[chunk] == _UNKNOWN)
        seen = chunk[: unknown[0]] if len(unknown) else chunk
        hits = np.flatnonzero(states[seen] == _HIT)
        left = query.limit - len(found)
        found.extend(seen[hits[:left]].tolist())
        if len(found) == query.limit:
            examined += int(hits[left - 1]) + 1
            break
        examined += len(seen)
        if len(unknown):
            if read and time.monotonic() > until:
                break
            step = int(snapshot.rows["step"][chunk[unknown[0]]])
            file = snapshot.files[step]
            holds = rows_with(snapshot.path(step), query.text or "", file.stop - file.start)
            known[step] = file.stamp, holds
            _note(states, snapshot, file, holds)
            read += 1
    return found, examined


def rows_with(path: Path, text: str, count: int) -> np.ndarray:
    """(count,) bool: which rows of a file hold `text`; none if it has been replaced or damaged since it was indexed."""
    holds = np.zeros(count, bool)
    try:
        table = read_columns(path, TEXT_COLUMNS)
    except DamagedRun:
        return holds
    if len(table) != count:
        return holds
    for name in TEXT_COLUMNS:
        column = table.column(name).combine_chunks()
        if name == "response":
            own = pc.match_substring(column, text, ignore_case=True)
        else:  # the same for a whole group
            column = column.dictionary_encode()
            own = pc.match_substring(column.dictionary, text, ignore_case=True).take(column.indices)
        holds[truths(own.is_valid())] |= truths(own.drop_null())
    return holds
