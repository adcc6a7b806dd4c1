"""Filter, order, pages and text search against a plain twin over lists; the index against a folder that changes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.monitor.rollouts import SCHEMA
from vtriune.monitor.runs import rollout_file
from vtriune.types import UserError
from vtriune.watch import index, search
from vtriune.watch.index import ROW, Indexes, RolloutIndex
from vtriune.watch.search import Known, Query, Sort, TextSearch, find

Row = dict[str, Any]

BASE: Row = {
    "step": 1,
    "group": 0,
    "answer": 0,
    "decoding": "sampled",
    "source": "math",
    "task": "math",
    "sample_id": "a.parquet#0",
    "prompt": "How many?",
    "response": "4",
    "tokens": 3,
    "finish": "stop",
    "status": "scored",
    "reward": 1.0,
    "accuracy": 1.0,
    "correct": True,
    "gold": "4",
}
WORDS = ("red Square", "ein Maß", "привет", "100%", "a.b", "", "\\", "<script>")


def write(folder: Path, rows: Sequence[Row], step: int, split: Any = "train") -> Path:
    path = rollout_file(folder, split, step)
    path.parent.mkdir(exist_ok=True)
    full = [dict.fromkeys(SCHEMA.names) | BASE | {"step": step} | row for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=SCHEMA), path)
    return path


def whole(folder: Path, split: Any = "train") -> index.Snapshot:
    snapshot = RolloutIndex(folder, split).snapshot(wait=600)
    assert snapshot.complete
    return snapshot


def place(row: Row) -> tuple[Any, ...]:
    return row["step"], row["group"], row["answer"], row["decoding"] == "greedy"


def matches(row: Row, query: Query) -> bool:
    exact = ("source", "task", "decoding", "status", "correct", "finish")
    if any(getattr(query, name) not in (None, row[name]) for name in exact):
        return False
    for name, least, most in (
        ("step", query.step_from, query.step_to),
        ("reward", query.reward_from, query.reward_to),
    ):
        for bound, side in ((least, 1), (most, -1)):
            if bound is not None and (row[name] is None or (row[name] - bound) * side < 0):
                return False
    texts = (row["response"], row["prompt"], row["gold"])
    return query.text is None or any(query.text.lower() in text.lower() for text in texts if text)


def in_order(rows: Sequence[Row], sort: Sort) -> list[Row]:
    name, sign = sort.removeprefix("-"), -1 if sort.startswith("-") else 1
    return sorted(rows, key=lambda row: (math.inf if row[name] is None else sign * row[name], *place(row)))


def pages(snapshot: index.Snapshot, query: Query, known: Known | None = None) -> Iterator[search.Found]:
    known = {} if known is None else known
    while True:
        found = find(snapshot, query, known)
        yield found
        if found.next is None:
            return
        query = query.model_copy(update={"cursor": found.next})


def places(snapshot: index.Snapshot, positions: Sequence[int]) -> list[tuple[Any, ...]]:
    rows = snapshot.rows[list(positions)]
    return [tuple(map(int, row)) for row in rows[["step", "group", "answer", "decoding"]].tolist()]


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    before = search.SEARCH_SECONDS
    search.SEARCH_SECONDS = seconds
    try:
        yield
    finally:
        search.SEARCH_SECONDS = before


Keys = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.sampled_from(["sampled", "greedy"])),
    unique=True,
    min_size=5,
    max_size=25,
)
Reward = st.sampled_from([None, 0.0, -0.0, 0.1, 0.3, 1 / 3, 1.0, -1.5])
Values = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["math", "ocr", "box"]),
        "task": st.sampled_from(["math", "perception"]),
        "status": st.sampled_from(["scored", "failed", "unscorable"]),
        "finish": st.sampled_from(["stop", "length"]),
        "correct": st.sampled_from([None, True, False]),
        "reward": Reward,
        "tokens": st.integers(1, 4),
        "response": st.sampled_from(WORDS),
        "prompt": st.sampled_from(WORDS),
        "gold": st.sampled_from([*WORDS, None]),
    }
)
Sorts = st.sampled_from(["step", "-step", "reward", "-reward", "tokens", "-tokens"])


def maybe(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([*[None] * 12, *values])  # few at a time, so that rows are left


Queries = st.builds(
    Query,
    source=maybe("math", "box", "none"),
    task=maybe("perception"),
    decoding=maybe("sampled", "greedy"),
    step_from=maybe(1, 3),
    step_to=maybe(4),
    status=maybe("scored", "failed"),
    correct=maybe(True, False),
    finish=maybe("length"),
    reward_from=maybe(0.1, 1 / 3),
    reward_to=maybe(0.3, 1.0),
    text=maybe("r", "SQUARE", "maß", "ПРИВЕТ", "%", ".", "\\", "zzz"),
    sort=Sorts,
    limit=st.integers(1, 7),
)


@given(keys=Keys, data=st.data(), query=Queries, hurried=st.booleans())
def test_all_pages_together_are_what_a_plain_filter_and_sort_give(
    keys: list[tuple[int, int, int, str]], data: st.DataObject, query: Query, hurried: bool
) -> None:
    rows = [
        BASE | data.draw(Values) | dict(zip(("step", "group", "answer", "decoding"), key, strict=True)) for key in keys
    ]
    with TemporaryDirectory() as name, patience(-1 if hurried else 600):
        for step in {row["step"] for row in rows}:
            write(Path(name), [row for row in rows if row["step"] == step], step)
        snapshot = whole(Path(name))
        found = list(pages(snapshot, query))
    wanted = [place(row) for row in in_order([row for row in rows if matches(row, query)], query.sort)]
    assert [one for page in found for one in places(snapshot, page.positions)] == wanted
    assert all(len(page.positions) <= query.limit for page in found)
    assert found[-1].matching == len(wanted)
    assert (found[-1].searched, found[-1].of) == (found[-1].of, found[-1].of)
    if query.text is None:
        assert {page.matching for page in found} == {len(wanted)}
    else:
        assert [page.searched for page in found] == sorted(page.searched for page in found)
        assert {page.matching for page in found} <= {None, len(wanted)}


def test_a_page_goes_on_where_it_stopped_although_rows_came_and_went(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write(tmp_path, [{"group": group, "reward": group / 4} for group in range(4)], step)
    query = Query(sort="-reward", limit=5)
    before = whole(tmp_path)
    first = find(before, query, {})
    assert places(before, first.positions) == [(2, 3, 0, 0), (4, 3, 0, 0), (6, 3, 0, 0), (2, 2, 0, 0), (4, 2, 0, 0)]
    rollout_file(tmp_path, "train", 4).unlink()
    write(tmp_path, [{"group": 9, "reward": 1.0}, {"group": 8, "reward": 0.5}], 5)
    after = whole(tmp_path)
    second = find(after, query.model_copy(update={"cursor": first.next}), {})
    assert places(after, second.positions) == [(5, 8, 0, 0), (6, 2, 0, 0), (2, 1, 0, 0), (6, 1, 0, 0), (2, 0, 0, 0)]


@pytest.mark.parametrize(
    "cursor",
    [
        "abc",
        "====",
        "é",
        "W10=",  # []
        "bnVsbA==",  # null
        "WyJzdGVwIiwgMSwgWzEsMiwzXV0=",  # ["step", 1, [1,2,3]]
        "WyJzdGVwIiwgImEiLCBbMSwyLDMsMF1d",  # ["step", "a", [1,2,3,0]]
        "WyJzdGVwIiwgMSwgWzEsMiwzLDldXQ==",  # ["step", 1, [1,2,3,9]]
        "WyJzdGVwIiwgMSwgWzFlMzAsMiwzLDBdXQ==",  # ["step", 1, [1e30,2,3,0]]
        "WyJuYW1lIiwgMSwgWzEsMiwzLDBdXQ==",  # ["name", 1, [1,2,3,0]]
    ],
)
def test_a_cursor_from_elsewhere_is_refused(tmp_path: Path, cursor: str) -> None:
    write(tmp_path, [{}], 1)
    with pytest.raises(UserError, match="cursor: is none that this server gave"):
        find(whole(tmp_path), Query(sort="step", cursor=cursor), {})


def test_a_cursor_of_another_order_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [{}, {"group": 1}], 1)
    snapshot = whole(tmp_path)
    cursor = find(snapshot, Query(sort="step", limit=1), {}).next
    with pytest.raises(UserError, match="cursor: belongs to sort=step"):
        find(snapshot, Query(sort="-step", cursor=cursor), {})


def test_a_text_search_stops_early_and_reads_no_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 6):
        write(tmp_path, [{"response": "red" if step == 2 else "blue"}], step)
    read: list[str] = []
    plain = search.rows_with
    monkeypatch.setattr(search, "SEARCH_SECONDS", -1.0)
    monkeypatch.setattr(search, "rows_with", lambda path, *rest: read.append(path.name) or plain(path, *rest))  # type: ignore[func-returns-value]
    snapshot, texts = whole(tmp_path), TextSearch()
    found = list(pages(snapshot, Query(text="RED", sort="step"), texts.of(tmp_path, "train", "RED")))
    assert [(page.searched, page.of, page.matching) for page in found] == [
        (1, 5, None),
        (2, 5, None),
        (3, 5, None),
        (4, 5, None),
        (5, 5, 1),
    ]
    assert [len(page.positions) for page in found] == [0, 1, 0, 0, 0]
    again = find(snapshot, Query(text="RED", sort="-tokens"), texts.of(tmp_path, "train", "RED"))
    assert (again.matching, len(again.positions), again.next) == (1, 1, None)
    assert len(read) == 5
    few = find(snapshot, Query(text="blue", step_from=4), texts.of(tmp_path, "train", "blue"))
    assert few.of == 2  # only files that hold candidates are read
    for text in "abcd":
        texts.of(tmp_path, "train", text)
    assert texts.of(tmp_path, "train", "RED") == {}  # forgotten for later ones


# --- the index --------------------------------------------------------------------------------------------------------


def test_a_row_takes_forty_bytes() -> None:
    assert ROW.itemsize == 40


def look_again(one: RolloutIndex) -> index.Snapshot:
    one._looked = -math.inf
    return one.snapshot(wait=600)


def test_the_index_follows_files_that_come_change_and_go(tmp_path: Path) -> None:
    one = RolloutIndex(tmp_path, "train")
    assert len(one.snapshot().rows) == 0
    write(tmp_path, [{"reward": 0.5}], 1)
    assert look_again(one).rows["reward"].tolist() == [0.5]
    write(tmp_path, [{"source": "ocr"}, {"answer": 1}], 3)
    write(tmp_path, [{}], 2)
    snapshot = look_again(one)
    assert snapshot.rows["step"].tolist() == [1, 2, 3, 3]
    assert [snapshot.names[code] for code in snapshot.rows["source"]] == ["math", "math", "ocr", "math"]
    assert look_again(one) is snapshot  # nothing has changed
    # A resumed run writes later steps anew.
    rollout_file(tmp_path, "train", 3).unlink()
    os.utime(write(tmp_path, [{"reward": 0.25}], 1), ns=(1, 1))
    snapshot = look_again(one)
    assert (snapshot.rows["step"].tolist(), snapshot.rows["reward"].tolist()) == ([1, 2], [0.25, 1.0])


def test_training_and_evaluation_are_apart(tmp_path: Path) -> None:
    write(tmp_path, [{}], 1)
    write(tmp_path, [{"decoding": "greedy"}, {"decoding": "sampled"}], 0, "eval")
    assert whole(tmp_path).rows["step"].tolist() == [1]
    assert whole(tmp_path, "eval").rows["decoding"].tolist() == [0, 1]  # sampled first


def test_damaged_files_are_left_out_and_told_of(tmp_path: Path) -> None:
    write(tmp_path, [{}], 1)
    rollout_file(tmp_path, "train", 2).write_bytes(b"PAR1 no")
    write(tmp_path, [{"status": "strange"}], 3)
    write(tmp_path, [{"group": None}], 4)
    write(tmp_path, [{"step": 9}], 5)
    pq.write_table(pa.table({"step": [6]}), rollout_file(tmp_path, "train", 6))
    bad = pa.Table.from_pylist([BASE | {"step": 7}])
    bad = bad.set_column(bad.column_names.index("tokens"), "tokens", pa.array(["many"]))
    pq.write_table(bad, rollout_file(tmp_path, "train", 7))
    outside = write(tmp_path / "rollouts", [{"step": 8}], 8)
    rollout_file(tmp_path, "train", 8).symlink_to(outside)
    (tmp_path / "rollouts" / "step-00009.parquet").write_bytes(b"no name of ours")
    (tmp_path / "rollouts" / ".step-000010.parquet.tmp").write_bytes(b"half a file")
    snapshot = whole(tmp_path)
    assert snapshot.rows["step"].tolist() == [1]
    assert snapshot.complete
    names = [f"step-{step:06d}.parquet" for step in range(2, 8)]
    assert len(snapshot.faults) == len(names)
    assert all(name in fault for name, fault in zip(names, snapshot.faults, strict=True))


def test_the_runs_asked_for_longest_ago_are_dropped_when_rows_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MAX_ROWS", 25)
    indexes, made = Indexes(), {}
    for name in "abc":
        (tmp_path / name).mkdir()
        write(tmp_path / name, [{"group": group} for group in range(10)], 1)
        made[name] = indexes.of(tmp_path / name, "train")
        made[name].snapshot(wait=600)
    assert indexes.of(tmp_path / "c", "train") is made["c"]
    assert indexes.of(tmp_path / "b", "train") is made["b"]
    assert indexes.of(tmp_path / "a", "train") is not made["a"]


def test_empty_values_of_a_query_are_none_and_unknown_ones_an_error() -> None:
    assert Query.model_validate({"source": "", "reward_from": "", "correct": "true"}) == Query(correct=True)
    for wrong in ({"limit": 0}, {"sort": "name"}, {"reward_from": "nan"}, {"foo": "1"}, {"step_from": 2**31}):
        with pytest.raises(ValueError):
            Query.model_validate(wrong)
