"""The dashboard's endpoints of runs and their figures: the list, the grid of a run, curves, alerts.

What they tell is computed in listing.py, grid.py and series.py; endpoints of rollouts are in rollouts.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from vtriune.monitor.files import DamagedRun, valid_text
from vtriune.monitor.metrics import ALL
from vtriune.monitor.runs import RowSplit, RunState, read_alerts
from vtriune.types import UserError
from vtriune.watch.grid import grid, told
from vtriune.watch.listing import Listing
from vtriune.watch.replies import json
from vtriune.watch.root import Root
from vtriune.watch.series import figures_of, series_of
from vtriune.watch.watched import WatchedRuns

CURVES = 500
"""Most curves of one reply to /api/series."""

_Name = Annotated[str, Query(max_length=1000)]
_Names = Annotated[list[str], Query(min_length=1, max_length=CURVES)]


def run_routes(root: Root) -> APIRouter:
    """The endpoints /api/runs, /api/grid, /api/figures, /api/series and /api/alerts over the runs of `root`.

    They are plain functions: they read files, so that FastAPI runs them in threads.
    """
    router = APIRouter()
    listing, watched = Listing(root), WatchedRuns()

    @router.get("/api/runs")
    def runs() -> Response:
        return json({"root": valid_text(str(root.path)), "runs": listing.rows()})

    @router.get("/api/grid")
    def grid_of_sources(run: _Name, points: Annotated[int, Query(ge=1, le=500)] = 60) -> Response:
        folder = root.run(run)
        row = listing.row(run, folder)
        if row["state"] == RunState.DAMAGED:
            raise DamagedRun(row["problem"])
        return Response(grid(watched.get(folder), row, points), media_type="application/json")

    @router.get("/api/figures")
    def figures(run: _Name, source: _Name = ALL) -> Response:
        watching = watched.get(root.run(run))
        with watching.lock:
            return json(figures_of(watching.history(), source))

    @router.get("/api/series")
    def series(
        run: _Names,
        source: _Names,
        figure: _Names,
        split: RowSplit = "train",
        points: Annotated[int, Query(ge=1, le=2000)] = 600,
    ) -> Response:
        if len(run) * len(source) * len(figure) > CURVES:
            raise UserError(f"series: more than {CURVES} curves; ask for fewer runs, sources or figures at a time")
        curves = [series_of(watched.get(root.run(one)), one, source, figure, split, points) for one in run]
        return json({"series": [curve for of_run in curves for curve in of_run]})

    @router.get("/api/alerts")
    def alerts(run: _Name) -> Response:
        return json({"alerts": [told(alert) for alert in read_alerts(root.run(run))]})

    return router
