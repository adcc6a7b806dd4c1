"""Reading run folders, finished, running or damaged: their rows, evaluations and how they stand.

The layout of a run folder, and the only writer of one, is in store.py. Nothing here changes a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast
from uuid import uuid4

import orjson
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vtriune.monitor.alerts import Alert, Alerts
from vtriune.monitor.files import DamagedRun, is_locked, read_rows, read_rows_backward
from vtriune.types import UserError

RowSplit = Literal["train", "eval"]
SPLITS: tuple[RowSplit, ...] = ("train", "eval")

_ALERT = TypeAdapter(Alert)


class MetricsRow(TypedDict):
    """A line of metrics.jsonl."""

    step: int
    split: RowSplit
    metrics: dict[str, float]
    not_finite: NotRequired[dict[str, str]]
    """Figures that were `nan`, `inf` or `-inf`, which JSON has no number for."""
    timing: dict[str, float]
    """Seconds and rates; `elapsed_s` is the time spent on the run so far, pauses between sessions left out."""


class RunState(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    STOPPED = "stopped"
    """Interrupted by its user, or ended before its last step."""
    FAILED = "failed"
    """Ended by an error, which run.json names."""
    FINISHED = "finished"
    KILLED = "killed"
    """Its process is gone without a word; resume it."""
    DAMAGED = "damaged"
    """Its files cannot be read."""


class Session(BaseModel):
    """One process that worked on a run."""

    model_config = ConfigDict(extra="forbid")
    started: datetime
    from_step: int
    versions_changed: dict[str, tuple[str | int | None, str | int | None]] = {}
    """What differs from versions.json: (then, now)."""


class RunFile(BaseModel):
    """run.json."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(default_factory=lambda: uuid4().hex[:12])
    """By which trackers know the run again when it is resumed; it never changes."""
    total_steps: int
    state: Literal["running", "stopped", "failed", "finished"] = "running"
    error: str = ""
    sessions: list[Session]


def holds_run(folder: Path) -> bool:
    """Whether `folder` holds a run, be it a damaged one."""
    return any(
        (folder / name).exists() for name in ("run.json", "metrics.jsonl", "recipe.yaml", "rollouts", "checkpoints")
    )


def read_metrics(folder: Path) -> Iterator[MetricsRow]:
    """All rows of a run, in order; a last one that was not written to its end is left out.

    Raises:
        DamagedRun: a file or a row cannot be read.
    """
    path = folder / "metrics.jsonl"
    return (metrics_row(path, row) for row in read_rows(path))


def latest_rows(folder: Path, split: RowSplit | None = None) -> Iterator[MetricsRow]:
    """The rows (of one split) from the last to the first, without reading more of the file than is asked for.

    Raises:
        DamagedRun: a file or a row cannot be read.
    """
    path = folder / "metrics.jsonl"
    return (metrics_row(path, row) for _, row in read_rows_backward(path) if split in (None, row.get("split")))


def read_alerts(folder: Path) -> list[Alert]:
    """The alerts of a run in the order in which they began to be told, those that ended with their `until`.

    Raises:
        DamagedRun: the file or a row cannot be read.
    """
    path = folder / "alerts.jsonl"
    if not path.exists():  # older runs have none
        return []
    alerts: dict[tuple[str, str, int], Alert] = {}
    for row in read_rows(path):
        try:
            alert = _ALERT.validate_python(row)
        except ValidationError as error:
            raise DamagedRun(f"{path}: the row of step {row.get('step')} is no alert: {error}") from error
        alerts[alert.source, alert.kind, alert.since] = alert
    return list(alerts.values())


def watched(folder: Path) -> Alerts:
    """The watcher of a run's alerts as its training left it after the last row.

    Raises:
        DamagedRun: a file or a row cannot be read.
    """
    alerts = Alerts()
    for row in read_metrics(folder):
        alerts.update(row["step"], row["split"], row["metrics"])
    return alerts


def rollout_file(folder: Path, split: RowSplit, step: int) -> Path:
    """Where the rollouts of a step are stored."""
    return folder / "rollouts" / f"{'step' if split == 'train' else 'eval'}-{step:06d}.parquet"


def rollout_files(folder: Path, split: RowSplit) -> dict[int, Path]:
    """The stored rollout files of a split by step, in order; links, which may lead out of the folder, are none."""
    prefix, suffix = rollout_file(folder, split, 0).name.split("000000")
    try:
        with os.scandir(folder / "rollouts") as entries:
            names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError:
        return {}
    numbers = (name.removeprefix(prefix).removesuffix(suffix) for name in names if name.startswith(prefix))
    steps = sorted(int(number) for number in numbers if number.isascii() and number.isdecimal())
    return {step: path for step in steps if (path := rollout_file(folder, split, step)).name in names}


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run, as plain values.

    Raises:
        DamagedRun: recipe.yaml is missing or broken.
    """
    path = folder / "recipe.yaml"
    try:
        recipe = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise DamagedRun(f"{path}: {error}") from error
    if not isinstance(recipe, dict):
        raise DamagedRun(f"{path}: not a mapping")
    return recipe


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a list of runs shows of one."""

    name: str
    state: RunState
    problem: str = ""
    """What damaged the folder, or the error that ended the run."""
    started: datetime | None = None
    step: int = 0
    total_steps: int = 0
    reward: float | None = None
    """Mean reward over all sources in the last training step."""
    minutes: float = 0.0

    @property
    def standing(self) -> str:
        """In a few words, for a message."""
        if self.state is RunState.DAMAGED:
            return self.problem
        return f"{self.state} at step {self.step} of {self.total_steps}"


def inspect(folder: Path, name: str | None = None) -> RunInfo:
    """How the run in `folder` stands; a folder that cannot be read is described as damaged."""
    name = name or folder.resolve().name
    try:
        run = read_run_file(folder)
        train, last = next(latest_rows(folder, "train"), None), next(latest_rows(folder), None)
    except (UserError, OSError) as error:
        return RunInfo(name, RunState.DAMAGED, str(error))
    state = RunState(run.state)
    if state is RunState.RUNNING and not is_locked(folder):
        state = RunState.KILLED
    return RunInfo(
        name=name,
        state=state,
        problem=run.error,
        started=run.sessions[0].started if run.sessions else None,
        step=train["step"] if train else 0,
        total_steps=run.total_steps,
        reward=train["metrics"].get("all/reward") if train else None,
        minutes=last["timing"].get("elapsed_s", 0.0) / 60 if last else 0.0,
    )


def find_runs(root: Path) -> list[Path]:
    """All run folders at or below `root`, sorted; nothing inside a run folder is looked at."""
    found = []
    for folder, names, _ in os.walk(root):
        if holds_run(Path(folder)):
            found.append(Path(folder))
            names.clear()
    return sorted(found)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DamagedRun if the file is missing or holds anything else."""
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise DamagedRun(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise DamagedRun(f"{path}: not a JSON object")
    return value


def check_run(folder: Path) -> None:
    """Raises UserError if `folder` holds no run."""
    if not holds_run(folder):
        raise UserError(f"{folder} holds no run; give a folder that vtriune train wrote, such as runs/demo")


def read_run_file(folder: Path) -> RunFile:
    """run.json. Raises DamagedRun if it is missing or broken, UserError if `folder` holds no run at all."""
    check_run(folder)
    try:
        return RunFile.model_validate(read_json(folder / "run.json"))
    except ValidationError as error:
        raise DamagedRun(f"{folder / 'run.json'}: {error}") from error


def metrics_row(path: Path, row: dict[str, Any]) -> MetricsRow:
    """A row of the file `path`, checked. Raises DamagedRun if it is none of figures."""
    kinds = {"step": int, "split": str, "metrics": dict, "timing": dict}
    if not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
        raise DamagedRun(f"{path}: the row of step {row.get('step')} lacks one of {', '.join(kinds)}")
    for figures in (row["metrics"], row["timing"]):
        if not {*map(type, figures.values())} <= {int, float}:
            name, value = next(one for one in figures.items() if type(one[1]) not in (int, float))
            raise DamagedRun(f"{path}: {name} of step {row['step']} is {value!r}, not a number")
    return cast("MetricsRow", row)
