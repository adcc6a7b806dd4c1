"""The list of runs, and how each stands. Their figures are in grid.py."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from vtriune.monitor.files import DamagedRun, is_locked, valid_text
from vtriune.monitor.runs import RunInfo, RunState, inspect, read_alerts
from vtriune.types import UserError
from vtriune.watch.root import Root

Stamp = tuple[int, int, int] | None
"""Of a file: inode, bytes and time of change; None where there is none."""


def stamp(path: Path) -> Stamp:
    """What tells whether `path` is still the file that was read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class Listing:
    """How the runs of a root stand; a run's files are read again only when they have changed."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[object, dict[str, Any]]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """A row for every run, the latest first."""
        found = self._root.runs()
        rows = [self.row(name, folder) for name, folder in found]
        with self._lock:
            for gone in self._known.keys() - {folder for _, folder in found}:
                del self._known[gone]
        return sorted(rows, key=lambda row: (row["started"] or "", row["name"]), reverse=True)

    def row(self, name: str, folder: Path) -> dict[str, Any]:
        """How one run stands; a folder that cannot be read is described as damaged."""
        try:
            seen = [stamp(folder / file) for file in ("run.json", "metrics.jsonl", "alerts.jsonl")], is_locked(folder)
            with self._lock:
                known = self._known.get(folder)
            if known and known[0] == seen:
                return known[1]
            self._root.run(name)  # raises where a file leads out of the root
            row = _row(inspect(folder, name), *_open_alerts(folder))
        except (OSError, UserError) as fault:
            return _row(RunInfo(name, RunState.DAMAGED, str(fault)))
        with self._lock:
            self._known[folder] = seen, row
        return row


def _open_alerts(folder: Path) -> tuple[int, str]:
    """How many alerts last, and why that can't be told. Figures are worth being looked at without it."""
    try:
        return sum(alert.until is None for alert in read_alerts(folder)), ""
    except DamagedRun as fault:
        return 0, str(fault)


def _row(info: RunInfo, alerts: int = 0, problem: str = "") -> dict[str, Any]:
    return {
        "name": info.name,
        "state": info.state,
        "problem": valid_text(info.problem or problem),
        "started": info.started.isoformat() if info.started else None,
        "step": info.step,
        "total_steps": info.total_steps,
        "reward": info.reward,
        "minutes": info.minutes,
        "alerts": alerts,
    }
