"""`grounding`: does the one box of the answer lie where gold has it? Labels do not matter.

Several boxes with labels are detection.py's; gates and values are box_reward.py's, reading is box_text.py's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import ConfigDict, model_validator

from vtriune.data.boxes import BoxSpace
from vtriune.types import ImageSize
from vtriune.verifiers.base import Context, GatedParams, Outcome, Unscorable
from vtriune.verifiers.box_match import giou, iou
from vtriune.verifiers.box_reward import Gate, gated, value_of
from vtriune.verifiers.box_text import Box, read_bare_boxes, read_boxes
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.places import corners_of, gold_text, judged_text, moved

REMEMBERED = 4096
"""Samples, each at one eps, whose ceiling is kept: all G answers to it have the same."""


class GroundingParams(GatedParams):
    """What a box is worth, and in which spaces boxes are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Literal["iou", "giou", "acc"] = "iou"
    """IoU, (1 + GIoU) / 2, or `acc`: 1 if IoU >= 0.5, else 0, whatever eps."""
    gate: Gate = "threshold"
    """What eps (`iou_threshold`), or COCO's ten thresholds, makes of the value: see `box_reward.gated`. With `giou` and
    eps = 0 a box that misses gold is worth up to 0.5 the nearer it is."""
    gold_space: BoxSpace = BoxSpace.RELATIVE_1000
    """What gold's coordinates count, see `BoxSpace`."""
    answer_space: BoxSpace = BoxSpace.RELATIVE_1000
    """Set it by model family: absolute_resized for Qwen2.5-VL."""

    @model_validator(mode="after")
    def _no_idle_gate(self) -> GroundingParams:
        if self.value == "acc" and self.gate != "threshold":
            raise ValueError("value acc has its own threshold, 0.5: leave gate out")
        return self


class Grounding:
    """R_acc of eq. 5 for one box: its value, gated by eps; correct means IoU >= 0.5.

    The answer is what the last `<answer>` after the last `</think>` holds, or all that follows `</think>` if no tag
    does: one `{"bbox_2d": [x1, y1, x2, y2]}` as box_text.py reads it, or, where no such object is, one bare
    `[x1, y1, x2, y2]`. Several different boxes are no answer (0), the same one repeated is one. A box with swapped
    corners, NaN or infinity is none. IoU is computed in gold's space, in floats. R_fmt is eq. 4.

    The report: iou; giou in -1..1 (-1 without a box); iou_50, iou_75, iou_95: 1 if IoU reaches that, else 0; n_pred:
    the different boxes answered; eps, and iou_ceiling: the R_acc that gold's own box reaches at it when it is written
    in whole units of the answer space, which is as exact as answers are; none in relative_1, written in fractions.

    Source: arXiv 2505.18129 eq. 5 and 4; acc@0.5 as for RefCOCO (Yu et al. 2016, arXiv 1608.00272); GIoU: arXiv
    1902.09630.

    >>> verifier, params = Grounding(), GroundingParams()
    >>> context = Context(preset="modern", split="train", threshold=0.5)
    >>> gold = verifier.parse_gold("[0, 0, 100, 100]", params, context)
    >>> outcome = verifier.judge('<answer>{"bbox_2d": [0, 0, 80, 100]}</answer>', gold, params, context)
    >>> outcome.accuracy, outcome.correct, outcome.report["iou_95"]
    (0.8, True, 0.0)
    >>> verifier.judge("[0, 0, 80, 100] or [0, 0, 100, 100]", gold, params, context).reason
    'several boxes in the answer'
    """

    name = "grounding"
    Params = GroundingParams

    def parse_gold(self, gold: str, params: GroundingParams, context: Context) -> Box:
        """Gold's box, in gold's space.

        Raises:
            Unscorable: gold is not one box with an area.
        """
        boxes = _different_boxes(gold_text(gold))
        if len(boxes) != 1:
            raise Unscorable(f"gold {gold[:80]!r} holds {len(boxes)} boxes; write one as [x1, y1, x2, y2]")
        if not (boxes[0].x1 < boxes[0].x2 and boxes[0].y1 < boxes[0].y2):
            raise Unscorable("the gold box has no area; widen it by a pixel")
        return boxes[0]

    def judge(self, response: str, gold: Box, params: GroundingParams, context: Context) -> Outcome:
        """Compare the answered box with gold.

        Raises:
            Unscorable: eps is missing, or the picture's size that the conversion of the answer needs.
        """
        eps = context.threshold
        if eps is None:
            raise Unscorable("grounding needs a threshold eps, and the context has none")
        boxes = answered_boxes(response, params, context)
        accuracy, overlap, generalised = 0.0, 0.0, -1.0
        if len(boxes) == 1:
            box = boxes[0]
            overlap = iou(box, gold)
            generalised = giou(box, gold)
            accuracy = _accuracy(box, gold, overlap, params, eps)
        report = {"iou": overlap, "giou": generalised, "n_pred": float(len(boxes))}
        report |= {f"iou_{least:.0f}": float(overlap >= least / 100) for least in (50, 75, 95)}
        report["eps"] = eps
        if params.answer_space is not BoxSpace.RELATIVE_1:
            report["iou_ceiling"] = _ceiling(gold, params, context.image_sizes, eps)
        reason = ""
        if not accuracy:
            few = "no box found in the answer" if not boxes else "several boxes in the answer"
            reason = f"IoU {overlap:.3g} is worth nothing" if len(boxes) == 1 else few
        return Outcome(accuracy, tag_score(response), correct=overlap >= 0.5, report=report, reason=reason)


def answered_boxes(response: str, params: GroundingParams, context: Context) -> list[Box]:
    """The different boxes of the answer in gold's space; only one alone is judged.

    Raises:
        Unscorable: the picture's size is needed and missing.
    """
    boxes = _different_boxes(judged_text(response))
    corners = moved(corners_of(boxes), params.answer_space, params.gold_space, context.image_sizes)
    return [Box("", *own) for own in corners.tolist()]


def _accuracy(box: Box, gold: Box, overlap: float, params: GroundingParams, eps: float) -> float:
    if params.value == "acc":
        return float(overlap >= 0.5)
    return gated(value_of(params.value, box, gold, overlap), overlap, params.gate, eps)


@lru_cache(maxsize=REMEMBERED)
def _ceiling(gold: Box, params: GroundingParams, sizes: tuple[ImageSize, ...], eps: float) -> float:
    """R_acc of gold's own box, written in whole units of the answer space."""
    written = moved(corners_of([gold]), params.gold_space, params.answer_space, sizes).round()
    box = Box("", *moved(written, params.answer_space, params.gold_space, sizes)[0].tolist())
    return _accuracy(box, gold, iou(box, gold), params, eps)


def _different_boxes(text: str) -> list[Box]:
    boxes = read_boxes(text).boxes or read_bare_boxes(text)
    return list(dict.fromkeys(Box("", *box[1:]) for box in boxes))
