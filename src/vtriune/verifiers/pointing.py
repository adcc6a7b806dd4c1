"""`pointing`: does the answer point at what gold marks, by boxes or by points with a radius?

Reading points is point_text.py's, reading boxes box_text.py's, the one-to-one matching box_match.py's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, hypot
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vtriune.data.boxes import BoxSpace, extent
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.box_match import Pair, best_matching
from vtriune.verifiers.box_text import read_bare_boxes, read_boxes
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.places import gold_text, judged_text, moved
from vtriune.verifiers.point_text import MAX_POINTS, read_points

_RADIUS = re.compile(r"""["']radius["']\s*+:\s*+([0-9]{1,9}+(?:\.[0-9]{1,9})?)""")


class PointingParams(BaseModel):
    """What a point is worth, and in which spaces points are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Literal["in_box", "gaussian", "linear"] = "in_box"
    """`in_box`: 1 for a hit, else 0. Or by distance d: exp(-(d / sigma)^2), or max(0, 1 - d / diagonal)."""
    sigma: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 0.1
    """Of `gaussian`, as a share of the diagonal."""
    radius: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    """How far from a gold point is a hit, in the unit of gold's space, where gold itself does not say."""
    gold_space: BoxSpace = BoxSpace.RELATIVE_1000
    """What gold's coordinates count, see `BoxSpace`."""
    answer_space: BoxSpace = BoxSpace.RELATIVE_1000
    """Set it by model family: absolute_resized for Qwen2.5-VL."""


@dataclass(frozen=True, slots=True)
class Target:
    """A box, or a point (a box without area) with the radius around it that counts."""

    x1: float
    y1: float
    x2: float
    y2: float
    radius: float = 0.0

    def hit(self, x: float, y: float) -> bool:
        """Within the box, its edges included, or within the radius."""
        if self.radius:
            return self.distance(x, y) <= self.radius
        return self.x1 <= x <= self.x2 and self.y1 <= y <= self.y2

    def distance(self, x: float, y: float) -> float:
        """From the point, or from the centre of the box."""
        return hypot(x - (self.x1 + self.x2) / 2, y - (self.y1 + self.y2) / 2)


class Pointing:
    """Points against targets; correct means that every target is hit by a point of its own and no point is left over.

    Gold is one or several boxes (`{"bbox_2d": [x1, y1, x2, y2]}` or `[x1, y1, x2, y2]`), or one or several points with
    a radius (`{"point_2d": [x, y], "radius": r}`, or as `read_points` reads them and `radius` of the parameters).
    The answer is what the last `<answer>` after the last `</think>` holds, or all that follows `</think>` if no tag
    does, read by `read_points`.

    A point is worth `value`: 1 within its target (ScreenSpot's rule: a click inside the box is correct), or less the
    further it is from the gold point or the centre of the gold box. Distances are taken in gold's space, in shares of
    its diagonal; in a relative space both sides count alike. With one target the accuracy is the worth of the one point
    answered, and several different points are worth 0. With several targets it is 2 * sum of the worths / (n_pred +
    n_gold) over the one-to-one matching with the greatest sum: for `in_box` the F1. R_fmt is eq. 4.

    The report: precision, recall and f1 of the hits, n_pred, n_gold, and distance: from a point to the nearest target,
    in diagonals, at most 1, the mean over the points; 1 without points.

    Source: ScreenSpot (Cheng et al. 2024, arXiv 2401.10935) for clicks; github.com/allenai/molmo for points as tags.

    >>> verifier, params = Pointing(), PointingParams()
    >>> context = Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold("[100, 100, 200, 150]", params, context)
    >>> [verifier.judge(click, gold, params, context).accuracy for click in ("(120, 150)", "(120, 151)")]
    [1.0, 0.0]
    """

    name = "pointing"
    Params = PointingParams

    def parse_gold(self, gold: str, params: PointingParams, context: Context) -> list[Target]:
        """Gold's targets, in gold's space.

        Raises:
            Unscorable: gold has no targets, too many, a box without area or a point without a radius.
        """
        text = gold_text(gold)
        read = read_boxes(text)
        boxes = read.boxes or read_bare_boxes(text)
        if read.dropped or any(box.x1 == box.x2 or box.y1 == box.y2 for box in boxes):
            raise Unscorable("a gold box is broken or has no area; each needs four numbers x1 < x2, y1 < y2")
        targets = [Target(*box[1:]) for box in boxes] or _marked_points(text, params)
        if not targets:
            raise Unscorable(f"no boxes or points in gold {gold[:80]!r}; write [x1, y1, x2, y2] or (x, y)")
        if len(targets) >= MAX_POINTS:
            raise Unscorable(f"gold has {MAX_POINTS} targets or more")
        _diagonal(params, context)
        return targets

    def judge(self, response: str, gold: list[Target], params: PointingParams, context: Context) -> Outcome:
        """Compare the answered points with gold.

        Raises:
            Unscorable: the picture's size is needed and missing.
        """
        points = answered_points(response, params, context)
        diagonal = _diagonal(params, context)
        shares = [[target.distance(x, y) / diagonal for target in gold] for x, y in points]
        hits: list[Pair] = [
            (1.0, i, j) for i, (x, y) in enumerate(points) for j, target in enumerate(gold) if target.hit(x, y)
        ]
        pairs = hits if params.value == "in_box" else _by_distance(shares, params)
        n_pred, n_gold = len(points), len(gold)
        total = sum(worth for worth, _, _ in best_matching(pairs))
        accuracy = 2 * total / (n_pred + n_gold)
        reason = "" if accuracy else "no point found in the answer" if not points else "no point on its target"
        if n_gold == 1 < n_pred:
            accuracy, reason = 0.0, "several points for one target"
        found = len(best_matching(hits))
        report = {
            "precision": found / n_pred if n_pred else 0.0,
            "recall": found / n_gold,
            "f1": 2 * found / (n_pred + n_gold),
            "distance": sum(min(1.0, *row) for row in shares) / n_pred if n_pred else 1.0,
            "n_pred": float(n_pred),
            "n_gold": float(n_gold),
        }
        return Outcome(accuracy, tag_score(response), correct=report["f1"] == 1, report=report, reason=reason)


def answered_points(response: str, params: PointingParams, context: Context) -> list[list[float]]:
    """The different points [x, y] of the answer in gold's space.

    Raises:
        Unscorable: the picture's size is needed and missing.
    """
    places = np.array(read_points(judged_text(response)), dtype=np.float64).reshape(-1, 2)
    points: list[list[float]] = moved(places, params.answer_space, params.gold_space, context.image_sizes).tolist()
    return points


def _marked_points(text: str, params: PointingParams) -> list[Target]:
    points = read_points(text)
    said = [float(found) for found in _RADIUS.findall(text)]
    if said and len(said) != len(points):
        raise Unscorable(f"gold has {len(points)} different points and {len(said)} radii; give each point one")
    radii = said or [params.radius or 0.0] * len(points)
    if any(radius <= 0 for radius in radii):
        raise Unscorable('a gold point has no radius; add "radius" to each or set verifier_parm.radius')
    return [Target(x, y, x, y, radius) for (x, y), radius in zip(points, radii, strict=True)]


def _by_distance(shares: Sequence[Sequence[float]], params: PointingParams) -> list[Pair]:
    worths = [
        (1 - d if params.value == "linear" else exp(-(d / params.sigma) * (d / params.sigma)), i, j)
        for i, row in enumerate(shares)
        for j, d in enumerate(row)
    ]
    return [pair for pair in worths if pair[0] > 0]


def _diagonal(params: PointingParams, context: Context) -> float:
    try:
        return hypot(*extent(params.gold_space, context.image_sizes[0] if context.image_sizes else None))
    except ValueError as error:
        raise Unscorable(str(error)) from error
