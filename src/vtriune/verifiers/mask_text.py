"""From text to masks as COCO's run lengths: RLE (compressed or not) and polygons, with every size bounded.

Run lengths from strangers never reach pycocotools unchecked: its reader trusts them. IoU is mask.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import orjson

from vtriune.data.boxes import Floats

MAX_PIXELS = 1 << 26
"""Of a picture: 8192 x 8192. Masks are never unpacked, but pycocotools counts pixels in 32 bits."""
MAX_POLYGONS = 100
"""Of one mask: they are merged one by one."""
MAX_OUTLINE = 200_000
"""Pixels that the outlines of one mask run along, all together: rasterising takes memory for each."""

_HALF = 0x20


class NotAMask(ValueError):  # noqa: N818 - it says what the text is not
    """The text holds no mask, or one that goes beyond the bounds; the message says which."""


def read_json(text: str) -> Any:
    """The JSON value between the first and the last bracket of a text, single quotes taken for double ones.

    Raises:
        NotAMask: there is none.

    >>> read_json("```json\\n{'size': [2, 2], 'counts': '04'}\\n```")
    {'size': [2, 2], 'counts': '04'}
    """
    starts = [at for at in (text.find("["), text.find("{")) if at >= 0]
    end = max(text.rfind("]"), text.rfind("}")) + 1
    if not starts or not end:
        raise NotAMask("no mask found")
    content = text[min(starts) : end]
    try:
        return orjson.loads(content if '"' in content else content.replace("'", '"'))
    except orjson.JSONDecodeError as error:
        raise NotAMask("no mask found that is sound JSON") from error


def run_lengths(value: Any) -> tuple[tuple[int, int], list[int]] | None:
    """Height, width and checked runs (0s first, column by column) of `{"size": [h, w], "counts": ...}`; None if
    `value` is no such object.

    Raises:
        NotAMask: size or counts are unsound, or the picture is larger than MAX_PIXELS.

    >>> run_lengths({"size": [2, 3], "counts": [1, 2, 0, 2, 1]})
    ((2, 3), [1, 4, 1])
    """
    if not (isinstance(value, dict) and "size" in value and "counts" in value):
        return None
    match value["size"]:
        case [int(height), int(width)] if height > 0 and width > 0 and height * width <= MAX_PIXELS:
            pixels = height * width
        case _:
            raise NotAMask(f"a mask's size is [height, width] of at most {MAX_PIXELS} pixels")
    counts = value["counts"]
    runs = _decompress(counts, pixels) if isinstance(counts, str) else counts
    # type() because True is an int, too.
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run <= pixels for run in runs):
        raise NotAMask("a mask's counts are run lengths of at least 0")
    if sum(runs) != pixels:
        raise NotAMask(f"a mask's counts add up to height x width = {pixels}")
    # pycocotools compares runs correctly only if no run but the first is empty: merge over the empty ones.
    ends, times = np.unique(np.cumsum(runs)[:-1], return_counts=True)
    edges = ends[(times % 2 == 1) & (ends < pixels)]
    return (height, width), np.diff(edges, prepend=0, append=pixels).tolist()


def _decompress(counts: str, pixels: int) -> list[int]:
    """COCO's compressed counts: runs in little-endian groups of 5 bits, from the third on as differences from the run
    two before. A copy of pycocotools' `rleFrString` that does not read past the end."""
    runs: list[int] = []
    run = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise NotAMask("a mask's compressed counts hold a character that COCO never writes")
        run |= (code & 0x1F) << shift
        shift += 5
        if code & _HALF:
            continue
        if code & 0x10:
            run -= 1 << shift
        runs.append(run + runs[-2] if len(runs) > 2 else run)
        if not 0 <= runs[-1] <= pixels:
            raise NotAMask("a mask's compressed counts leave the picture")
        run = shift = 0
    if shift:
        raise NotAMask("a mask's compressed counts are cut off")
    return runs


def polygons(value: Any) -> list[Floats]:
    """The polygons (N, 2) of COCO's `[[x1, y1, x2, y2, ...], ...]`, of one such list of numbers, or of lists of
    `[x, y]`; `{"segmentation": ...}` and `{"polygon": ...}` hold them as well.

    Raises:
        NotAMask: there are none, or too many, or one has less than three corners or numbers that are none.

    >>> [shape.tolist() for shape in polygons([[0, 0], [4, 0], [4, 3]])]
    [[[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]]]
    """
    if isinstance(value, dict):
        value = value.get("segmentation", value.get("polygon"))
    listed = value if isinstance(value, list) else []
    if listed and (_all(listed, _is_number) or _all(listed, _is_pair)):
        listed = [listed]
    if not 0 < len(listed) <= MAX_POLYGONS:
        raise NotAMask(f"a mask is RLE with size and counts, or 1 to {MAX_POLYGONS} polygons")
    shapes: list[Floats] = []
    for shape in listed:
        flat = list(chain.from_iterable(shape)) if isinstance(shape, list) and _all(shape, _is_pair) else shape
        if not (isinstance(flat, list) and len(flat) >= 6 and len(flat) % 2 == 0 and _all(flat, _is_number)):
            raise NotAMask("a polygon is [x1, y1, x2, y2, ...] of at least three corners")
        shapes.append(np.array(flat, dtype=np.float64).reshape(-1, 2))
    return shapes


def rasterise(shapes: list[Floats], height: int, width: int) -> Any:
    """pycocotools' RLE of the union of polygons (N, 2) in pixels; corners outside the picture are moved to its edge.

    Raises:
        NotAMask: the outlines are longer than MAX_OUTLINE.
    """
    from pycocotools import mask  # noqa: PLC0415 - only this verifier needs it

    inside = [np.clip(shape, 0, (width, height)) for shape in shapes]
    outline = sum(float(np.abs(shape - np.roll(shape, 1, axis=0)).max(axis=1).sum()) + len(shape) for shape in inside)
    if outline > MAX_OUTLINE:
        raise NotAMask(f"the polygons' outlines are longer than {MAX_OUTLINE} pixels")
    return mask.merge(mask.frPyObjects([shape.ravel().tolist() for shape in inside], height, width))


def _all(values: list[Any], kind: Callable[[Any], bool]) -> bool:
    return all(map(kind, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e100


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _all(value, _is_number)
