"""What can be drawn on a sample's picture: boxes, points and masks of gold and of answers, as the judge reads them.

Reading is the verifiers' own, so that what is drawn is what was judged; drawing is the page's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import cos, pi, sin
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel

from vtriune.data.boxes import BoxSpace, Floats, to_relative
from vtriune.reward.judge import MAX_CHARACTERS
from vtriune.types import ImageSize, RewardSpec, UserError
from vtriune.verifiers import registry
from vtriune.verifiers.base import Context, Unscorable
from vtriune.verifiers.box_match import iou
from vtriune.verifiers.box_text import Box
from vtriune.verifiers.composite import MAX_NESTING, CompositeParams
from vtriune.verifiers.detection import Detection, DetectionParams, read_answer
from vtriune.verifiers.grounding import Grounding, GroundingParams, answered_boxes
from vtriune.verifiers.mask import Mask, MaskGold, MaskParams
from vtriune.verifiers.mask import iou as mask_iou
from vtriune.verifiers.mask import read_answer as answered_mask
from vtriune.verifiers.mask_text import NotAMask, run_lengths
from vtriune.verifiers.pointing import Pointing, PointingParams, Target, answered_points
from vtriune.watch.outlines import outlines

MAX_SHAPES = 200
"""Shapes of gold, and of one answer."""
OUTSIDE = 1.0
"""Pictures' widths or heights that a shape may lie outside; what is farther is drawn there."""
_CIRCLE = 32
"""Corners of the circle around a point within which it counts as hit."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One thing to draw."""

    kind: Literal["box", "point", "polygon", "mask"]
    label: str
    xy: tuple[float, ...]
    """x1, y1, x2, y2, ... in shares of the picture's width and height; of a mask: the box around it."""
    iou: float | None = None
    """Of an answered box: the best overlap with a gold box of its label; of an answered mask: that with gold's."""
    image: int = 0
    """Which of the sample's pictures: places lie in the first."""
    rings: tuple[tuple[float, ...], ...] = ()
    """Of a mask: its outlines, each as `xy`, filled by the even-odd rule."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What there is to draw of a group."""

    gold: list[Shape]
    answers: list[list[Shape]]
    """(G,) lists."""
    note: str = ""
    """Why there is nothing, or not everything."""


class _NotDrawn(Exception):  # noqa: N818 - it says what there is not
    """Why nothing can be drawn."""


def draw(spec: RewardSpec, sizes: Sequence[ImageSize], responses: Sequence[str]) -> Drawing:
    """The shapes of gold and of every answer to it, as `spec`'s verifier reads them.

    >>> spec = RewardSpec("grounding", "[0, 0, 500, 1000]")
    >>> drawing = draw(spec, [ImageSize((200, 100), (196, 112))], ["It is [0, 0, 250, 1000]."])
    >>> drawing.gold[0].xy, drawing.answers[0][0].xy, drawing.answers[0][0].iou
    ((0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.25, 1.0), 0.5)
    >>> draw(RewardSpec("mathverify", "4"), [], ["4"]).note
    'mathverify judges no places in a picture'
    """
    drawing = Drawing([], [[] for _ in responses])
    notes: dict[str, None] = {}  # each once, in their order
    try:
        reading = _reading(spec, Context(preset=spec.preset, split="train", image_sizes=tuple(sizes)), MAX_NESTING)
        if not sizes:
            raise _NotDrawn("the sample has no picture")
    except (_NotDrawn, Unscorable, UserError) as reason:
        return replace(drawing, note=str(reason))
    most = 0
    for part, shapes in ((None, drawing.gold), *zip(responses, drawing.answers, strict=True)):
        try:
            found = reading.gold() if part is None else reading.answer(part) if len(part) <= MAX_CHARACTERS else []
        except NotAMask:  # nor is it judged as one
            continue
        except (_NotDrawn, Unscorable) as reason:
            notes[str(reason)] = None
            continue
        shapes.extend(found[:MAX_SHAPES])
        most = max(most, len(found))
    if most > MAX_SHAPES:
        notes[f"the first {MAX_SHAPES} of {most} shapes are drawn"] = None
    return replace(drawing, note="; ".join(notes))


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a sample's texts are read; either may raise _NotDrawn, Unscorable or NotAMask."""

    gold: Callable[[], list[Shape]]
    answer: Callable[[str], list[Shape]]


def _reading(spec: RewardSpec, context: Context, levels: int) -> _Reading:
    """Raises _NotDrawn, Unscorable or UserError."""
    kinds: dict[type[BaseModel], Callable[[str, Any, Context], _Reading]] = {
        DetectionParams: _detection,
        GroundingParams: _grounding,
        PointingParams: _pointing,
        MaskParams: _mask,
    }
    params = registry.parse_params(spec.verifier, spec.parameters)
    if isinstance(params, CompositeParams) and levels:
        return _composite(params, spec, context, levels)
    if type(params) not in kinds:
        raise _NotDrawn(f"{spec.verifier} judges no places in a picture")
    if len(spec.gold) > MAX_CHARACTERS:
        raise _NotDrawn(f"ground_truth is longer than {MAX_CHARACTERS} characters")
    return kinds[type(params)](spec.gold, params, context)


def _composite(params: CompositeParams, spec: RewardSpec, context: Context, levels: int) -> _Reading:
    """The first part that has shapes."""
    reasons = []
    for part in params.parts:
        gold = spec.gold if part.gold is None else part.gold
        own = RewardSpec(part.verifier, gold, parameters=orjson.loads(part.parameters), preset=spec.preset)
        try:
            return _reading(own, context, levels - 1)
        except (_NotDrawn, Unscorable, UserError) as reason:
            reasons.append(f"{part.called}: {reason}")
    raise _NotDrawn("; ".join(reasons))


def _detection(gold: str, params: DetectionParams, context: Context) -> _Reading:
    wanted = Detection().parse_gold(gold, params, context)
    space = params.gold_space
    return _Reading(
        lambda: _boxes(wanted, space, context),
        lambda response: _boxes(read_answer(response, params, context).boxes, space, context, wanted),
    )


def _grounding(gold: str, params: GroundingParams, context: Context) -> _Reading:
    wanted = [Grounding().parse_gold(gold, params, context)]
    space = params.gold_space
    return _Reading(
        lambda: _boxes(wanted, space, context),
        lambda response: _boxes(answered_boxes(response, params, context), space, context, wanted),
    )


def _boxes(boxes: Sequence[Box], space: BoxSpace, context: Context, wanted: Sequence[Box] | None = None) -> list[Shape]:
    """Boxes with corners in `space`; where gold's are given, each with its best overlap among those of its label."""
    best: list[float | None] = [None] * len(boxes)
    for position, box in enumerate(boxes[:MAX_SHAPES] if wanted is not None else ()):
        best[position] = max((iou(box, other) for other in wanted or () if other.label == box.label), default=0.0)
    corners = _relative([box[1:] for box in boxes], space, context)
    return [Shape("box", box.label, corner, overlap) for box, corner, overlap in zip(boxes, corners, best, strict=True)]


def _pointing(gold: str, params: PointingParams, context: Context) -> _Reading:
    targets = Pointing().parse_gold(gold, params, context)
    space = params.gold_space

    def answer(response: str) -> list[Shape]:
        points = answered_points(response, params, context)
        return [Shape("point", "", place) for place in _relative(points, space, context)]

    return _Reading(lambda: [shape for target in targets for shape in _target(target, space, context)], answer)


def _target(target: Target, space: BoxSpace, context: Context) -> Iterable[Shape]:
    """A box, or a point with the circle that counts as hit."""
    x1, y1, x2, y2, radius = target.x1, target.y1, target.x2, target.y2, target.radius
    if not radius:
        return _boxes([Box("", x1, y1, x2, y2)], space, context)
    turns = [2 * pi * n / _CIRCLE for n in range(_CIRCLE)]
    circle = [(x1 + radius * cos(turn), y1 + radius * sin(turn)) for turn in turns]
    (point,), edge = _relative([(x1, y1)], space, context), _relative(circle, space, context)
    return Shape("point", "", point), Shape("polygon", "radius", tuple(number for place in edge for number in place))


def _mask(gold: str, params: MaskParams, context: Context) -> _Reading:
    wanted = Mask().parse_gold(gold, params, context)

    def answer(response: str) -> list[Shape]:
        found = answered_mask(response, wanted, params, context)
        return _covered(found, wanted, mask_iou(found, wanted))

    return _Reading(lambda: _covered(wanted.rle, wanted), answer)


def _covered(rle: Any, raster: MaskGold, overlap: float | None = None) -> list[Shape]:
    """What a mask on gold's raster covers, RLE and polygons alike; nothing for one that covers nothing."""
    checked = run_lengths({"size": [raster.height, raster.width], "counts": rle["counts"].decode()})
    rings = outlines(checked[1], raster.height, raster.width) if checked else []
    if not rings:
        return []
    corners = np.concatenate(rings)
    around = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
    return [Shape("mask", "", around, overlap, rings=tuple(tuple(ring.ravel().tolist()) for ring in rings))]


def _relative(places: Sequence[Sequence[float]], space: BoxSpace, context: Context) -> list[tuple[float, ...]]:
    """Boxes (N, 4) or points (N, 2) of `space` in shares of the first picture. Raises Unscorable without its size."""
    if not places:
        return []
    size = context.image_sizes[0] if context.image_sizes else None
    try:
        shares = to_relative(np.array(places, dtype=np.float64), space, size)
    except ValueError as error:
        raise Unscorable(str(error)) from error
    return [_bounded(row) for row in shares]


def _bounded(numbers: Floats) -> tuple[float, ...]:
    return tuple(np.clip(numbers, -OUTSIDE, 1 + OUTSIDE).tolist())
