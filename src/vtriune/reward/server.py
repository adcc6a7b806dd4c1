"""The reward server: verifiers behind HTTP, for many clients and any trainer. `vtriune serve` runs it.

The event loop only reads, routes and answers; judging is the worker pool's. Who may ask is `guard.py`'s, what requests
look like `api.py`'s and `released.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.metadata
import logging
import math
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from vtriune.reward import released
from vtriune.reward.api import (
    MAX_VALUES,
    ItemIn,
    JudgeReply,
    JudgeRequest,
    Problem,
    RefusedError,
    StreamedVerdict,
    explain,
    read,
    reply,
    too_many_values,
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

LOOK_AFTER = 0.5
"""Seconds after which a request is watched for its client hanging up."""

CONNECTIONS = 4096
"""Open connections, idle ones included; beyond them uvicorn answers 503 in plain text."""

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


@dataclass(slots=True, eq=False)
class _Job:
    """An answer that is judged, for all who ask for it."""

    key: tuple[str, int] | None
    batch: _Batch
    verdict: Verdict | None = None
    askers: list[tuple[_Asked, int]] = field(default_factory=list)
    """Requests that wait for it, and its position in each."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Answers that the pool was handed together. What is judged for several requests ends when none is left."""

    askers: int = 0
    """Requests that wait for one of them."""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Asked:
    """A request, as far as it is answered."""

    verdicts: list[Verdict | None]
    on_verdict: OnVerdict | None
    complete: asyncio.Future[None]
    batches: set[_Batch] = field(default_factory=set)
    left: int = 0

    def tell(self, position: int, verdict: Verdict) -> None:
        if self.verdicts[position] is not None:
            return
        self.verdicts[position] = verdict
        self.left -= 1
        if self.on_verdict:
            self.on_verdict(position, verdict)
        if not self.left and not self.complete.done():
            self.complete.set_result(None)


class Service:
    """Items in, verdicts out: limits, deadline and memory of a server around its pool."""

    def __init__(self, pool: AsyncJudgePool, settings: Settings) -> None:
        self.pool = pool
        self.settings = settings
        self.metrics = ServiceMetrics(pool)
        self.draining = False
        self.waiting = 0
        """Answers of requests that are not answered yet. What they take of memory is bounded by `Guard`."""
        self._known: OrderedDict[tuple[str, int], _Job] = OrderedDict()

    def is_full(self, count: int) -> bool:
        """Would `count` more answers be too many?"""
        return self.waiting > 0 and self.waiting + count > self.settings.queue

    async def judge(self, items: Sequence[JudgeItem], names: Sequence[str] = ()) -> list[Verdict]:
        """`ask` and `answer`; nobody else comes between `is_full` and this."""
        return await self.answer(self.ask(items, names))

    def ask(self, items: Sequence[JudgeItem], names: Sequence[str] = (), on_verdict: OnVerdict | None = None) -> _Asked:
        """Begin to judge; `answer` must follow. An item with the name and content of an earlier one, which a client
        sends that has lost the connection, is not judged again.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked([None] * len(items), on_verdict, loop.create_future(), left=len(items))
        self.waiting += len(items)
        batch = _Batch()
        jobs: list[_Job] = []
        new: list[JudgeItem] = []
        for position, item in enumerate(items):
            key = (names[position], _content(item)) if names else None
            job = self._known.get(key) if key else None
            if job is None:
                job = _Job(key, batch)
                jobs.append(job)
                new.append(item)
                if key:
                    self._remember(key, job)
            if job.verdict is None:
                job.askers.append((asked, position))
                asked.batches.add(job.batch)
            else:
                asked.tell(position, job.verdict)
        for one in asked.batches:
            one.askers += 1
        if new:
            batch.task = loop.create_task(self._judge(new, jobs))
        return asked

    async def answer(self, asked: _Asked) -> list[Verdict]:
        """Its verdicts in order, by the deadline."""
        try:
            async with asyncio.timeout(self.settings.deadline):
                await asked.complete
        except TimeoutError:
            late = Verdict(Status.FAILED, reason=f"no verdict within {self.settings.deadline:g} s")
            for position in range(len(asked.verdicts)):
                asked.tell(position, late)
        finally:
            asked.on_verdict = None
            self.waiting -= len(asked.verdicts)
            for batch in asked.batches:
                batch.askers -= 1
                if not batch.askers and batch.task:
                    batch.task.cancel()
        return cast(list[Verdict], asked.verdicts)

    async def _judge(self, items: Sequence[JudgeItem], jobs: Sequence[_Job]) -> None:
        def settle(position: int, verdict: Verdict) -> None:
            job = jobs[position]
            if job.verdict is None:
                self._settle(job, verdict)
                self.metrics.count(items[position], verdict)

        missing = "whoever asked for it has gone"
        try:
            await self.pool.judge(items, settle)
        except RuntimeError as error:
            missing = str(error)
        finally:
            for position in range(len(jobs)):
                settle(position, Verdict(Status.FAILED, reason=missing))

    def _settle(self, job: _Job, verdict: Verdict) -> None:
        job.verdict = verdict
        if verdict.status is Status.FAILED and job.key and self._known.get(job.key) is job:
            del self._known[job.key]
        askers, job.askers = job.askers, []
        for asked, position in askers:
            asked.tell(position, verdict)

    def _remember(self, key: tuple[str, int], job: _Job) -> None:
        self._known[key] = job
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def _content(item: JudgeItem) -> int:
    """Tells apart items that differ in anything that a verdict depends on."""
    spec = item.spec
    try:
        parameters: object = orjson.dumps(spec.parameters)
    except TypeError:  # whole numbers of more than 64 bits
        parameters = repr(spec.parameters)
    weights = spec.accuracy_weight, spec.format_weight
    sample = spec.verifier, spec.gold, weights, parameters, spec.preset, item.image_sizes
    return hash((item.response, sample, item.progress, item.response_tokens))


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
            asked = read(await read_body(request))
        except RefusedError as error:
            return problem(422, str(error))
        return full() if service.is_full(len(asked)) else asked

    @app.post("/v1/judge", **_documented(JudgeRequest, JudgeReply, "Judge a batch; verdicts in order."))
    async def judge_batch(request: Request) -> Response:
        asked = await read_items(request)
        if isinstance(asked, Response):
            return asked
        began = time.perf_counter()
        names = [one.id for one in asked]
        with while_connected(request):
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

        began = time.perf_counter()
        underway = service.ask([one.item() for one in asked], [one.id for one in asked], tell)
        judging = asyncio.create_task(service.answer(underway))

        async def stream() -> AsyncIterator[bytes]:
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
            item = released.read(
                _PAYLOAD.validate_json(await read_body(request, released.MAX_VALUES)), settings.judge_preset
            )
        except ValidationError as error:
            return problem(422, explain(error))
        except UserError as error:
            return JSONResponse(released.SILENT_ZERO) if settings.silent_zeros else problem(422, str(error))
        if service.is_full(1):
            return full()
        with while_connected(request):
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


@contextlib.contextmanager
def while_connected(request: Request) -> Iterator[None]:
    """Give up what is done within when the client hangs up. Most is done before anybody looks.

    Raises:
        ClientDisconnect: it has.
    """
    loop = asyncio.get_running_loop()
    waiting = asyncio.current_task()
    watches: list[asyncio.Task[None]] = []
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        if waiting:
            waiting.cancel()

    timer = loop.call_later(LOOK_AFTER, lambda: watches.append(loop.create_task(watch())))
    try:
        yield
    except asyncio.CancelledError:
        if not gone or not waiting:
            raise
        waiting.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        for one in watches:
            one.cancel()


async def read_body(request: Request, limit: int = MAX_VALUES) -> bytes:
    """A body of at most `limit` values. An HTTPException is what is answered."""
    body = await request.body()
    if too_many_values(body, limit):
        raise HTTPException(413, f"the body holds more than {limit} values; send fewer items")
    return body


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
        limit_concurrency=CONNECTIONS,
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
        # What a batch consists of is many objects and no cycles: to look for some every 700 objects, among all that is
        # remembered, is a fifth of the work.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
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
