"""Outlines against the masks that they are of: filled again, they cover the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.data.boxes import Floats
from vtriune.watch.outlines import CELLS, MAX_CORNERS, outlines


def runs_of(covered: np.ndarray) -> list[int]:
    """COCO's run lengths, counted one by one."""
    runs, now = [0], 0
    for cell in covered.T.ravel().tolist():
        if cell != now:
            runs.append(0)
            now = cell
        runs[-1] += 1
    return runs


def filled(rings: list[Floats], rows: int, columns: int) -> np.ndarray:
    """The cells whose middles lie inside by the even-odd rule."""
    y = (np.arange(rows)[:, None] + 0.5) / rows
    x = (np.arange(columns) + 0.5) / columns
    inside = np.zeros((rows, columns), bool)
    for ring in rings:
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x1 == x2) != (y1 == y2)  # along the edges of cells, and never nowhere
            if x1 == x2:
                inside ^= (x < x1) & (min(y1, y2) <= y) & (y < max(y1, y2))
    return inside


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_the_outlines_of_any_mask_cover_its_pixels_and_no_others(height: int, width: int, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.integers(0, 1), min_size=height * width, max_size=height * width))
    covered = np.array(cells).reshape(height, width)
    rings = outlines(runs_of(covered), height, width)
    assert (filled(rings, height, width) == covered).all()
    assert bool(rings) == covered.any()


@pytest.mark.parametrize(("height", "width"), [(1000, 3), (480, 640), (8192, 8192)])
def test_a_large_mask_is_outlined_to_the_cell(height: int, width: int) -> None:
    left, right, top, bottom = width // 3, width - 1, height // 4, height // 2
    high = bottom - top
    runs = [left * height + top, *[high, height - high] * (right - left)]
    runs[-1] += height * width - sum(runs)
    (ring,) = outlines(runs, height, width)
    assert len(ring) == 4
    cell = np.array([1 / min(width, CELLS), 1 / min(height, CELLS)])
    assert (abs(ring.min(axis=0) - (left / width, top / height)) <= cell).all()
    assert (abs(ring.max(axis=0) - (right / width, bottom / height)) <= cell).all()


def test_a_mask_of_hardly_anything_but_corners_is_outlined_more_coarsely() -> None:
    noise = (np.random.default_rng(0).random((600, 400)) < 0.5).astype(int)
    rings = outlines(runs_of(noise), 600, 400)
    assert 0 < sum(map(len, rings)) <= MAX_CORNERS
    middles = (2 * np.arange(64) + 1) / 128
    looked_up = noise[np.ix_((middles * 600).astype(int), (middles * 400).astype(int))]
    assert (filled(rings, 64, 64) == looked_up).all()
