"""Checkpoints: folders that appear whole or not at all. What goes into one is the engine's and the loop's business."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtriune.types import UserError

STATE_FILE, OPTIMIZER_FILE = "state.json", "optimizer.pt"
"""What goes beside a model."""
UNFINISHED, REPLACED = ".tmp", ".old"
"""Ends of hidden folders: not yet, or no longer, a checkpoint; and one in whose place another is being put."""


def write_checkpoint(
    folder: Path,
    step: int,
    save: Callable[[Path], None],
    state: Mapping[str, Any],
    *,
    keep: int,
    best: int | None = None,
) -> None:
    """Write `folder/step-000050`: `save` fills it, `state` goes beside it as JSON; then drop all but the last `keep`
    and that of step `best`.

    It is on the disk, not only in the system's cache, before an older one goes. A crash in the middle leaves hidden
    folders that the next call clears up, and the earlier checkpoints untouched. Which one is best is written into each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clear_up(folder)
    final = _folder(folder, step)
    unfinished = _hidden(final, UNFINISHED)
    unfinished.mkdir()
    save(unfinished)
    (unfinished / STATE_FILE).write_text(json.dumps({"step": step, "best": best, **state}), encoding="utf-8")
    for path in [*unfinished.rglob("*"), unfinished]:
        _flush(path)
    if final.exists():
        final.rename(_hidden(final, REPLACED))
    unfinished.rename(final)
    _flush(folder)
    for old in checkpoints(folder)[:-keep]:
        if best is None or old != _folder(folder, best):
            old.rename(_hidden(old, UNFINISHED))  # half deleted, it must not look like a checkpoint
    _clear_up(folder)


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first. It changes nothing: a running training may be writing there."""
    found = {path.name: path for path in folder.glob("step-*") if (path / STATE_FILE).is_file()}
    for replaced in folder.glob(f".*{REPLACED}"):
        found.setdefault(_final(replaced).name, replaced)
    return [found[name] for name in sorted(found)]


def read_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint's folder and state, whose `best` is None if that checkpoint is gone.

    Raises:
        UserError: there is none, or its state is damaged.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoint, so this run can't be resumed; start it again with --replace")
    state = _state(found[-1])
    if state.get("best") is not None and _folder(folder, state["best"]).name not in map(_shown, found):
        state["best"] = None
    return found[-1], state


def find_checkpoint(folder: Path, *, step: int | None = None, best: bool = False) -> Path:
    """The checkpoint of a step, the best one, or else the newest.

    Raises:
        UserError: there is no such one; it names those that there are.
    """
    newest, state = read_latest(folder)
    if best:
        step = state.get("best")
        if step is None:
            raise UserError(
                f"{folder}: the best one was not kept; train with checkpoint.keep_best=true, or give a step"
            )
    if step is None:
        return newest
    found = {_shown(path): path for path in checkpoints(folder)}
    wanted = _folder(folder, step).name
    if wanted not in found:
        raise UserError(f"{folder}: holds no {wanted}; there are {', '.join(found)}")
    return found[wanted]


def _state(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / STATE_FILE
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(state, dict) and isinstance(state.get("step"), int)):
            raise ValueError("it names no step")
    except ValueError as error:
        raise damaged(file, error) from error
    return state


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


def _folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _hidden(final: Path, suffix: str) -> Path:
    return final.with_name(f".{final.name}{suffix}")


def _final(replaced: Path) -> Path:
    return replaced.with_name(replaced.name[1 : -len(REPLACED)])


def _shown(checkpoint: Path) -> str:
    return _final(checkpoint).name if checkpoint.name.endswith(REPLACED) else checkpoint.name


def _flush(path: Path) -> None:
    """Have the system write a file's contents, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
