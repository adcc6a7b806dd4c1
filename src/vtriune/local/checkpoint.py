"""Checkpoints: folders that appear whole or not at all. What goes into one is the engine's and the loop's business."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtriune.types import UserError

STATE_FILE = "state.json"
UNFINISHED, REPLACED = ".tmp", ".old"
"""Ends of hidden folders: not yet, or no longer, a checkpoint; and one in whose place another is being put."""


def write_checkpoint(
    folder: Path, step: int, save: Callable[[Path], None], state: Mapping[str, Any], *, keep: int
) -> None:
    """Write `folder/step-000050`: `save` fills it, `state` goes beside it as JSON; then drop all but the last `keep`.

    It is on the disk, not only in the system's cache, before an older one goes. A crash in the middle leaves hidden
    folders that the next call clears up, and the earlier checkpoints untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clear_up(folder)
    final = folder / f"step-{step:06d}"
    unfinished = _hidden(final, UNFINISHED)
    unfinished.mkdir()
    save(unfinished)
    (unfinished / STATE_FILE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    for path in [*unfinished.rglob("*"), unfinished]:
        _flush(path)
    if final.exists():
        final.rename(_hidden(final, REPLACED))
    unfinished.rename(final)
    _flush(folder)
    for old in checkpoints(folder)[:-keep]:
        old.rename(_hidden(old, UNFINISHED))  # half deleted, it must not look like a checkpoint
    _clear_up(folder)


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first. It changes nothing: a running training may be writing there."""
    found = {path.name: path for path in folder.glob("step-*") if (path / STATE_FILE).is_file()}
    for replaced in folder.glob(f".*{REPLACED}"):
        found.setdefault(_final(replaced).name, replaced)
    return [found[name] for name in sorted(found)]


def read_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint's folder and state.

    Raises:
        UserError: there is none, or its state is damaged.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoint, so this run can't be resumed; start it again with --replace")
    file = found[-1] / STATE_FILE
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(state, dict) and isinstance(state.get("step"), int)):
            raise ValueError("it names no step")
    except ValueError as error:
        raise damaged(file, error) from error
    return found[-1], state


def damaged(file: Path, error: Exception) -> UserError:
    """The error of a checkpoint's file that can't be read."""
    reason = " ".join((str(error) or repr(error)).split())[:200]
    return UserError(
        f"{file}: damaged ({reason}); delete the folder {file.parent} to resume from the checkpoint before it, or "
        "start the run again with --replace"
    )


def _clear_up(folder: Path) -> None:
    """Finish or undo what a crash interrupted: a replaced checkpoint returns if the new one isn't there."""
    for replaced in folder.glob(f".*{REPLACED}"):
        if _final(replaced).exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(_final(replaced))
    for leftover in folder.glob(f".*{UNFINISHED}"):
        shutil.rmtree(leftover)


def _hidden(final: Path, suffix: str) -> Path:
    return final.with_name(f".{final.name}{suffix}")


def _final(replaced: Path) -> Path:
    return replaced.with_name(replaced.name[1 : -len(REPLACED)])


def _flush(path: Path) -> None:
    """Have the system write a file's contents, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
