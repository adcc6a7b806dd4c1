"""From text to points, in the ways that models write them, in linear time.

What the numbers mean (space, radius, target) is pointing.py's.
"""

from __future__ import annotations

import re

MAX_POINTS = 300
"""Points read from one text; what follows them is not looked at."""

_FAR = 1e100
_NUMBER = r"([+-]?(?:[0-9]{1,20}+(?:\.[0-9]{0,40}+)?+|\.[0-9]{1,40}+)(?:[eE][+-]?[0-9]{1,3}+)?+)"
_GAP = r"\s{0,20}+"
_PAIR = rf"{_GAP}{_NUMBER}{_GAP},{_GAP}{_NUMBER}{_GAP},?+{_GAP}"
_KEYED = re.compile(rf"""point_2d["']?{_GAP}:{_GAP}[\[(]{_PAIR}[\])]""")
_BARE = re.compile(rf"[\[(]{_PAIR}[\])]")
_TAG = re.compile(r"<points?\s([^<>]{1,20000}+)>?")
_ATTRIBUTES = re.compile(
    rf"""\bx[0-9]{{0,3}}+{_GAP}={_GAP}["']?{_NUMBER}["']?,?\s{{1,20}}+y[0-9]{{0,3}}+{_GAP}={_GAP}["']?{_NUMBER}"""
)


def read_points(text: str) -> list[tuple[float, float]]:
    """The different points of a text, in its order, at most MAX_POINTS; labels are not read.

    The first of these that the text has is read, the others are not: `{"point_2d": [x, y], ...}`,
    `<point x="x" y="y">` or `<points x1="x" y1="y" x2=...>`, and bare `(x, y)` or `[x, y]`, in lists or not. What is
    not two finite numbers is passed over, four numbers (a box) included.

    >>> read_points('[{"point_2d": [1, 2], "label": "the (3, 4) button"}, {"point_2d": [5.5, 6]}]')
    [(1.0, 2.0), (5.5, 6.0)]
    >>> read_points('<point x="1" y="2" alt="a">a</point>'), read_points("(1, 2)"), read_points("[[1, 2], [3, 4]]")
    ([(1.0, 2.0)], [(1.0, 2.0)], [(1.0, 2.0), (3.0, 4.0)])
    """
    tags = " ".join(_TAG.findall(text))
    for pattern, where in ((_KEYED, text), (_ATTRIBUTES, tags), (_BARE, text)):
        points: dict[tuple[float, float], None] = {}
        for found in pattern.finditer(where):
            x, y = float(found.group(1)), float(found.group(2))
            if abs(x) <= _FAR and abs(y) <= _FAR:
                points[x, y] = None
            if len(points) == MAX_POINTS:
                break
        if points:
            return list(points)
    return []
