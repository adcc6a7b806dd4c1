"""From text to labelled boxes, taking what models really write, in linear time, evaluating nothing.

What the numbers mean (box space) is the verifier's to say; how the released code reads is released_detection.py's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

MAX_BOXES = 1000
"""Boxes read from one text; what follows them is not looked at, so that spraying boxes cannot cost quadratic time."""

_FAR = 1e100
_MAX_FIELDS = 8
_MAX_CORNERS = 400
"""Characters between the brackets of a box."""
_BOX_FIELDS = 2
_NUMBERS = {int, float}


def _quoted(q: str) -> str:
    """A string, taken to end at the first quote that a field's end follows, so that quotes within it do no harm."""
    end = r"""(?= \s*+ (?: [}\]] | , \s*+ (?: ["'}\]] | \w{1,32}+ \s*+ : ) ) )"""
    return rf"{q} ((?: [^{q}\\] | \\(?:u[0-9a-fA-F]{{4}}|.) | (?! {q}{end} ) {q} ){{0,500}}+) {q}"


_FIELD = re.compile(
    rf"""
    \s*+ ["']?(\w{{1,32}}+)["']? \s*+ : \s*+
    (?: \[ \s*+ \[?+ ([^\[\]{{}}]{{0,400}}+) \]? \s*+ \]
      | {_quoted('"')} | {_quoted("'")} | ([^\s,{{}}\[\]"']{{1,64}}+) )
    \s*+ ,?+ \s*+ (\}}?+)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_MEANT = re.compile(r"""\{\s*+["']?bbox_2d""")
_BARE = re.compile(r"\[([^\[\]{}]{1,400}+)\]")
_EMPTY_LIST = re.compile(r"\[\s*+\]")


class Box(NamedTuple):
    """Corners with x1 <= x2 and y1 <= y2, all finite, and what they enclose."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class BoxList:
    """The boxes of one text, in its order."""

    boxes: list[Box]
    dropped: int = 0
    """Objects that were meant as boxes and are none: swapped corners, NaN, infinity, not four numbers, cut off."""
    empty: bool = False
    """The text says `[]`: there is nothing to be found. (No boxes and not empty: there is no answer.)"""


def read_boxes(text: str) -> BoxList:
    r"""Every `{"bbox_2d": [x1, y1, x2, y2], "label": ...}` in a text, whatever stands around it.

    Takes single and double quotes, quotes and apostrophes within labels (escaped or not), code fences, one object
    instead of a list, further fields in any order, trailing commas and text, lists cut off (complete boxes count).
    A box without a label has the label "". Boxes without area are boxes. At most MAX_BOXES are read.

    >>> read_boxes('''```json [{'bbox_2d': [1, 2, 3, 4], 'label': 'driver's seat'}, {'bbox_2d': [5, 6''')
    BoxList(boxes=[Box(label="driver's seat", x1=1.0, y1=2.0, x2=3.0, y2=4.0)], dropped=1, empty=False)
    """
    return _read_strict(text) or read_loose(text)


def _read_strict(text: str) -> BoxList | None:
    """What `read_loose` finds in a text with one JSON list of complete boxes and nothing else that could be one,
    several times as fast. None if it is anything else.
    """
    try:
        found = orjson.loads(text[text.find("[") : text.rfind("]") + 1])
    except orjson.JSONDecodeError:
        return None
    # By these counts no name occurs twice and no label holds a brace; the lengths are those that `_FIELD` takes.
    n = len(found)
    counted = 0 < n < MAX_BOXES and text.count("{") == n and text.count('"') == 6 * n and "\\" not in text
    if not counted or max(map(len, text.split("["))) > _MAX_CORNERS or not all(map(_is_complete, found)):
        return None
    boxes = [box for one in found if (box := make_box(one["label"], one["bbox_2d"]))]
    return BoxList(boxes, n - len(boxes))


def _is_complete(one: Any) -> bool:
    if type(one) is not dict or len(one) != _BOX_FIELDS:
        return False
    corners = one.get("bbox_2d")
    return type(corners) is list and type(one.get("label")) is str and _NUMBERS.issuperset(map(type, corners))


def read_loose(text: str) -> BoxList:
    """`read_boxes` without its short cut."""
    boxes: list[Box] = []
    dropped = 0
    start = text.find("{")
    while start >= 0 and len(boxes) < MAX_BOXES:
        corners, label, closed, end = _fields(text, start + 1)
        if corners is None:
            # Some other object, in which boxes may stand; or a box cut off within its corners.
            dropped += _MEANT.match(text, start) is not None
        else:
            box = make_box(label, corners.split(",")) if closed else None
            if box is None:
                dropped += 1
            else:
                boxes.append(box)
        start = text.find("{", end)
    return BoxList(boxes, dropped, empty=not boxes and not dropped and _EMPTY_LIST.search(text) is not None)


def read_bare_boxes(text: str) -> list[Box]:
    """Every `[x1, y1, x2, y2]` in a text, with the label "". Other lists are passed over. At most MAX_BOXES are read.

    >>> read_bare_boxes("It is [[1, 2, 3, 4]], not [3, 2, 1, 4] and not [5].")
    [Box(label='', x1=1.0, y1=2.0, x2=3.0, y2=4.0)]
    """
    boxes: list[Box] = []
    for found in _BARE.finditer(text):
        box = make_box("", found.group(1).split(","))
        if box is not None:
            boxes.append(box)
        if len(boxes) == MAX_BOXES:
            break
    return boxes


def _fields(text: str, position: int) -> tuple[str | None, str, bool, int]:
    """The fields from a position on: corners as written, label, whether the object is closed, and where reading ended.

    Text once read is not read again, whatever becomes of the object: that makes the whole linear.
    """
    corners: str | None = None
    label = ""
    for _ in range(_MAX_FIELDS):
        field = _FIELD.match(text, position)
        if field is None:
            break
        position = field.end()
        key, numbers, double, single, bare, brace = field.groups()
        if key == "bbox_2d":
            corners = numbers or ""
        elif key == "label":
            label = _unescape(double or single or bare or "")
        if brace:
            return corners, label, True, position
    return corners, label, False, position


def make_box(label: str, corners: Sequence[str | float]) -> Box | None:
    """A box if the corners are four numbers, finite, of a size that areas can be computed of, and not swapped."""
    try:
        x1, y1, x2, y2 = map(float, corners)
    except (ValueError, OverflowError):
        return None
    # NaN fails every comparison.
    if -_FAR <= x1 <= x2 <= _FAR and -_FAR <= y1 <= y2 <= _FAR:
        return Box(label, x1, y1, x2, y2)
    return None


def _unescape(label: str) -> str:
    """A string's escapes (JSON's and Python's) as the characters they stand for."""
    if "\\" not in label:
        return label
    plain = _ESCAPE.sub(_character, label)
    # JSON writes characters beyond U+FFFF as two surrogates.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _character(escape: re.Match[str]) -> str:
    *codes, letter = escape.groups()
    if letter is not None:
        return _CONTROLS.get(letter, letter)
    code = int(next(code for code in codes if code), 16)
    return chr(code) if code <= 0x10FFFF else "\ufffd"
