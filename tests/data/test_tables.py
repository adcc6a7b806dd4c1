import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vtriune.data import tables
from vtriune.data.images import TablePicture
from vtriune.data.schema import Row
from vtriune.data.tables import TableFile, to_python
from vtriune.types import UserError


@pytest.fixture
def one_large_group(tmp_path: Path, math_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 20 MB in a single row group, read as if it were too large for memory."""
    monkeypatch.setenv("VTRIUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "IN_MEMORY_BYTES", 2**20)
    path = tmp_path / "large.parquet"
    pictures = [{"bytes": os.urandom(50_000), "path": None} for _ in range(400)]
    pictures[200]["bytes"] = math_row()["images"][0]["bytes"] or b""
    pq.write_table(pa.table({"images": [[picture] for picture in pictures]}), path, row_group_size=400)
    return path


def test_one_picture_of_a_large_file_is_read_without_the_others(one_large_group: Path) -> None:
    picture = TablePicture(TableFile.at(one_large_group), 200, 0, "large.parquet row 200 images[0]")
    picture.check()
    before = pa.total_allocated_bytes()
    assert picture.load().size == (8, 6)
    assert picture.file.table().num_rows == 400
    assert pa.total_allocated_bytes() - before < 2**20


def test_the_copy_is_made_once_for_each_state_of_the_file(one_large_group: Path, tmp_path: Path) -> None:
    TableFile.at(one_large_group).table()
    first = list((tmp_path / "cache").iterdir())
    tables._open.cache_clear()
    made = first[0].stat().st_mtime_ns
    TableFile.at(one_large_group).table()
    assert [(copy, copy.stat().st_mtime_ns) for copy in (tmp_path / "cache").iterdir()] == [(first[0], made)]

    os.utime(one_large_group, ns=(0, 0))
    TableFile.at(one_large_group).table()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_large_file_leaves_no_copy(one_large_group: Path, tmp_path: Path) -> None:
    content = bytearray(one_large_group.read_bytes())
    content[4:1000] = bytes(996)
    one_large_group.write_bytes(content)
    with pytest.raises(UserError, match=r"large\.parquet: cannot be read as Parquet .*download or write it again"):
        TableFile.at(one_large_group).table()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_changed_during_the_run_is_not_mistaken_for_the_old_one(one_large_group: Path) -> None:
    file = TableFile.at(one_large_group)
    os.utime(one_large_group, ns=(0, 0))
    with pytest.raises(UserError, match=r"large\.parquet: changed while it was in use; start the run again"):
        file.table()


def test_32_bit_floats_come_back_as_the_decimals_that_were_meant() -> None:
    kind = pa.struct([("a", pa.float32()), ("b", pa.list_(pa.float32())), ("c", pa.float64()), ("d", pa.float32())])
    scalar = pa.scalar({"a": 0.1, "b": [0.3, 1.0], "c": 0.10000000149011612, "d": None}, kind)
    assert to_python(scalar) == {"a": 0.1, "b": [0.3, 1.0], "c": 0.10000000149011612, "d": None}
