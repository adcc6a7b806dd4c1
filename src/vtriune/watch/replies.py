"""Replies of the dashboard's server: JSON in which a number that does not exist is null, and errors as one sentence."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response


def encode(value: Any) -> bytes:
    """`value` as JSON, numpy arrays included; NaN and infinities become null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json(value: Any) -> Response:
    """`value` as a reply."""
    return Response(encode(value), media_type="application/json")


def error(status: int, sentence: str) -> Response:
    """An error: what is wrong, for whoever looks at the page."""
    return Response(encode({"error": sentence}), status, media_type="application/json")
