"""Checkpoints: folders that appear whole or not at all. What goes into one is the engine's and the loop's business."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vtriune.types import UserError

STATE_FILE = "state.json"


def write_checkpoint(
    folder: Path, step: int, save: Callable[[Path], None], state: Mapping[str, Any], *, keep: int
) -> None:
    """Write `folder/step-000050`: `save` fills it, `state` goes beside it as JSON; then drop all but the last `keep`.

    A crash in the middle leaves a `.tmp` folder that the next call removes, and the earlier checkpoints untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:06d}"
    unfinished = folder / f".{final.name}.tmp"
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover)
    unfinished.mkdir()
    save(unfinished)
    (unfinished / STATE_FILE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    if final.exists():
        shutil.rmtree(final)
    unfinished.rename(final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE_FILE).is_file())


def read_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint's folder and state.

    Raises:
        UserError: there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: holds no checkpoint, so this run can't be resumed; start it again with --replace")
    state: dict[str, Any] = json.loads((found[-1] / STATE_FILE).read_text(encoding="utf-8"))
    return found[-1], state
