"""The HTTP endpoints of the reward server, and their description. What is behind them is `service.py`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import sys
import time
from collections.abc import AsyncIterator, Iterator
from html import escape
from typing import Any, cast

import orjson
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
from vtriune.reward.guard import Guard
from vtriune.reward.openrlhf import OpenRLHFReply, OpenRLHFRequest, read_openrlhf, write_openrlhf
from vtriune.reward.service import LOOPBACK, Service
from vtriune.types import Status, UserError, Verdict
from vtriune.verifiers import describe, registry

NDJSON = "application/x-ndjson"

LOOK_AFTER = 0.5
"""Seconds after which a request is watched for its client hanging up."""

_PAYLOAD = TypeAdapter(released.Payload)
_OPENRLHF = TypeAdapter(OpenRLHFRequest)

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
    _add_openrlhf(app, service)
    # Described by FastAPI, served without it: to look for dependencies that they don't have is a third of a request.
    app.router.routes[:0] = [
        Route(one.path, one.endpoint, methods=["POST"]) for one in app.routes if isinstance(one, APIRoute)
    ]
    _add_information(app, service)

    def openapi() -> dict[str, Any]:
        """The description of the API, with the types of the bodies that are read by hand."""
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            read = [(one, "validation") for one in (JudgeRequest, released.Payload, OpenRLHFRequest)]
            answers = (JudgeReply, StreamedVerdict, released.Answer, OpenRLHFReply)
            written = [(one, "serialization") for one in answers]
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


def _add_openrlhf(app: FastAPI, service: Service) -> None:
    """The endpoint of OpenRLHF's protocol."""
    seconds = service.metrics.timer("/openrlhf")

    @app.post(
        "/openrlhf",
        **_documented(OpenRLHFRequest, OpenRLHFReply, "Judge answers; OpenRLHF's remote reward protocol."),
    )
    async def judge_openrlhf(request: Request) -> Response:
        began = time.perf_counter()
        try:
            items = read_openrlhf(_OPENRLHF.validate_json(await read_body(request)))
        except ValidationError as error:
            return problem(422, explain(error))
        except UserError as error:
            return problem(422, str(error))
        if service.is_full(len(items)):
            return full()
        with while_connected(request):
            verdicts = await service.judge(items)
        seconds(time.perf_counter() - began)
        missing = next((verdict for verdict in verdicts if verdict.status is not Status.SCORED), None)
        if missing:  # OpenRLHF has no way to leave an answer out
            return problem(422 if missing.status is Status.UNSCORABLE else 503, missing.reason)
        return Response(orjson.dumps(write_openrlhf(verdicts)), media_type="application/json")


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
            return problem(503, service.pool.fault or "the workers are warming up")
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
