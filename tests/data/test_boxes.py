"""Box spaces: conversions are exact inverses, nothing is rounded, missing sizes are said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.data.boxes import BoxSpace, Floats, extent, from_relative, to_relative
from vtriune.types import ImageSize

SIZE = ImageSize(original=(640, 480), resized=(644, 476))

corner = st.floats(0, 1000, allow_subnormal=False)


@st.composite
def some_boxes(draw: st.DrawFn) -> Floats:
    rows = draw(st.lists(st.tuples(corner, corner, corner, corner), min_size=1, max_size=6))
    return np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in rows])


@given(some_boxes(), st.sampled_from(BoxSpace))
def test_from_relative_undoes_to_relative(boxes: Floats, space: BoxSpace) -> None:
    back = from_relative(to_relative(boxes, space, SIZE), space, SIZE)
    np.testing.assert_allclose(back, boxes, rtol=1e-15, atol=1e-300)  # subnormal on the way: no more digits


@pytest.mark.parametrize(
    ("space", "box"),
    [
        (BoxSpace.RELATIVE_1000, [250.0, 500.0, 750.0, 1000.0]),
        (BoxSpace.RELATIVE_1, [0.25, 0.5, 0.75, 1.0]),
        (BoxSpace.ABSOLUTE_ORIGINAL, [160.0, 240.0, 480.0, 480.0]),
        (BoxSpace.ABSOLUTE_RESIZED, [161.0, 238.0, 483.0, 476.0]),
    ],
)
def test_the_same_place_is_the_same_relative_box_in_every_space(space: BoxSpace, box: list[float]) -> None:
    np.testing.assert_array_equal(to_relative(np.array([box]), space, SIZE), [[0.25, 0.5, 0.75, 1.0]])


def test_nothing_is_rounded_or_clipped_on_the_way() -> None:
    boxes = to_relative(np.array([[-0.5, 1.0, 1000.5, 1234.0]]), BoxSpace.RELATIVE_1000)
    np.testing.assert_array_equal(boxes, [[-0.0005, 0.001, 1.0005, 1.234]])


@pytest.mark.parametrize("space", [BoxSpace.ABSOLUTE_ORIGINAL, BoxSpace.ABSOLUTE_RESIZED])
def test_a_space_in_pixels_needs_the_size_of_the_picture(space: BoxSpace) -> None:
    with pytest.raises(ValueError, match=rf"boxes in {space} need the size of the picture"):
        to_relative(np.zeros((1, 4)), space, None)
    with pytest.raises(ValueError, match="a picture with an area, not 0 x 480"):
        extent(space, ImageSize(original=(0, 480), resized=(0, 480)))


@pytest.mark.parametrize("space", BoxSpace)
def test_no_boxes_are_converted_to_no_boxes(space: BoxSpace) -> None:
    assert to_relative(np.zeros((0, 4)), space, SIZE).shape == (0, 4)


@given(some_boxes(), st.sampled_from(BoxSpace), st.sampled_from(BoxSpace))
def test_the_corners_of_boxes_are_converted_as_points_are(boxes: Floats, source: BoxSpace, target: BoxSpace) -> None:
    corners = boxes.reshape(-1, 2)
    moved = from_relative(to_relative(corners, source, SIZE), target, SIZE)
    assert (moved.reshape(-1, 4) == from_relative(to_relative(boxes, source, SIZE), target, SIZE)).all()
