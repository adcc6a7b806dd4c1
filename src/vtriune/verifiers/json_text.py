"""JSON from strangers: read within bounds, and kept as text where parameters must be frozen and hashable.

What the JSON means is for the verifiers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator, WithJsonSchema

MAX_JSON = 100_000
"""Characters of one JSON text."""

MAX_DEPTH = 32
"""Lists and objects within each other. Whoever recurses over what `read_json` returns is safe."""


def read_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON (NaN is none), too long or too deep.

    >>> read_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> read_json("[" * 33 + "]" * 33)
    Traceback (most recent call last):
    ValueError: JSON nested deeper than 32
    """
    if len(text) > MAX_JSON:
        raise ValueError(f"JSON longer than {MAX_JSON} characters")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg}") from error
    depth, level = 0, _containers([value])
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON nested deeper than {MAX_DEPTH}")
        level = [inner for node in level for inner in _containers(node.values() if isinstance(node, dict) else node)]
    return value


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _as_text(value: object) -> str:
    if isinstance(value, str):
        value = read_json(value)
    if not isinstance(value, Mapping):
        raise ValueError("must be a JSON object, or the text of one")
    try:
        text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=dict).decode()
    except TypeError as error:
        raise ValueError(f"is no JSON: {error}") from error
    read_json(text)
    return text


JsonObject = Annotated[str, BeforeValidator(_as_text), WithJsonSchema({"type": ["object", "string"]})]
"""A parameter that is an object of any content, given as such or as its JSON text; held as text with sorted keys.

Text is for Parquet, whose rows all have the same fields, and for objects with nulls, which are dropped from rows."""
