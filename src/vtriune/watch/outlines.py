"""The outlines of a mask from its run lengths, for the page to fill: as fine as a screen shows, and bounded.

The mask is never unpacked: whatever size its picture claims, only the cells of a small raster are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtriune.data.boxes import Floats

CELLS = 256
"""Cells of the raster's longest side; a picture of no more pixels is outlined to the pixel."""
MAX_CORNERS = 4000
"""Corners of all outlines of a mask; one that has more is outlined on a raster half as fine, and so on."""


def outlines(runs: Sequence[int], height: int, width: int) -> list[Floats]:
    """The outlines, holes included, as rings (n, 2) of x, y in shares of the picture; filled by the even-odd rule.

    `runs` are COCO's run lengths: 0s first, column by column, `height * width` in all (`mask_text.run_lengths`).

    >>> outlines([4, 8, 4], 4, 4)[0].tolist()
    [[0.25, 0.0], [0.75, 0.0], [0.75, 1.0], [0.25, 1.0]]
    """
    ends, side = np.cumsum(runs), CELLS
    while True:
        rows, columns = _seen(height, side), _seen(width, side)
        covered = np.searchsorted(ends, columns * height + rows[:, None], "right") % 2 == 1
        corners = _corners(covered)
        if len(corners) <= MAX_CORNERS:
            size = np.array(covered.shape)
            return [corners[ring][:, ::-1] / size[::-1] for ring in _rings(corners)]
        side //= 2


def _seen(pixels: int, side: int) -> np.ndarray:
    """The pixels in the middles of at most `side` cells."""
    cells = min(pixels, side)
    return (2 * np.arange(cells) + 1) * pixels // (2 * cells)


def _corners(covered: np.ndarray) -> np.ndarray:
    """(n, 2) of row, column: where outlines turn; twice where two cells of four touch by their corners only."""
    around = np.pad(covered, 1).astype(np.int8)
    a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
    turns, touches = (a + b + c + d) % 2 == 1, (a == d) & (b == c) & (a != b)
    return np.concatenate([np.argwhere(turns), np.repeat(np.argwhere(touches), 2, axis=0)])


def _rings(corners: np.ndarray) -> list[list[int]]:
    """Places in `corners` in the order of each outline. Along a row, and along a column, every first corner is joined
    with the one after it, so that each has one neighbour across and one down."""
    neighbours = np.empty((2, len(corners)), np.int64)
    for neighbour, major in zip(neighbours, (0, 1), strict=True):
        order = np.lexsort((corners[:, 1 - major], corners[:, major]))
        neighbour[order[::2]], neighbour[order[1::2]] = order[1::2], order[::2]
    across, down = neighbours.tolist()
    left, rings = dict.fromkeys(range(len(corners))), list[list[int]]()
    while left:
        at, ring = next(iter(left)), list[int]()
        while at in left:
            ring += [at, across[at]]
            del left[at], left[across[at]]
            at = down[across[at]]
        rings.append(ring)
    return rings
