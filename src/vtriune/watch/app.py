"""The dashboard's application: its page, the endpoints of runs (runs.py) and of rollouts (rollouts.py), errors as JSON.

Who may ask is in guard.py, the server as a process in server.py.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from vtriune.monitor.files import DamagedRun, valid_text
from vtriune.types import UserError
from vtriune.watch.guard import Guard
from vtriune.watch.replies import error
from vtriune.watch.rollouts import rollout_routes
from vtriune.watch.root import NotFound, Root
from vtriune.watch.runs import run_routes

STATIC = Path(__file__).parent / "static"


def create_app(path: Path, *, any_host: bool = False) -> FastAPI:
    """The application over the folder of runs `path`; `any_host` answers to names other than the loopback's.

    Raises:
        UserError: `path` is no folder.
    """
    root = Root.open(path)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.include_router(run_routes(root))
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
