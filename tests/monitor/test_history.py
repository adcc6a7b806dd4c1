import math
import signal
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.monitor.files import DamagedRun
from vtriune.monitor.history import FILE, History
from vtriune.monitor.runs import RowSplit
from vtriune.monitor.store import RunStore

NAMES = ("all/reward", "math/reward", "été/length", "layer_00/grad_norm_llm")

Row = dict[str, Any]

figures = st.dictionaries(st.sampled_from(NAMES), st.floats(-1e6, 1e6, width=32) | st.integers(-9, 9), max_size=4)
rows = st.lists(st.tuples(st.sampled_from(["train", "train", "eval"]), figures), max_size=30).map(
    lambda drawn: [
        {"step": step, "split": split, "metrics": metrics, "timing": {"elapsed_s": step / 2}}
        for step, (split, metrics) in enumerate(drawn, start=1)
    ]
)


def write(folder: Path, rows: list[Row]) -> None:
    """Append rows as any training might, and nothing else."""
    with (folder / "metrics.jsonl").open("ab") as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def keep(folder: Path) -> None:
    """Bring history.bin up to date."""
    history = History.writing(folder)
    assert history.extend()
    history.close()


def read(folder: Path) -> History:
    history = History.reading(folder)
    assert history.extend()
    return history


def plain(rows: list[Row], split: RowSplit, name: str, buckets: int) -> list[tuple[int, Any, Any, Any]]:
    """The twin of `History.curves`: (step, mean, low, high) of one figure by bucket."""
    kept = [row for row in rows if row["split"] == split]
    told, count = [], min(buckets, len(kept))
    for bucket in range(count):
        members = kept[len(kept) * bucket // count : len(kept) * (bucket + 1) // count]
        values = [row["metrics"][name] for row in members if name in row["metrics"]]
        summary = (math.fsum(values) / len(values), min(values), max(values)) if values else (math.nan,) * 3
        told.append((members[(len(members) - 1) // 2]["step"], *summary))
    return told


def ends(rows: list[Row], split: RowSplit, name: str) -> tuple[float, float]:
    values = [row["metrics"][name] for row in rows if row["split"] == split and name in row["metrics"]]
    return (values[0], values[-1]) if values else (math.nan, math.nan)


def check(history: History, rows: list[Row], buckets: int = 7) -> None:
    """That `history` tells the same as the rows."""
    splits: tuple[RowSplit, RowSplit] = ("train", "eval")
    for split in splits:
        known = {name for row in rows if row["split"] == split for name in (*row["metrics"], *row["timing"])}
        assert set(history.names(split)) == known
        curves = history.curves(split, NAMES, buckets)
        for place, name in enumerate(NAMES):
            columns = curves.mean[:, place], curves.low[:, place], curves.high[:, place]
            told = np.array(list(zip(curves.steps, *columns, strict=True))).reshape(-1, 4)
            np.testing.assert_allclose(told, np.array(plain(rows, split, name, buckets)).reshape(-1, 4), rtol=1e-6)
            np.testing.assert_allclose((curves.first[place], curves.last[place]), ends(rows, split, name), rtol=1e-6)


@given(rows=rows, cut=st.integers(0, 30), buckets=st.integers(1, 40))
def test_curves_are_those_of_the_rows_wherever_the_binary_file_ends(rows: list[Row], cut: int, buckets: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, rows[:cut])
        keep(folder)
        write(folder, rows[cut:])
        check(read(folder), rows, buckets)


@given(rows=rows, kept=st.lists(st.integers(0, 30), max_size=4))
def test_a_file_continued_by_several_sessions_equals_one_written_at_once(rows: list[Row], kept: list[int]) -> None:
    with TemporaryDirectory() as name:
        folder, at = Path(name), 0
        for count in (*kept, len(rows)):
            write(folder, rows[at : at + count])
            keep(folder)
            at += count
        several = (folder / FILE).read_bytes()
        (folder / FILE).unlink()
        keep(folder)
        assert (folder / FILE).read_bytes() == several
        check(read(folder), rows)


@given(rows=rows, before=rows, parted=st.integers(0, 30))
def test_rows_that_somebody_replaced_without_this_file_are_not_shown(
    rows: list[Row], before: list[Row], parted: int
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        # Every row holds times that were measured: no two sessions write the same line.
        others = [row | {"timing": {"elapsed_s": row["step"] / 2 + 0.25}} for row in before[parted:]]
        write(folder, rows[:parted] + others)
        keep(folder)
        (folder / "metrics.jsonl").unlink()
        write(folder, rows)
        check(read(folder), rows)
        keep(folder)
        check(read(folder), rows)


@given(rows=rows, garbage=st.binary(max_size=200))
def test_garbage_in_the_binary_file_changes_nothing(rows: list[Row], garbage: bytes) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, rows)
        (folder / FILE).write_bytes(garbage)
        check(read(folder), rows)
        keep(folder)
        with (folder / FILE).open("ab") as file:
            file.write(garbage)
        check(read(folder), rows)
        keep(folder)
        check(read(folder), rows)


def test_a_binary_file_that_was_cut_anywhere_is_read_and_continued(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"step": step, "split": "train", "metrics": dict.fromkeys(NAMES[:step], step / 3), "timing": {}}
        for step in range(1, 5)
    ]
    write(tmp_path, rows)
    keep(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for size in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:size])
        check(read(tmp_path), rows)
        keep(tmp_path)
        assert (tmp_path / FILE).read_bytes() == whole


def test_rows_whose_end_a_loss_of_power_left_blank_are_read_again(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"step": step, "split": "train", "metrics": dict.fromkeys(NAMES, step / 3), "timing": {}}
        for step in range(1, 9)
    ]
    write(tmp_path, rows)
    keep(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for blank in range(1, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:-blank] + bytes(blank))
        check(read(tmp_path), rows)
    keep(tmp_path)
    assert (tmp_path / FILE).read_bytes() == whole


def test_a_reader_sees_what_is_added_and_waits_for_the_end_of_a_row(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"step": step, "split": "train", "metrics": {"all/reward": step / 4}, "timing": {}} for step in range(1, 6)
    ]
    write(tmp_path, rows[:2])
    keep(tmp_path)
    history = read(tmp_path)
    line = orjson.dumps(rows[2], option=orjson.OPT_APPEND_NEWLINE)
    for start, part in ((2, line[:9]), (2, line[9:-1]), (3, line[-1:])):
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(part)
        assert history.extend()
        check(history, rows[:start])
    write(tmp_path, rows[3:])
    keep(tmp_path)  # the writer's file and the reader's own rows do not add up
    assert history.extend()
    check(history, rows)
    assert history.holds()


def test_a_reader_notices_that_rows_were_cut_off_and_written_anew(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, recipe={}, total_steps=9, threads=1) as store:
        for step in range(1, 6):
            store.log(step, "train", {"all/reward": step / 4})
    history = read(tmp_path)
    assert history.holds()
    with RunStore.resume(tmp_path, step=2, threads=1) as store:
        assert not history.holds()
        for step in range(3, 6):
            store.log(step, "train", {"all/reward": step / 8})
    assert not history.holds()
    assert read(tmp_path).curves("train", ["all/reward"], 9).mean[:, 0].tolist() == [0.25, 0.5, 0.375, 0.5, 0.625]


def test_a_binary_file_that_shrinks_under_a_reader_is_named(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 1, "split": "train", "metrics": {"all/reward": 1}, "timing": {}}])
    keep(tmp_path)
    history = read(tmp_path)
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(DamagedRun, match="cut while it was read"):
        history.curves("train", ["all/reward"], 1)


def test_training_leaves_a_binary_file_that_spares_reading_any_json(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, recipe={}, total_steps=9, threads=1) as store:
        store.log(0, "eval", {"all/score": 20.0})
        for step in range(1, 4):
            store.log(step, "train", {"all/reward": step / 4, f"layer_{step:02d}/grad_norm_llm": 1.0}, {"update_s": 2})
    history = History.reading(tmp_path)
    assert history.covered == (tmp_path / "metrics.jsonl").stat().st_size
    assert history.curves("train", ["all/reward", "update_s"], 9).mean.tolist() == [[0.25, 2], [0.5, 2], [0.75, 2]]
    assert history.names("eval") == ["elapsed_s", "all/score"]


def test_training_goes_on_beside_damage_that_keeps_its_binary_file_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunStore.create(tmp_path, recipe={}, total_steps=9, threads=1) as store:
        store.log(1, "train", {"all/reward": 0.5})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b"nonsense\n")
        store.log(2, "train", {"all/reward": 0.5})
    assert "history.bin is not kept up to date" in caplog.text
    assert "restore the file, or delete this line" in caplog.text
    assert History.reading(tmp_path).curves("train", ["all/reward"], 9).steps.tolist() == [1]


def test_an_older_run_gets_its_binary_file_when_it_is_resumed(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, recipe={}, total_steps=9, threads=1) as store:
        for step in range(1, 4):
            store.log(step, "train", {"all/reward": step / 4})
    (tmp_path / FILE).unlink()
    with RunStore.resume(tmp_path, step=3, threads=1) as store:
        store.log(4, "train", {"all/reward": 1.0})
    assert History.reading(tmp_path).curves("train", ["all/reward"], 9).steps.tolist() == [1, 2, 3, 4]


def test_reading_changes_nothing_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 1, "split": "train", "metrics": {"all/reward": 1}, "timing": {}}] * 3)
    keep(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-7])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    read(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_figure_beyond_float32_and_one_that_was_not_finite_are_absent(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, recipe={}, total_steps=9, threads=1) as store:
        store.log(1, "train", {"all/loss": math.nan, "all/reward": 1e300})
        store.log(2, "train", {"all/loss": 2.0, "all/reward": 0.5})
    curves = read(tmp_path).curves("train", ["all/loss", "all/reward", "no such"], 1)
    np.testing.assert_array_equal(curves.mean, [[2.0, 0.5, math.nan]])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense\n", "line 2: not a JSON object"),
        (
            b'{"step": 2, "split": "train", "metrics": {"all/reward": "x"}, "timing": {}}\n',
            "all/reward of step 2 is 'x'",
        ),
        (b'{"step": 2, "split": "dev", "metrics": {}, "timing": {}}\n', "step 2, split 'dev'"),
        (b'{"step": -2, "split": "train", "metrics": {}, "timing": {}}\n', "step -2"),
        (b'{"step": 2, "split": "train", "metrics": {}}\n', "step 2 lacks one of"),
    ],
)
def test_damage_is_named_and_earlier_rows_stay_readable(tmp_path: Path, line: bytes, said: str) -> None:
    good: list[Row] = [{"step": 1, "split": "train", "metrics": {"all/reward": 1}, "timing": {}}]
    write(tmp_path, good)
    keep(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line)
    write(tmp_path, good)
    history = History.reading(tmp_path)
    with pytest.raises(DamagedRun, match=r"metrics\.jsonl") as raised:
        history.extend()
    assert said in str(raised.value)
    check(history, good)


def test_curves_are_whole_while_another_thread_reads_on(tmp_path: Path) -> None:
    rows: list[Row] = [
        {
            "step": step,
            "split": "train",
            "metrics": {f"s{step % 50}/reward": float(step), "all/reward": float(step)},
            "timing": {},
        }
        for step in range(1, 3001)
    ]
    write(tmp_path, rows)
    history = History.reading(tmp_path)
    reading = threading.Thread(target=history.extend)
    reading.start()
    seen = 0
    while reading.is_alive() or seen < 3000:
        curves = history.curves("train", ["all/reward"], 5000)
        seen = len(curves.steps)
        assert curves.mean[:, 0].tolist() == curves.steps.tolist() == list(range(1, seen + 1))
    reading.join()


def test_reading_on_can_be_done_a_slice_at_a_time(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"step": step, "split": "train", "metrics": {"all/reward": 1}, "timing": {}} for step in range(9)
    ]
    write(tmp_path, rows)
    history, slices = History.reading(tmp_path), 1
    while not history.extend(seconds=0):
        assert len(history.curves("train", NAMES, 99).steps) == slices
        slices += 1
    check(history, rows)


WRITER = """
import sys
from pathlib import Path
from vtriune.monitor.store import RunStore
with RunStore.create(Path(sys.argv[1]), recipe={}, total_steps=10**6, threads=1) as store:
    step = 0
    while True:
        step += 1
        store.log(step, "train", {f"source_{i}/reward": i / 7 for i in range(20_000)} | {"all/reward": float(step)})
        print(step, flush=True)
"""


def killed_while_it_writes(folder: Path, path: Path) -> int:
    """Kill a real training (signal 9) while `path` grows. Returns the last step that it said was stored."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        size = path.stat().st_size
        while path.stat().st_size == size:
            pass
        process.send_signal(signal.SIGKILL)
        return max([3, *map(int, process.stdout.read().split())])


@pytest.mark.parametrize("file", ["metrics.jsonl", FILE])
def test_a_training_killed_in_the_middle_of_a_write_opens_without_loss_of_earlier_steps(
    tmp_path: Path, file: str
) -> None:
    stored = killed_while_it_writes(tmp_path, tmp_path / file)
    steps = read(tmp_path).curves("train", ["all/reward"], 10**6).mean[:, 0].tolist()
    assert steps[:stored] == list(range(1, stored + 1))
    assert len(steps) <= stored + 1
    with RunStore.resume(tmp_path, step=2, threads=1) as store:
        store.log(3, "train", {"all/reward": 0.5})
    assert History.reading(tmp_path).curves("train", ["all/reward"], 9).mean[:, 0].tolist() == [1, 2, 0.5]
