"""The dashboard's application: its page, what of it is static, and the endpoints of runs.

The endpoints of rollouts are in rollouts.py; who may ask is in guard.py, the server as a process in server.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from vtriune.monitor.files import DamagedRun, valid_text
from vtriune.monitor.metrics import ALL
from vtriune.monitor.runs import RowSplit, RunState, read_alerts
from vtriune.types import UserError
from vtriune.watch.grid import grid, told
from vtriune.watch.guard import Guard
from vtriune.watch.listing import Listing
from vtriune.watch.replies import error, json
from vtriune.watch.rollouts import rollout_routes
from vtriune.watch.root import NotFound, Root
from vtriune.watch.series import figures_of, series_of
from vtriune.watch.watched import WatchedRuns

STATIC = Path(__file__).parent / "static"

CURVES = 500
"""Most curves of one reply to /api/series."""

Name = Annotated[str, Query(max_length=1000)]
Names = Annotated[list[str], Query(min_length=1, max_length=CURVES)]


def create_app(path: Path, *, any_host: bool = False) -> FastAPI:
    """The application over the folder of runs `path`; `any_host` answers to names other than the loopback's.

    Endpoints are plain functions: they read files, so that FastAPI runs them in threads.

    Raises:
        UserError: `path` is no folder.
    """
    root = Root.open(path)
    listing, watched = Listing(root), WatchedRuns()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/runs")
    def runs() -> Response:
        return json({"root": valid_text(str(root.path)), "runs": listing.rows()})

    def standing(name: str) -> dict[str, Any]:
        """How a run stands that is in order."""
        row = listing.row(name, root.run(name))
        if row["state"] == RunState.DAMAGED:
            raise DamagedRun(row["problem"])
        return row

    @app.get("/api/grid")
    def grid_of_sources(run: Name, points: Annotated[int, Query(ge=1, le=500)] = 60) -> Response:
        row = standing(run)
        return Response(grid(watched.get(root.run(run)), row, points), media_type="application/json")

    @app.get("/api/figures")
    def figures(run: Name, source: Name = ALL) -> Response:
        watching = watched.get(root.run(run))
        with watching.lock:
            found = figures_of(watching.history(), source)
        if source != ALL and not any(found.values()):
            raise NotFound(f'run "{run}" has no source "{source}"')
        return json(found)

    @app.get("/api/series")
    def series(
        run: Names,
        source: Names,
        figure: Names,
        split: RowSplit = "train",
        points: Annotated[int, Query(ge=1, le=2000)] = 600,
    ) -> Response:
        if len(run) * len(source) * len(figure) > CURVES:
            raise UserError(f"series: more than {CURVES} curves; ask for fewer runs, sources or figures at a time")
        curves = [series_of(watched.get(root.run(one)), one, source, figure, split, points) for one in run]
        return json({"series": [curve for of_run in curves for curve in of_run]})

    @app.get("/api/alerts")
    def alerts(run: Name) -> Response:
        return json({"alerts": [told(alert) for alert in read_alerts(root.run(run))]})

    app.include_router(rollout_routes(root))
    app.mount("/static", StaticFiles(directory=STATIC))
    _answer_errors(app)
    app.add_middleware(Guard, any_host=any_host)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    def user_error(request: Request, fault: UserError) -> Response:
        status = 404 if isinstance(fault, NotFound) else 409 if isinstance(fault, DamagedRun) else 422
        return error(status, valid_text(str(fault)))

    @app.exception_handler(OSError)
    def file_error(request: Request, fault: OSError) -> Response:
        return error(409, valid_text(f"{fault.filename}: {fault.strerror}"))

    @app.exception_handler(RequestValidationError)
    def bad_parameter(request: Request, fault: RequestValidationError) -> Response:
        first = fault.errors()[0]
        return error(422, valid_text(f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, fault: HTTPException) -> Response:
        reply = error(fault.status_code, str(fault.detail))
        reply.headers.update(fault.headers or {})
        return reply
