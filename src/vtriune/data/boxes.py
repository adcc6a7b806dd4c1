"""Box spaces: what the four numbers x1, y1, x2, y2 of a box mean, and conversion between the meanings, in floats.

Which space gold or a model family's answers use is the sample's or the recipe's to say; nothing is guessed here.
How far boxes overlap is verifiers/box_match.py's.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vtriune.types import ImageSize

Floats = NDArray[np.float64]


class BoxSpace(StrEnum):
    """Unit and origin of a box; x runs right and y down from the picture's upper left corner."""

    RELATIVE_1000 = "relative_1000"
    """0..1000 of either side: Qwen2-VL, Qwen3-VL, InternVL, GLM-V, and the gold of Orsta-Data-47k."""
    RELATIVE_1 = "relative_1"
    """0..1 of either side."""
    ABSOLUTE_ORIGINAL = "absolute_original"
    """Pixels of the picture as stored."""
    ABSOLUTE_RESIZED = "absolute_resized"
    """Pixels of the picture as the model's processor resized it: Qwen2.5-VL."""


def extent(space: BoxSpace, size: ImageSize | None) -> tuple[float, float]:
    """Width and height of the whole picture in the unit of `space`.

    Raises:
        ValueError: the space is in pixels and `size` is missing or not positive.

    >>> extent(BoxSpace.RELATIVE_1000, None)
    (1000.0, 1000.0)
    >>> extent(BoxSpace.ABSOLUTE_RESIZED, ImageSize(original=(640, 480), resized=(644, 476)))
    (644.0, 476.0)
    """
    if space is BoxSpace.RELATIVE_1000:
        return 1000.0, 1000.0
    if space is BoxSpace.RELATIVE_1:
        return 1.0, 1.0
    if size is None:
        raise ValueError(f"boxes in {space} need the size of the picture, and it is not known")
    width, height = size.original if space is BoxSpace.ABSOLUTE_ORIGINAL else size.resized
    if width <= 0 or height <= 0:
        raise ValueError(f"boxes in {space} need a picture with an area, not {width} x {height}")
    return float(width), float(height)


def to_relative(boxes: Floats, space: BoxSpace, size: ImageSize | None = None) -> Floats:
    """Boxes (N, 4) or points (N, 2) of `space`, likewise in 0..1 of the picture's sides, neither rounded nor clipped.

    Raises:
        ValueError: the space is in pixels and `size` is missing or not positive.

    >>> to_relative(np.array([[0.0, 250.0, 500.0, 1000.0]]), BoxSpace.RELATIVE_1000)
    array([[0.  , 0.25, 0.5 , 1.  ]])
    """
    relative: Floats = boxes / np.array(extent(space, size) * (boxes.shape[1] // 2))
    return relative


def from_relative(boxes: Floats, space: BoxSpace, size: ImageSize | None = None) -> Floats:
    """The inverse of `to_relative`: boxes (N, 4) or points (N, 2) in 0..1 as those of `space`.

    Raises:
        ValueError: the space is in pixels and `size` is missing or not positive.
    """
    own: Floats = boxes * np.array(extent(space, size) * (boxes.shape[1] // 2))
    return own
