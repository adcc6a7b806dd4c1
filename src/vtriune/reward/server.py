"""The reward server: verifiers behind HTTP, for many clients and any trainer. `vtriune serve` runs it.

The event loop only reads, routes and answers; judging is the worker pool's. Who may ask is `guard.py`'s, what requests
look like `api.py`'s and `released.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import math
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, cast

import orjson
import uvicorn
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from vtriune.reward import released
from vtriune.reward.api import (
    ItemIn,
    JudgeReply,
    JudgeRequest,
    Problem,
    StreamedVerdict,
    explain,
    reply,
    verdict_fields,
)
from vtriune.reward.blocking import OnVerdict
from vtriune.reward.guard import Guard
from vtriune.reward.judge import JudgeItem
from vtriune.reward.pool import AsyncJudgePool
from vtriune.reward.service_metrics import ServiceMetrics
from vtriune.types import Preset, Status, UserError, Verdict
from vtriune.verifiers import describe, registry

LOOPBACK = ("127.0.0.1", "localhost", "::1")

REMEMBERED = 16384
"""Verdicts kept for clients that lost the connection and ask again."""

NDJSON = "application/x-ndjson"

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than a step of training between two requests often takes."""

_REQUEST = TypeAdapter(JudgeRequest)
_PAYLOAD = TypeAdapter(released.Payload)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": why}
    for status, why in {
        401: "A token is wanted.",
        413: "The body is too large.",
        421: "The request is addressed to another host.",
        422: "The request makes no sense, and why.",
        429: "Too much is waiting; Retry-After says in how many seconds to ask again.",
        503: "The server starts or is about to end, or could not judge.",
    }.items()
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is started with."""

    host: str = "127.0.0.1"
    port: int = 8192
    max_body: int = 32 * 2**20
    """Bytes of a request's body."""
    queue: int = 16384
    """Answers that may wait; more are refused with 429."""
    deadline: float = 120.0
    """Seconds for a request; what has no verdict by then is `failed`."""
    grace: float = 30.0
    """Seconds for what is under way when the server is told to end."""
    token: str = ""
    insecure: bool = False
    """Serve another address than the loopback without a token."""
    judge_preset: Preset = "official_code"
    """How `POST /judge` judges."""
    silent_zeros: bool = False
    """Have `POST /judge` answer errors as the released server does: 200, and a reward of 0."""

    def check(self) -> None:
        """Raises UserError: strangers could ask this server."""
        if self.host not in LOOPBACK and not self.token and not self.insecure:
            raise UserError(
                f"--host {self.host}: others could ask this server; give it a --token-file, "
                "or --insecure if the network keeps strangers out"
            )


class Service:
    """Items in, verdicts out: limits, deadline and memory of a server around its pool."""

    def __init__(self, pool: AsyncJudgePool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.metrics = ServiceMetrics(pool)
        self.draining = False
        self._known: OrderedDict[tuple[str, int], asyncio.Future[Verdict]] = OrderedDict()

    def is_full(self, count: int) -> bool:
        """Would `count` more answers be too many?"""
        return self.pool.depth > 0 and self.pool.depth + count > self.settings.queue

    async def judge(
        self,
        items: Sequence[JudgeItem],
        names: Sequence[str] = (),
        on_verdict: OnVerdict | None = None,
    ) -> list[Verdict]:
        """Verdicts in order, by the deadline. An item with the name and content of an earlier one, which a client sends
        that has lost the connection, is not judged again.
        """
        futures: list[asyncio.Future[Verdict]] = []
        new: list[int] = []
        loop = asyncio.get_running_loop()
        for position, item in enumerate(items):
            known, key = None, None
            if names:
                content = item.response, repr(item.spec), item.progress, item.image_sizes, item.response_tokens
                key = names[position], hash(content)
                known = self._known.get(key)
                if known is not None:
                    self._known.move_to_end(key)
            future = known or loop.create_future()
            if known is None:
                new.append(position)
                if key:
                    self._remember(key, future)
            futures.append(future)
            if on_verdict:
                future.add_done_callback(functools.partial(_pass_on, on_verdict, position))

        missing = f"no verdict within {self.settings.deadline:g} s"

        def settle(position: int, verdict: Verdict) -> None:
            future = futures[new[position]]
            if not future.done():
                future.set_result(verdict)
                self.metrics.count(items[new[position]], verdict)

        try:
            async with asyncio.timeout(self.settings.deadline):
                await self.pool.judge([items[position] for position in new], settle)
                return [await asyncio.shield(future) for future in futures]
        except (TimeoutError, RuntimeError) as error:
            missing = str(error) or missing
            return [future.result() if future.done() else Verdict(Status.FAILED, reason=missing) for future in futures]
        except asyncio.CancelledError:
            missing = "whoever asked for it has gone"
            raise
        finally:
            for position, _ in enumerate(new):
                settle(position, Verdict(Status.FAILED, reason=missing))

    def _remember(self, key: tuple[str, int], future: asyncio.Future[Verdict]) -> None:
        self._known[key] = future
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

        def forget_failures(done: asyncio.Future[Verdict]) -> None:
            if done.cancelled() or done.result().status is Status.FAILED:
                self._known.pop(key, None)

        future.add_done_callback(forget_failures)


def create_app(service: Service) -> ASGIApp:
    """The application around a service whose pool is started and closed with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.pool.start()
        yield
        await service.pool.close()

    app = FastAPI(
        title="V-Triune reward server",
        version=importlib.metadata.version("vtriune"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={status: _PROBLEMS[status] for status in (401, 421, 503)},
    )
    _add_judging(app, service)
    # Described by FastAPI, served without it: to look for dependencies that they don't have is a third of a request.
    app.router.routes[:0] = [
        Route(one.path, one.endpoint, methods=["POST"]) for one in app.routes if isinstance(one, APIRoute)
    ]
    _add_information(app, service)

    def openapi() -> dict[str, Any]:
        """The description of the API, with the types of the bodies that are read by hand."""
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            read = [(one, "validation") for one in (JudgeRequest, released.Payload)]
            written = [(one, "serialization") for one in (JudgeReply, StreamedVerdict, released.Answer)]
            models = read + written
            _, types = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
            schema["components"]["schemas"] |= types["$defs"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    async def error_500(request: Request, error: Exception) -> Response:
        logging.getLogger("vtriune.serve").error("%s failed", ascii(request.url.path), exc_info=error)
        return problem(500, f"a fault of the server's own: {type(error).__name__}")

    app.add_exception_handler(Exception, error_500)
    app.add_exception_handler(ClientDisconnect, lambda request, error: problem(400, "the connection was lost"))
    return Guard(
        app,
        service.settings.max_body,
        service.settings.token,
        service.settings.host in LOOPBACK,
        lambda: service.draining,
    )


def _add_judging(app: FastAPI, service: Service) -> None:
    """The endpoints that judge."""
    settings = service.settings
    seconds = {path: service.metrics.timer(path) for path in ("/v1/judge", "/v1/judge/stream", "/judge")}

    async def read_items(request: Request) -> list[ItemIn] | Response:
        try:
            asked = _REQUEST.validate_json(await request.body()).items
        except ValidationError as error:
            return problem(422, explain(error))
        return full() if service.is_full(len(asked)) else asked

    @app.post("/v1/judge", **_documented(JudgeRequest, JudgeReply, "Judge a batch; verdicts in order."))
    async def judge_batch(request: Request) -> Response:
        asked = await read_items(request)
        if isinstance(asked, Response):
            return asked
        began = time.perf_counter()
        names = [one.id for one in asked]
        verdicts = await service.judge([one.item() for one in asked], names)
        seconds["/v1/judge"](time.perf_counter() - began)
        return Response(reply(zip(names, verdicts, strict=True)), media_type="application/json")

    @app.post(
        "/v1/judge/stream",
        **_documented(JudgeRequest, StreamedVerdict, "Judge a batch; a line for each verdict when ready.", NDJSON),
    )
    async def judge_stream(request: Request) -> Response:
        asked = await read_items(request)
        if isinstance(asked, Response):
            return asked
        lines: asyncio.Queue[bytes] = asyncio.Queue()

        def tell(position: int, verdict: Verdict) -> None:
            fields = {"index": position} | verdict_fields(asked[position].id, verdict)
            lines.put_nowait(orjson.dumps(fields, default=dict, option=orjson.OPT_APPEND_NEWLINE))

        async def stream() -> AsyncIterator[bytes]:
            began = time.perf_counter()
            items = [one.item() for one in asked]
            judging = asyncio.create_task(service.judge(items, [one.id for one in asked], tell))
            try:
                for _ in asked:
                    yield await lines.get()
            finally:
                judging.cancel()
                seconds["/v1/judge/stream"](time.perf_counter() - began)

        return StreamingResponse(stream(), media_type=NDJSON)

    @app.post(
        "/judge", **_documented(released.Payload, released.Answer, "Judge one answer; the released server's protocol.")
    )
    async def judge_released(request: Request) -> Response:
        began = time.perf_counter()
        try:
            item = released.read(_PAYLOAD.validate_json(await request.body()), settings.judge_preset)
        except ValidationError as error:
            return problem(422, explain(error))
        except UserError as error:
            return JSONResponse(released.SILENT_ZERO) if settings.silent_zeros else problem(422, str(error))
        if service.is_full(1):
            return full()
        [verdict] = await service.judge([item])
        seconds["/judge"](time.perf_counter() - began)
        if verdict.status is Status.SCORED:
            return Response(orjson.dumps(released.write(item, verdict)), media_type="application/json")
        if settings.silent_zeros:
            return JSONResponse(released.SILENT_ZERO)
        return problem(422 if verdict.status is Status.UNSCORABLE else 503, verdict.reason)


def _add_information(app: FastAPI, service: Service) -> None:
    """The endpoints that tell of the server."""

    @app.get("/", summary="The released server's greeting.")
    async def greet() -> dict[str, str]:
        return released.GREETING

    @app.get("/healthz", summary="Alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Ready to judge?")
    async def readyz() -> Response:
        if service.draining:
            return problem(503, "the server is about to end")
        if not service.pool.ready:
            return problem(503, "the workers are warming up")
        return JSONResponse({"status": "ready"})

    @app.get("/v1/verifiers", summary="Names, definitions and parameters of the verifiers, and versions.")
    async def verifiers() -> Response:
        # The first time it imports them all.
        return Response(await asyncio.to_thread(_verifiers), media_type="application/json")

    text = {200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", summary="Prometheus metrics.", response_class=Response, responses=cast(Any, text))
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_docs_page(app.openapi()))


def _pass_on(on_verdict: OnVerdict, position: int, done: asyncio.Future[Verdict]) -> None:
    on_verdict(position, done.result())


def problem(status: int, detail: str) -> Response:
    """An error's answer."""
    return JSONResponse({"detail": detail}, status_code=status)


def full() -> Response:
    """The answer to those who must wait."""
    return JSONResponse({"detail": "too much is waiting; ask again later"}, 429, {"Retry-After": "1"})


def serve(pool: AsyncJudgePool, settings: Settings, *, discovery: Path | None, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way.

    Args:
        pool: The workers, not started.
        settings: What the server is started with.
        discovery: Folder in which a file `IP:PORT` tells the released client where the server is.
        announce: Called with the address once the server listens.

    Raises:
        UserError: the address can't be used.
    """
    settings.check()
    try:
        listener = socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=1024,
        )
    except OSError as error:
        raise UserError(
            f"{settings.host}:{settings.port}: {error.strerror}; choose another --host or --port"
        ) from error
    service = Service(pool, settings)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        create_app(service),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        # When grace is over the pool is closed, which settles what is left; this much longer to say so.
        timeout_graceful_shutdown=math.ceil(settings.grace) + 2,
    )
    server = _Server(config, service)
    told = [discovery / f"{_own_address(settings.host)}:{port}"] if discovery else []
    try:
        for file in told:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        announce(f"http://{host}:{port}")
        server.run(sockets=[listener])
    finally:
        for file in told:
            file.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """Uvicorn that answers 503 while it drains, and ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._drain)
        yield

    def _drain(self) -> None:
        self.force_exit = self._service.draining  # told twice
        self._service.draining = self.should_exit = True
        self._loop.call_later(self._service.settings.grace, self._give_up)

    def _give_up(self) -> None:
        self._closing = self._loop.create_task(self._service.pool.close())


def _own_address(host: str) -> str:
    """The address under which others reach a server that listens on `host`."""
    if host not in ("0.0.0.0", "::"):
        return host
    try:
        # Nothing is sent: the kernel only says from where it would go to the world outside.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _documented(body: type, answer: type, summary: str, media_type: str = "application/json") -> dict[str, Any]:
    """A route whose body is read by hand, for speed, as the API's description has it."""
    asked, told = ({"schema": {"$ref": f"#/components/schemas/{one.__name__}"}} for one in (body, answer))
    return {
        "summary": summary,
        "responses": {200: {"description": "Verdicts.", "content": {media_type: told}}, **_PROBLEMS},
        "response_class": Response,
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": asked}}},
    }


@functools.cache
def _verifiers() -> bytes:
    libraries = ("vtriune", "math-verify", "latex2sympy2_extended", "sympy", "pycocotools", "rapidfuzz", "apted")
    told = {
        "verifiers": [
            {"name": name, "summary": describe.summary(name), "parameters": describe.schema(name)}
            for name in registry.names()
        ],
        "versions": {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in libraries},
    }
    return orjson.dumps(told)


def _docs_page(schema: dict[str, Any]) -> str:
    """The API's description as a page that needs nothing from elsewhere."""
    rows = "".join(
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(one.get('summary', ''))}</p>"
        f"<details><summary>Details</summary><pre>{escape(orjson.dumps(one, option=orjson.OPT_INDENT_2).decode())}"
        "</pre></details>"
        for path, methods in schema["paths"].items()
        for method, one in methods.items()
    )
    types = escape(orjson.dumps(schema["components"]["schemas"], option=orjson.OPT_INDENT_2).decode())
    title = escape(schema["info"]["title"])
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>body{{font:16px sans-serif;max-width:60em;"
        f"margin:2em auto;color-scheme:light dark}}</style><h1>{title}</h1><p><a href=openapi.json>openapi.json</a></p>"
        f"{rows}<h2>Types</h2><details><summary>All</summary><pre>{types}</pre></details>"
    )
