"""What the verifiers of boxes, points and masks share: the text that is judged, and places moved between spaces.

What the numbers mean is data/boxes.py's, what a text holds box_text.py's and point_text.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtriune.data.boxes import BoxSpace, Floats, extent, from_relative, to_relative
from vtriune.types import ImageSize
from vtriune.verifiers.answers import final_text, tagged
from vtriune.verifiers.base import Unscorable
from vtriune.verifiers.box_text import Box


def judged_text(response: str) -> str:
    """What the last `<answer>` after the last `</think>` holds, or all that follows `</think>` if no tag does.

    >>> judged_text("<think><answer>[1]</answer></think>So: <answer>[2]</answer>")
    '[2]'
    """
    final = final_text(response)
    content = tagged(final)
    return final if content is None else content


def gold_text(gold: str) -> str:
    """Gold with or without its `<answer>` tags."""
    content = tagged(gold)
    return gold if content is None else content


def moved(places: Floats, source: BoxSpace, target: BoxSpace, sizes: Sequence[ImageSize]) -> Floats:
    """Boxes (N, 4) or points (N, 2) of space `source` in space `target`, neither rounded nor clipped.

    A sample with several pictures has its places in the first.

    Raises:
        Unscorable: the picture's size is needed and missing.

    >>> moved(np.array([[0.5, 1.0]]), BoxSpace.RELATIVE_1, BoxSpace.RELATIVE_1000, ())
    array([[ 500., 1000.]])
    """
    if source is target:
        return places
    size = sizes[0] if sizes else None
    try:
        return from_relative(to_relative(places, source, size), target, size)
    except ValueError as error:
        raise Unscorable(str(error)) from error


def scales(source: BoxSpace, target: BoxSpace, sizes: Sequence[ImageSize]) -> tuple[float, float, float, float]:
    """Width and height of the whole picture in space `source`, then in `target`: x / width * wide is what `moved` does.

    Raises:
        Unscorable: the picture's size is needed and missing.

    >>> scales(BoxSpace.RELATIVE_1, BoxSpace.RELATIVE_1000, ())
    (1.0, 1.0, 1000.0, 1000.0)
    """
    size = sizes[0] if sizes else None
    try:
        return *extent(source, size), *extent(target, size)
    except ValueError as error:
        raise Unscorable(str(error)) from error


def corners_of(boxes: Sequence[Box]) -> Floats:
    """(N, 4): x1, y1, x2, y2."""
    return np.array([box[1:] for box in boxes], dtype=np.float64).reshape(-1, 4)
