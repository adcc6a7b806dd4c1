"""A run as a folder that anybody can read, and that a killed training leaves whole.

    recipe.yaml       the recipe as resolved
    versions.json     python, torch, transformers, ..., git commit, platform and threads of the first session
    run.json          how far the run is to go, its state, when it was started and resumed
    metrics.jsonl     a line for every training step and evaluation: {"step", "split", "metrics", "timing"}
    rollouts/         step-000012.parquet, eval-000012.parquet: every answer with its verdict (columns: rollouts.py)
    quarantine.jsonl  samples that were set aside during training, each with the reason
    skipped.jsonl     optimizer steps that were not taken, each with the ids of its samples and the reason
    alerts.jsonl      a line when an alert begins (`until` null) and one when it ends; `step` is when it was written
    summary.json      what a finished run reached
    history.bin       the figures of metrics.jsonl by column, for drawing; derived, may be deleted (history.py)

`step` is the number of training steps done: the first training step is row 1, an evaluation before training row 0.
All but `timing` (seconds, tokens/s) is equal in an uninterrupted run and a resumed one. Checkpoints are the engine's.

docs/run_folder.md tells every key and column, and how to read them with pandas and DuckDB.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import yaml

from vtriune.monitor.alerts import Alert
from vtriune.monitor.evaluation import Summary
from vtriune.monitor.files import DamagedRun, append_row, cut_rows, lock_folder, replacing, valid_text, write_json
from vtriune.monitor.history import History
from vtriune.monitor.rollouts import Decoding, write_rollouts
from vtriune.monitor.runs import (
    SPLITS,
    MetricsRow,
    RowSplit,
    RunFile,
    Session,
    holds_run,
    inspect,
    latest_rows,
    read_json,
    read_run_file,
    rollout_file,
    rollout_files,
)
from vtriune.monitor.versions import versions
from vtriune.types import JudgedGroup, Progress, UserError

ROW_FILES = ("metrics.jsonl", "quarantine.jsonl", "skipped.jsonl", "alerts.jsonl")
"""The files of JSON lines, each with a `step`."""

_log = logging.getLogger(__name__)


class RunStore:
    """Writes one run folder; made by `create` or `resume`, used as a context manager.

    The folder is locked against a second writer until the context ends or the process dies. Leaving the context
    records how the run ended: finished if `finish` was called, else stopped, or failed if an error ends it.
    """

    def __init__(self, folder: Path, run: RunFile, lock: BinaryIO) -> None:
        self.folder = folder
        self._run = run
        self._lock = lock
        last = next(latest_rows(folder), None)
        self._elapsed_before = last["timing"].get("elapsed_s", 0.0) if last else 0.0
        self._last_step = {split: next((row["step"] for row in latest_rows(folder, split)), -1) for split in SPLITS}
        self._history: History | None = None
        self._history_lags = False
        self._extend_history()
        self._since = time.monotonic()

    @classmethod
    def create(cls, folder: Path, *, recipe: Mapping[str, Any], total_steps: int, threads: int) -> Self:
        """Start a new run in `folder`; `recipe` as resolved, of plain values; `threads` as the engine uses.

        Raises:
            UserError: `folder` already holds a run.
        """
        check_vacant(folder)
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        with replacing(folder / "recipe.yaml") as file:
            file.write(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).encode())
        write_json(folder / "versions.json", versions(threads))
        for name in ROW_FILES:
            (folder / name).touch()
        return cls._start_session(folder, RunFile(total_steps=total_steps, sessions=[]), lock, step=0, changed={})

    @classmethod
    def resume(cls, folder: Path, *, step: int, threads: int, total_steps: int | None = None) -> Self:
        """Continue the run in `folder` from the checkpoint taken after training step `step`; later rows are dropped.

        `total_steps`, if given, is how long the run is from now on.

        Raises:
            UserError: `folder` holds no run, a damaged one, or one that another process is writing.
        """
        run = read_run_file(folder)
        run.total_steps = total_steps or run.total_steps
        lock = lock_folder(folder)
        for name in ("skipped.jsonl", "alerts.jsonl"):  # older runs have none
            (folder / name).touch()
        truncate_to(folder, step)
        then, now = read_json(folder / "versions.json"), versions(threads)
        changed = {key: (then.get(key), now.get(key)) for key in sorted(then | now) if then.get(key) != now.get(key)}
        if changed:
            text = ", ".join(f"{key} {a} -> {b}" for key, (a, b) in changed.items())
            _log.warning("%s: resumed where it may not repeat to the last bit: %s", folder, text)
        return cls._start_session(folder, run, lock, step=step, changed=changed)

    @classmethod
    def _start_session(cls, folder: Path, run: RunFile, lock: BinaryIO, *, step: int, changed: dict[str, Any]) -> Self:
        run.sessions.append(Session(started=datetime.now(UTC), from_step=step, versions_changed=changed))
        store = cls(folder, run, lock)
        store._record("running")
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Exception):
                self._record("failed", f"{type(error).__name__}: {error}")
            elif self._run.state != "finished":
                self._record("stopped")
        finally:
            if self._history:
                self._history.close()
            self._lock.close()

    @property
    def run_id(self) -> str:
        """By which others know the run again; it stays the same when the run is resumed."""
        return self._run.id

    @property
    def elapsed(self) -> float:
        """Seconds spent on this run so far, earlier sessions included as far as their last row."""
        return self._elapsed_before + time.monotonic() - self._since

    def log(
        self, step: int, split: RowSplit, metrics: Mapping[str, float], timing: Mapping[str, float] | None = None
    ) -> None:
        """Append a row of figures; `timing` is for all that is measured in seconds or per second.

        Raises:
            ValueError: a row out of order. There is one for each step and split; training steps count from 1.
        """
        if step <= self._last_step[split] or step < max(self._last_step.values()) or (split, step) == ("train", 0):
            raise ValueError(f"{split} row of step {step} after rows of steps {self._last_step}")
        values = {name: float(value) for name, value in metrics.items()}
        row: MetricsRow = {
            "step": step,
            "split": split,
            "metrics": {name: value for name, value in values.items() if math.isfinite(value)},
            "timing": {name: float(value) for name, value in (timing or {}).items()} | {"elapsed_s": self.elapsed},
        }
        if len(row["metrics"]) < len(values):
            row["not_finite"] = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
        append_row(self.folder / "metrics.jsonl", row)
        self._extend_history()
        self._last_step[split] = step

    def write_rollouts(self, step: int, groups: Sequence[JudgedGroup], progress: Progress) -> None:
        """Store the rollouts of a training step; `progress` is what their judge was given."""
        write_rollouts(rollout_file(self.folder, "train", step), step, progress, {"sampled": groups})

    def write_evaluation(
        self, step: int, sampled: Sequence[JudgedGroup], greedy: Sequence[JudgedGroup], progress: Progress
    ) -> None:
        """Store the rollouts of a held-out evaluation; `progress` is what their judge was given."""
        groups: dict[Decoding, Sequence[JudgedGroup]] = {"sampled": sampled, "greedy": greedy}
        write_rollouts(rollout_file(self.folder, "eval", step), step, progress, groups)

    def quarantine(self, step: int, row_id: str, reason: str) -> None:
        """Note that a row was set aside while step `step` was prepared; 0: when the data was read."""
        append_row(self.folder / "quarantine.jsonl", {"step": step, "sample": row_id, "reason": valid_text(reason)})

    def skip(self, step: int, samples: Sequence[str], reason: str) -> None:
        """Note that an optimizer step of training step `step` was not taken, and the samples it would have used."""
        append_row(
            self.folder / "skipped.jsonl", {"step": step, "samples": list(samples), "reason": valid_text(reason)}
        )

    def alert(self, step: int, alert: Alert) -> None:
        """Note at step `step` that an alert has begun, or ended."""
        row = {"step": step, **asdict(alert), "source": valid_text(alert.source)}
        append_row(self.folder / "alerts.jsonl", row)

    def finish(self, summary: Summary) -> None:
        """Store what the run reached and call it finished."""
        write_json(self.folder / "summary.json", summary)
        self._record("finished")

    def _extend_history(self) -> None:
        """Bring history.bin up to date. It is derived: that it can't be is said once, and ends no training."""
        try:
            self._history = self._history or History.writing(self.folder)
            self._history.extend()
        except (OSError, DamagedRun) as fault:
            if not self._history_lags:
                _log.warning("%s: history.bin is not kept up to date: %s", self.folder, fault)
            self._history_lags = True

    def _record(self, state: Literal["running", "stopped", "failed", "finished"], error: str = "") -> None:
        self._run.state, self._run.error = state, valid_text(error)
        write_json(self.folder / "run.json", self._run.model_dump(mode="json"))


def check_vacant(folder: Path) -> None:
    """Raise UserError if `folder` already holds a run."""
    if not holds_run(folder):
        return
    if not (folder / "run.json").exists() and not (folder / "versions.json").exists():
        raise UserError(
            f"{folder}: holds files like a run's (recipe.yaml, checkpoints, ...) but no run (run.json); choose another "
            "folder for the new one with --out, or move them away"
        )
    raise UserError(
        f"{folder} already holds a run ({inspect(folder).standing}): "
        "continue it with --resume, delete it with --replace, or choose another name for the new one"
    )


def truncate_to(folder: Path, step: int) -> None:
    """Drop what was written after training step `step`: rows, rollout files, quarantined samples, the summary, and
    what a killed writer left half done.

    Raises:
        DamagedRun: a file is missing or cannot be read.
    """
    (folder / "summary.json").unlink(missing_ok=True)
    for leftover in (*folder.glob(".*.tmp"), *folder.glob("rollouts/.*.tmp")):
        leftover.unlink()
    for split in SPLITS:
        for written, path in rollout_files(folder, split).items():
            if written > step:
                path.unlink()
    for name in ROW_FILES:
        cut_rows(folder / name, lambda row: row.get("step", math.inf) <= step)
