from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtriune.monitor.files import (
    DamagedRun,
    append_row,
    cut_rows,
    read_rows,
    read_rows_backward,
    read_rows_from,
    replacing,
    write_json,
)


def backward(path: Path) -> list[dict[str, object]]:
    return [row for _, row in read_rows_backward(path)]


def write(path: Path, count: int, padding: int = 0) -> list[dict[str, object]]:
    path.unlink(missing_ok=True)
    path.touch()
    rows: list[dict[str, object]] = [{"step": step, "text": "é\n" + "x" * padding} for step in range(count)]
    for row in rows:
        append_row(path, row)
    return rows


def test_a_file_cut_at_any_byte_still_gives_every_row_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = write(path, 3)
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        assert list(read_rows(path)) == rows[:whole]
        assert backward(path) == rows[:whole][::-1]


def test_a_half_written_row_is_cut_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = write(path, 3)
    with path.open("ab") as file:
        file.write(b'{"step": 3, "te')
    cut_rows(path, lambda row: row["step"] <= 9)
    append_row(path, {"step": 3})
    assert list(read_rows(path)) == [*rows, {"step": 3}]


def test_blocks_of_zero_bytes_after_a_power_cut_count_as_half_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = write(path, 2)
    with path.open("ab") as file:
        file.write(b"\0" * 5000 + b"\n")
    assert list(read_rows(path)) == rows
    assert backward(path) == rows[::-1]


@pytest.mark.parametrize("garbage", [b"garbage\n", b"[1]\n", b"\n", b'{"step": 1}{"step": 2}\n', b"\xff\xfe\n"])
def test_damage_before_the_last_line_is_named_and_not_skipped(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, 1)
    with path.open("ab") as file:
        file.write(garbage)
    append_row(path, {"step": 1})
    with pytest.raises(DamagedRun, match=r"rows\.jsonl line 2"):
        list(read_rows(path))
    with pytest.raises(DamagedRun, match=r"rows\.jsonl line 2"):
        backward(path)
    with pytest.raises(DamagedRun, match=r"rows\.jsonl line 2"):
        list(read_rows_from(path, path.read_bytes().index(b"\n") + 1))


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedRun, match="No such file"):
        list(read_rows(tmp_path / "rows.jsonl"))


@settings(max_examples=30)
@given(sizes=st.lists(st.sampled_from([0, 1, 1000, 700_000, 3_000_000]), max_size=5))
def test_reading_backward_gives_the_same_rows_whatever_their_length(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.touch()
    for size in sizes:
        append_row(path, {"text": "x" * size})
    assert backward(path) == list(read_rows(path))[::-1]
    path.unlink()


@given(count=st.integers(0, 6), step=st.integers(-1, 8))
def test_cutting_keeps_exactly_the_rows_up_to_a_step(
    tmp_path_factory: pytest.TempPathFactory, count: int, step: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = write(path, count, padding=40)
    cut_rows(path, lambda row: row["step"] <= step)
    assert list(read_rows(path)) == rows[: step + 1]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"state": "running"})
    with pytest.raises(KeyError, match="half way"), replacing(path) as file:
        file.write(b"{")
        raise KeyError("half way")
    assert path.read_bytes() == b'{\n  "state": "running"\n}\n'
    assert list(tmp_path.iterdir()) == [path]
