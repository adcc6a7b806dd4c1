"""Items and verdicts as JSON, and the frames in which they travel between processes. No pickle.

A frame is its length in 4 bytes, big-endian, and so many bytes of JSON.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from vtriune.reward.judge import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_PARAMETERS,
    MAX_PICTURES,
    MAX_REASON,
    JudgeItem,
    is_deep,
    is_unicode,
)
from vtriune.types import ImageSize, Progress, RewardSpec, Status, Verdict

NOT_UNICODE = "\ud800"
"""Stands for an answer that is no Unicode text."""

MAX_NAME = 200
"""Characters of a data source, of which the rest is cut."""


def encode_item(item: JudgeItem) -> bytes:
    """The item as JSON: equal items give equal bytes.

    What is too long, too deep or too many is cut where the judge already knows that it is, so that every item fits into
    a request and has the same verdict everywhere. Of a response with a lone surrogate, which JSON can't hold and the
    judge doesn't read, only that is said.

    Raises:
        ValueError: the sample holds what JSON can't: a lone surrogate, an object in the parameters.
    """
    spec = item.spec
    response = item.response[: MAX_CHARACTERS + 1]
    if len(spec.gold) > MAX_CHARACTERS:
        spec = replace(spec, gold=spec.gold[: MAX_CHARACTERS + 1])
    if len(spec.verifier) > MAX_REASON:
        spec = replace(spec, verifier=spec.verifier[: MAX_REASON + 1])
    if spec.parameters and is_deep(spec.parameters):
        spec = replace(spec, parameters=_cut(spec.parameters, MAX_DEPTH + 1))
    fields = {
        "response": response if is_unicode(response) else None,
        "spec": spec,
        "progress": item.progress,
        "image_sizes": item.image_sizes[: MAX_PICTURES + 1],
        "response_tokens": item.response_tokens,
        "source": item.source[:MAX_NAME],
    }
    try:
        data = orjson.dumps(fields, default=dict, option=orjson.OPT_SORT_KEYS)
        if len(data) > MAX_PARAMETERS and len(orjson.dumps(spec.parameters, default=dict)) > MAX_PARAMETERS:
            fields["spec"] = replace(spec, parameters={"": "x" * MAX_PARAMETERS})
            data = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        return data
    except TypeError as error:
        raise ValueError(str(error)) from error


def _cut(value: Any, depth: int) -> Any:
    """`value` with nothing that is nested deeper than `depth` objects and lists."""
    if isinstance(value, Mapping):
        return {key: _cut(child, depth - 1) for key, child in value.items()} if depth else None
    if isinstance(value, list | tuple):
        return [_cut(child, depth - 1) for child in value] if depth else None
    return value


def decode_item(fields: dict[str, Any]) -> JudgeItem:
    """The inverse of `encode_item`, as far as the judge can tell, after `orjson.loads`."""
    spec = fields["spec"]
    for weight in ("accuracy_weight", "format_weight"):
        if spec[weight] is None:  # JSON's spelling of NaN and infinity, which the judge refuses by name
            spec[weight] = float("nan")
    return JudgeItem(
        response=NOT_UNICODE if fields["response"] is None else fields["response"],
        spec=RewardSpec(**spec),
        progress=Progress(**fields["progress"]),
        image_sizes=tuple(
            ImageSize(original=tuple(size["original"]), resized=tuple(size["resized"]))
            for size in fields["image_sizes"]
        ),
        response_tokens=fields["response_tokens"],
        source=fields["source"],
    )


def encode_verdict(verdict: Verdict) -> bytes:
    """The verdict as JSON; its numbers are finite, as the judge guarantees, and survive to the last bit."""
    return orjson.dumps(verdict, default=dict)


def decode_verdict(data: bytes) -> Verdict:
    """The inverse of `encode_verdict`."""
    fields = orjson.loads(data)
    return Verdict(**{**fields, "status": Status(fields["status"])})


def join(items: Sequence[bytes]) -> bytes:
    """Encoded items as one JSON array, without encoding them again."""
    return b"[" + b",".join(items) + b"]"


def frame(data: bytes) -> bytes:
    """`data` as one frame."""
    return len(data).to_bytes(4, "big") + data


def frames(buffer: bytearray) -> Iterator[bytes]:
    """The content of the whole frames at the start of `buffer`, which are taken off it.

    >>> buffer = bytearray(frame(b"one") + frame(b"two")[:-1])
    >>> list(frames(buffer)), len(buffer)
    ([b'one'], 6)
    """
    position = 0
    while len(buffer) >= position + 4:
        end = position + 4 + int.from_bytes(buffer[position : position + 4], "big")
        if len(buffer) < end:
            break
        yield bytes(buffer[position + 4 : end])
        position = end
    del buffer[:position]


def send_frame(channel: socket.socket, data: bytes) -> None:
    """Send one frame. Raises OSError if the other side has gone or does not read in time."""
    channel.sendall(frame(data))


def receive_frame(channel: socket.socket) -> bytes:
    """Read one frame and nothing of the next. Raises EOFError if the other side has gone."""
    return _read(channel, int.from_bytes(_read(channel, 4), "big"))


def _read(channel: socket.socket, size: int) -> bytes:
    data = channel.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise EOFError("the other side has closed the channel")
    return data
