"""All sources of a run at a glance: figures as small curves, alerts, held-out scores before and after.

Single curves are in series.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vtriune.monitor.alerts import Alert
from vtriune.monitor.evaluation import (
    Estimate,
    Evaluation,
    gain,
    mean_over_tasks,
    on_shared_prompts,
    sources_scored_in,
)
from vtriune.monitor.files import DamagedRun, valid_text
from vtriune.monitor.history import History
from vtriune.monitor.metrics import ALL, TASK
from vtriune.monitor.rollouts import read_columns, read_evaluation
from vtriune.monitor.runs import latest_rows, read_alerts, rollout_files
from vtriune.watch.listing import stamp
from vtriune.watch.replies import encode
from vtriune.watch.series import SHOWN, TIMING, sources_in
from vtriune.watch.watched import Watched

T = TypeVar("T")

LOOKED_INTO = 50
"""Rollout files, the newest, that are searched for the tasks of sources that no evaluation names."""


def grid(run: Watched, row: Mapping[str, Any], points: int) -> bytes:
    """The reply to /api/grid, as JSON; `row` says how the run stands.

    Raises:
        DamagedRun: a file of the run can't be read.
    """
    with run.lock:
        history = run.history()
        size = (run.folder / "metrics.jsonl").stat().st_size if run.is_reading else history.covered
        files = ("metrics.jsonl", "alerts.jsonl", "quarantine.jsonl", "skipped.jsonl", "rollouts")
        read = {"bytes": history.covered, "of": size}
        state = read, dict(row), [stamp(run.folder / name) for name in files]
        return run.once(
            ("grid", points),
            state,
            lambda: encode({"run": row, "version": _digest(state), "read": read} | _grid(run, history, points)),
        )


def _digest(state: object) -> str:
    return hashlib.blake2b(repr(state).encode(), digest_size=8).hexdigest()


def _grid(run: Watched, history: History, points: int) -> dict[str, Any]:
    folder, sources, problems = run.folder, sources_in(history), list[str]()

    def readable(read: Callable[[], T], otherwise: T) -> T:
        """What is told beside the figures: damage to it is named, and doesn't hide them."""
        try:
            return read()
        except DamagedRun as fault:
            problems.append(valid_text(str(fault)))
            return otherwise

    alerts = readable(lambda: read_alerts(folder), list[Alert]())
    compared = readable(lambda: _evaluation(run), None)
    tasks = {one["source"]: one["task"] for one in compared["rows"]} if compared else {}
    tasks |= readable(lambda: _tasks(run, set(sources) - tasks.keys()), dict[str, str]())
    names, known = [ALL, *sorted(sources, key=lambda source: (tasks.get(source, ""), source))], {*sources, ALL}
    columns = set(history.names("train"))
    shown = [figure for figure in SHOWN if any(f"{source}/{figure}" in columns for source in names)]
    told_of: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for alert in alerts:
        told_of[alert.source if alert.source in known else ALL].append(told(alert))
    return {
        "figures": shown,
        "sources": [
            {"source": source, "task": tasks.get(source, ""), "alerts": told_of[source], "cells": cells}
            for source, cells in zip(names, _cells(history, names, shown, points), strict=True)
        ],
        "tasks": sorted({name.rpartition("/")[0] for name in columns if name.startswith(TASK)}),
        "evaluation": compared,
        "step_figures": _step_figures(folder, sources),
        "quarantined": _lines(folder / "quarantine.jsonl"),
        "skipped": _lines(folder / "skipped.jsonl"),
        "problems": problems,
    }


def told(alert: Alert) -> dict[str, Any]:
    """An alert as the API has it."""
    return {
        "step": alert.since,
        "until": alert.until,
        "source": alert.source,
        "kind": alert.kind,
        "message": alert.message,
    }


def _cells(history: History, sources: Sequence[str], figures: Sequence[str], points: int) -> Iterable[dict[str, Any]]:
    """For every source its figures as small curves."""
    known = set(history.names("train"))
    names = [f"{source}/{figure}" for source in sources for figure in figures]
    names = [name for name in names if name in known]
    curves = history.curves("train", names, points)
    means = np.ascontiguousarray(curves.mean.T.astype(np.float32))
    places = {name: place for place, name in enumerate(names)}
    for source in sources:
        here = {figure: places[f"{source}/{figure}"] for figure in figures if f"{source}/{figure}" in places}
        yield {
            figure: {"first": curves.first[place], "last": curves.last[place], "points": means[place]}
            for figure, place in here.items()
        }


def _evaluation(run: Watched) -> dict[str, Any] | None:
    """The first and the last stored evaluation compared; None while there are no two."""
    stored = list(rollout_files(run.folder, "eval").items())
    if len(stored) < 2:
        return None
    first, last = stored[0], stored[-1]
    return run.once("evaluation", [stamp(path) for _, path in (first, last)], lambda: _compared(first, last))


def _compared(first: tuple[int, Path], last: tuple[int, Path]) -> dict[str, Any]:
    """Held-out scores of every source before and after, on the prompts scored both times, and their mean over tasks."""
    before, after = on_shared_prompts(read_evaluation(first[1]), read_evaluation(last[1]))
    rows = [_score(before, after, source) for source in sources_scored_in(before, after)]
    mean: dict[str, Any] | None = None
    if rows:
        mean = {"source": ALL, "task": "", "n": sum(row["n"] for row in rows)}
        for key in ("before", "after", "gain", "greedy_before", "greedy_after"):
            value, error = mean_over_tasks((row["task"], Estimate(row[key], row.get(f"{key}_se"))) for row in rows)
            mean[key] = value
            if f"{key}_se" in rows[0]:
                mean[f"{key}_se"] = error
    return {"first_step": first[0], "last_step": last[0], "rows": rows, "mean": mean}


def _score(before: Evaluation, after: Evaluation, source: str) -> dict[str, Any]:
    a, b = before.sampled[source], after.sampled[source]
    gained = gain(a, b) or Estimate(b.estimate.value - a.estimate.value, None)
    return {
        "source": source,
        "task": a.task,
        "n": len(b.by_prompt),
        "before": a.estimate.value,
        "before_se": a.estimate.standard_error,
        "after": b.estimate.value,
        "after_se": b.estimate.standard_error,
        "gain": gained.value,
        "gain_se": gained.standard_error,
        "greedy_before": before.greedy[source].estimate.value,
        "greedy_after": after.greedy[source].estimate.value,
    }


def _tasks(run: Watched, sources: Set[str]) -> dict[str, str]:
    """The tasks of sources, as in the rollouts: the newest files are looked into until all are known."""
    if not sources <= run.tasks.keys():
        for path in list(rollout_files(run.folder, "train").values())[: -LOOKED_INTO - 1 : -1]:
            if path not in run.looked_into:
                run.looked_into.add(path)
                run.tasks |= _tasks_in(path)
                if sources <= run.tasks.keys():
                    break
    return {source: run.tasks[source] for source in sources & run.tasks.keys()}


def _tasks_in(path: Path) -> dict[str, str]:
    table = read_columns(path, ["source", "task"])
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _step_figures(folder: Path, sources: Sequence[str]) -> dict[str, float]:
    """The figures of the last step that no source has, but for those of single layers, which are many; and timing."""
    last = next(latest_rows(folder, "train"), None)
    if last is None:
        return {}
    split = {name: name.rpartition("/") for name in last["metrics"] if not name.startswith((TASK, "layer_"))}
    of_sources = {figure for owner, _, figure in split.values() if owner in sources}
    figures = {
        (figure if owner == ALL else name): last["metrics"][name]
        for name, (owner, _, figure) in split.items()
        if owner not in sources and not (owner == ALL and figure in of_sources)
    }
    return figures | {f"{TIMING}{name}": value for name, value in last["timing"].items()}


def _lines(path: Path) -> int:
    """Lines of a file that were written to their end; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
