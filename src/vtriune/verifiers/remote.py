"""`remote`: another service judges, over HTTP. Which services there are is our own configuration's to say.

No URL is ever taken from a row or a request: a row names a service, `configure` knows where it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vtriune.types import UserError
from vtriune.verifiers.base import Context, Outcome, Share, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.json_text import JsonObject

if TYPE_CHECKING:
    import httpx

DEADLINE = 20.0
"""Seconds for one answer, unless configured: less than the judge pool waits for a worker."""

MAX_REPLY = 2**20
"""Bytes read of a service's reply."""

_services: dict[str, str] = {}
_deadline = DEADLINE


def configure(services: Mapping[str, str], deadline: float = DEADLINE) -> None:
    """Say which services there are, name -> URL, once at the start of a process; replaces what was said before.

    Raises:
        UserError: a URL is none of HTTP.
    """
    global _deadline  # noqa: PLW0603 - one configuration per process, as the registry
    for name, url in services.items():
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not name or not sound:
            raise UserError(f'remote service "{name}": {url!r} is no URL; write name=http://host:port/path')
    _services.clear()
    _services.update(services)
    _deadline = deadline


class RemoteParams(BaseModel):
    """Who judges, and what is passed on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: str
    """Name of a configured service, never a URL."""
    parameters: JsonObject = "{}"
    """Passed on to the service as they are."""


class _Reply(BaseModel):
    """What a service answers; more fields are ignored."""

    model_config = ConfigDict(strict=True)

    accuracy: Share
    correct: bool | None = None
    report: Annotated[
        dict[Annotated[str, Field(max_length=100)], Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=100)
    ] = {}
    reason: str | None = None


class Remote:
    """R_acc, correctness and report are what the service says; correct means 1 where it says nothing. R_fmt is eq. 4.

    Protocol: `POST` to the configured URL, `{"response": str, "ground_truth": str, "parameters": {...}, "split":
    "train" | "test", "preset": str}`; the service answers 200 with `{"accuracy": 0..1, "correct": bool?, "report":
    {str: float}?, "reason": str?}`. Whatever else happens (refused, too late, another status, a redirect, no such JSON,
    NaN, more than 1 MiB) makes the verdict `failed`, never 0. Connections are kept open, one client per process;
    proxies of the environment are not used.

    Source: this project's own protocol, after the remote reward models of github.com/OpenRLHF/OpenRLHF.

    >>> verifier, context = Remote(), Context(preset="modern", split="train")
    >>> verifier.parse_gold("4", RemoteParams(service="nobody"), context)
    Traceback (most recent call last):
    vtriune.verifiers.base.Unscorable: service "nobody" is not configured; there are: none (--remote NAME=URL)
    """

    name = "remote"
    Params = RemoteParams

    def parse_gold(self, gold: str, params: RemoteParams, context: Context) -> str:
        """Gold as it stands: the service reads it.

        Raises:
            Unscorable: there is no service of that name.
        """
        if params.service not in _services:
            known = ", ".join(sorted(_services)) or "none"
            raise Unscorable(f'service "{params.service}" is not configured; there are: {known} (--remote NAME=URL)')
        _client()  # so that no answer pays for it
        return gold

    def judge(self, response: str, gold: str, params: RemoteParams, context: Context) -> Outcome:
        """Ask the service.

        Raises:
            RuntimeError: it gave no verdict; the message says why.
        """
        import httpx  # noqa: PLC0415 - 0.1 s, and only for rows that name a service

        question = {
            "response": response,
            "ground_truth": gold,
            "parameters": orjson.Fragment(params.parameters),
            "split": context.split,
            "preset": context.preset,
        }
        try:
            reply = _Reply.model_validate_json(_ask(_services[params.service], orjson.dumps(question)))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, fault["loc"])) or "reply"
            raise RuntimeError(f'service "{params.service}": {where}: {fault["msg"]}') from error
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise RuntimeError(f'service "{params.service}": {type(error).__name__}: {error}') from error
        correct = reply.accuracy == 1 if reply.correct is None else reply.correct
        reason = "" if reply.accuracy else reply.reason or ""
        return Outcome(reply.accuracy, tag_score(response), correct=correct, report=reply.report, reason=reason)


def _ask(url: str, question: bytes) -> bytes:
    """The body of the reply, within bounds of time and size. Raises OSError or httpx.HTTPError."""
    end = time.monotonic() + _deadline
    # Not compressed: a small reply could become a large one.
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    body = bytearray()
    with _client().stream("POST", url, content=question, headers=headers, timeout=_deadline) as reply:
        if reply.status_code != 200:
            raise OSError(f"answered with status {reply.status_code}")
        for chunk in reply.iter_raw():
            body += chunk
            if len(body) > MAX_REPLY:
                raise OSError(f"its reply is longer than {MAX_REPLY} bytes")
            if time.monotonic() > end:
                # The client's own limit is for each piece: a service could send one byte at a time for ever.
                raise TimeoutError(f"no whole reply after {_deadline:g} s")
    return bytes(body)


@cache
def _client() -> httpx.Client:
    import httpx  # noqa: PLC0415

    # Dropped before the server (uvicorn: after 5 s) does, which would cost the next answer its verdict.
    return httpx.Client(trust_env=False, limits=httpx.Limits(keepalive_expiry=2.0))
