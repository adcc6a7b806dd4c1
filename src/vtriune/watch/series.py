"""Curves of figures over steps, as the page asks for them. Curves in buckets are computed by monitor/history.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vtriune.monitor.history import Curves, History
from vtriune.monitor.metrics import ALL, TASK
from vtriune.monitor.runs import SPLITS, RowSplit
from vtriune.watch.root import NotFound
from vtriune.watch.watched import Watched

SHOWN = (
    "reward",
    "accuracy",
    "correct",
    "format",
    "zero_spread",
    "truncated",
    "length",
    "length_incorrect",
    "entropy",
    "reflection",
    "iou_50",
    "mean_iou",
    "unscorable",
    "failed",
)
"""Figures of the grid, and those that come first elsewhere."""

TIMING = "timing/"
"""Begins the name of a figure in seconds or per second; these belong to the step, so to the source `all`."""


def sources_in(history: History) -> list[str]:
    """The data sources that the run has figures of, trained on or held out, sorted."""
    train, held_out = (history.names(split) for split in SPLITS)
    found = {name.removesuffix("/rollouts") for name in train if name.endswith("/rollouts")}
    found |= {name.removesuffix("/prompts") for name in held_out if name.endswith("/prompts")}
    return sorted(name for name in found if name != ALL and not name.startswith(TASK))


def figures_of(history: History, source: str) -> dict[RowSplit, list[str]]:
    """The figures of a source, of `all` or of `task:<task>`, by split. To `all` belong, under their whole names, those
    that no source has: norms of layers, timing.

    Raises:
        NotFound: there is no such source.
    """
    if source != ALL:
        own = {split: _in_order(_own(history.names(split), source)) for split in SPLITS}
        if not any(own.values()):
            raise NotFound(f'no source "{source[:200]}" in this run: /api/grid lists those that there are')
        return own
    sources = {*sources_in(history), ALL}
    found: dict[RowSplit, list[str]] = {}
    for split in SPLITS:
        names = history.names(split)
        of_step = [name for name in names if "/" in name and not _belongs(name, sources)]
        timing = [f"{TIMING}{name}" for name in names if "/" not in name]
        found[split] = [*_in_order(_own(names, ALL)), *sorted(of_step), *sorted(timing)]
    return found


def column(source: str, figure: str) -> str:
    """The name in the history of a figure as `figures_of` calls it."""
    if source == ALL and figure.startswith(TIMING):
        return figure.removeprefix(TIMING)
    return figure if source == ALL and "/" in figure else f"{source}/{figure}"


def series_of(
    run: Watched, name: str, sources: Sequence[str], figures: Sequence[str], split: RowSplit, points: int
) -> list[dict[str, Any]]:
    """The curves of figures of sources of the run `name`.

    Raises:
        NotFound: the run has no such source.
        DamagedRun: its figures can't be read.
    """
    with run.lock:
        history = run.history()
        return [one for source in sources for one in _series(run, history, name, source, figures, split, points)]


def _series(
    run: Watched, history: History, name: str, source: str, figures: Sequence[str], split: RowSplit, points: int
) -> Iterable[dict[str, Any]]:
    known = figures_of(history, source)
    # A page asks for one figure of a source after the other: to read all of them is hardly more work than one.
    curves: Curves = run.once(
        ("curves", source, split, points),
        history.covered,
        lambda: history.curves(split, [column(source, figure) for figure in known[split]], points),
    )
    for figure in figures:
        place = known[split].index(figure) if figure in known[split] else None
        yield {
            "run": name,
            "source": source,
            "figure": figure,
            "split": split,
            "steps": [] if place is None else curves.steps,
            # As float32, in which the figures are kept: half as long to write.
            "mean": [] if place is None else curves.mean[:, place].astype(np.float32),
            "low": [] if place is None else curves.low[:, place].copy(),
            "high": [] if place is None else curves.high[:, place].copy(),
        }


def _own(names: Iterable[str], source: str) -> list[str]:
    return [figure for owner, _, figure in (name.rpartition("/") for name in names) if owner == source]


def _belongs(name: str, sources: set[str]) -> bool:
    owner = name.rpartition("/")[0]
    return owner in sources or owner.startswith(TASK)


def _in_order(figures: Iterable[str]) -> list[str]:
    rank = {figure: place for place, figure in enumerate(SHOWN)}
    return sorted(figures, key=lambda figure: (rank.get(figure, len(SHOWN)), figure))
