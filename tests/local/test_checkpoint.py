"""Checkpoints that appear whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vtriune.local.checkpoint import checkpoints, find_checkpoint, read_latest, write_checkpoint
from vtriune.types import UserError


def write(folder: Path, step: int, keep: int = 2, best: int | None = None) -> None:
    def save(unfinished: Path) -> None:
        (unfinished / "weights").write_text(f"of step {step}")

    write_checkpoint(folder, step, save, {"data": {"seen": step}}, keep=keep, best=best)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_the_latest_checkpoint_comes_back_with_its_state(tmp_path: Path) -> None:
    for step in (0, 9, 10):
        write(tmp_path / "run" / "checkpoints", step, keep=3)
    found, state = read_latest(tmp_path / "run" / "checkpoints")
    assert (found / "weights").read_text() == "of step 10"
    assert state == {"step": 10, "best": None, "data": {"seen": 10}}


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        write(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == names(tmp_path) == ["step-000003", "step-000004"]
    write(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["step-000005"]


def test_the_best_one_is_kept_beside_the_last_ones_until_there_is_a_better_one(tmp_path: Path) -> None:
    for step, best in ((0, 0), (1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 5)):
        write(tmp_path, step, keep=2, best=best)
        if step == 4:
            assert names(tmp_path) == ["step-000001", "step-000003", "step-000004"]
    assert names(tmp_path) == ["step-000005", "step-000006"]
    write(tmp_path, 7, keep=1, best=5)
    assert names(tmp_path) == ["step-000005", "step-000007"]
    assert read_latest(tmp_path)[1]["best"] == 5


def test_a_best_one_that_was_deleted_is_none(tmp_path: Path) -> None:
    for step in range(3):
        write(tmp_path, step, best=1)
    shutil.rmtree(tmp_path / "step-000001")
    assert read_latest(tmp_path)[1]["best"] is None
    with pytest.raises(UserError, match="the best one was not kept"):
        find_checkpoint(tmp_path, best=True)


def test_a_checkpoint_is_found_by_its_step_as_the_best_or_as_the_newest(tmp_path: Path) -> None:
    for step in range(4):
        write(tmp_path, step, best=1)
    assert find_checkpoint(tmp_path).name == "step-000003"
    assert find_checkpoint(tmp_path, best=True).name == "step-000001"
    assert find_checkpoint(tmp_path, step=2).name == "step-000002"
    with pytest.raises(UserError, match="holds no step-000000; there are step-000001, step-000002, step-000003"):
        find_checkpoint(tmp_path, step=0)
    write(tmp_path, 4)
    with pytest.raises(UserError, match=r"the best one was not kept; train with checkpoint\.keep_best=true"):
        find_checkpoint(tmp_path, best=True)


def test_an_error_while_saving_is_raised_and_leaves_the_earlier_ones_as_they_were(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def save(unfinished: Path) -> None:
        (unfinished / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 2, save, {}, keep=1)
    assert names(tmp_path) == ["step-000001"]
    assert read_latest(tmp_path)[1]["step"] == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from vtriune.local.checkpoint import write_checkpoint

def save(unfinished):
    (unfinished / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

write_checkpoint(Path(sys.argv[1]), 2, save, {}, keep=1)
"""


def test_a_kill_while_saving_leaves_the_earlier_ones_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    write(tmp_path, 1)
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # what was half written is still there
    assert read_latest(tmp_path)[1]["step"] == 1
    write(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    assert (tmp_path / "step-000002" / "weights").read_text() == "of step 2"


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "step-000003" / "weights").write_text("old")
    write(tmp_path, 3)
    assert (tmp_path / "step-000003" / "weights").read_text() == "of step 3"


KILLED_BETWEEN_THE_RENAMES = """
import os, signal, sys
from pathlib import Path
from vtriune.local.checkpoint import write_checkpoint

def rename(path, target, original=Path.rename):
    original(path, target)
    os.kill(os.getpid(), signal.SIGKILL)

Path.rename = rename
write_checkpoint(Path(sys.argv[1]), 3, lambda folder: (folder / "weights").write_text("new"), {}, keep=1)
"""


def test_a_kill_while_replacing_leaves_the_one_that_was_to_be_replaced(tmp_path: Path) -> None:
    write(tmp_path, 3)
    process = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_THE_RENAMES, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "step-000003").exists()
    found, state = read_latest(tmp_path)
    assert (found / "weights").read_text() == "of step 3"
    assert state["step"] == 3
    write(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


def test_everything_is_on_the_disk_before_the_new_name_appears_and_the_name_before_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, keep=1)
    events: list[tuple[set[str], str]] = []
    real = os.fsync

    def noting(descriptor: int) -> None:
        events.append(({*names(tmp_path)}, Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    write(tmp_path, 2, keep=1)
    *contents, last = events
    assert {name for _, name in contents} == {"weights", "state.json", ".step-000002.tmp"}
    assert all(present == {"step-000001"} for present, _ in contents)
    assert last == ({"step-000001", "step-000002"}, tmp_path.name)
    assert names(tmp_path) == ["step-000002"]


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b'{"step": 2, "da', b"[1]", b"{}", b'{"step": null}', b"\xff"])
def test_a_damaged_state_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    file = tmp_path / "step-000002" / "state.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}: damaged \(.+\); delete the folder {file.parent} to resume from the"):
        read_latest(tmp_path)
    shutil.rmtree(file.parent)
    assert read_latest(tmp_path)[1]["step"] == 1


def test_a_folder_without_a_state_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "step-000002").mkdir()
    assert names(tmp_path) == ["step-000001"]


def test_resuming_without_any_checkpoint_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no checkpoint, so this run can't be resumed; start it again"):
            read_latest(folder)
