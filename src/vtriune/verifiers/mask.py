"""`mask`: does the answered mask cover what gold's covers? Masks are RLE or polygons.

Reading and bounding them is mask_text.py's, the IoU pycocotools'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from vtriune.data.boxes import BoxSpace
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.mask_text import MAX_PIXELS, NotAMask, polygons, rasterise, read_json, run_lengths
from vtriune.verifiers.places import gold_text, judged_text, moved


class MaskParams(BaseModel):
    """In which spaces polygons are written; RLE is always in pixels of its own size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gold_space: BoxSpace = BoxSpace.ABSOLUTE_ORIGINAL
    """COCO's polygons are in pixels of the picture as stored."""
    answer_space: BoxSpace = BoxSpace.RELATIVE_1000
    """Set it by model family: absolute_resized for Qwen2.5-VL."""


@dataclass(frozen=True, slots=True)
class MaskGold:
    """Gold's mask as pycocotools' RLE, and the raster that both masks are drawn on."""

    rle: Any
    height: int
    width: int


class Mask:
    """R_acc is the IoU of the two masks in pixels; correct means IoU >= 0.5.

    A mask is `{"size": [h, w], "counts": ...}` with COCO's counts, compressed or as a list, or polygons as COCO's
    `segmentation` has them (see `mask_text.polygons`): several polygons are the parts of one mask. It stands in the
    last `<answer>` after the last `</think>`, or in all that follows `</think>` if no tag does. An answer that is not
    one sound mask is 0, as is RLE of another size than gold's. R_fmt is eq. 4.

    Both masks are drawn on gold's raster: the size of its RLE, or for polygons the picture as stored. Polygons are
    moved there from their space, by the size of the sample's first picture, which they need unless their space is
    relative and gold is RLE. What lies outside the picture is moved to its edge.

    The report: iou; area: the share of the raster that the answer covers.

    Source: COCO's mask format and IoU, github.com/cocodataset/cocoapi, PythonAPI/pycocotools/mask.py.

    >>> verifier, params = Mask(), MaskParams()
    >>> context = Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold('{"size": [4, 4], "counts": [0, 8, 8]}', params, context)
    >>> half = verifier.judge('{"size": [4, 4], "counts": [0, 4, 12]}', gold, params, context)
    >>> same = verifier.judge("<answer>[[0, 0, 500, 0, 500, 1000, 0, 1000]]</answer>", gold, params, context)
    >>> half.accuracy, half.report["area"], same.accuracy
    (0.5, 0.25, 1.0)
    """

    name = "mask"
    Params = MaskParams

    def parse_gold(self, gold: str, params: MaskParams, context: Context) -> MaskGold:
        """Gold's mask.

        Raises:
            Unscorable: gold is no sound mask or covers nothing, or the picture's size is needed and missing.
        """
        from pycocotools import mask  # noqa: PLC0415 - only this verifier needs it

        try:
            value = read_json(gold_text(gold))
            runs = run_lengths(value)
            if runs is not None:
                height, width = runs[0]
            elif context.image_sizes:
                width, height = context.image_sizes[0].original
            else:
                raise Unscorable("gold's polygons need the size of the picture, and it is not known; write gold as RLE")
            if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
                raise Unscorable(f"a mask needs a picture of 1 to {MAX_PIXELS} pixels, not {width} x {height}")
            found = MaskGold(_drawn(value, params.gold_space, context, height, width), height, width)
        except NotAMask as error:
            raise Unscorable(f"gold {gold[:80]!r}: {error}") from error
        if not mask.area(found.rle):
            raise Unscorable("gold's mask covers nothing")
        return found

    def judge(self, response: str, gold: MaskGold, params: MaskParams, context: Context) -> Outcome:
        """Compare the answered mask with gold's.

        Raises:
            Unscorable: the picture's size is needed for the answer's polygons and missing.
        """
        from pycocotools import mask  # noqa: PLC0415 - only this verifier needs it

        overlap = area = 0.0
        reason = ""
        try:
            answer = read_answer(response, gold, params, context)
            overlap = iou(answer, gold)
            area = float(mask.area(answer)) / (gold.height * gold.width)
            reason = "" if overlap else "no overlap"
        except NotAMask as error:
            reason = str(error)
        report = {"iou": overlap, "area": area}
        return Outcome(overlap, tag_score(response), correct=overlap >= 0.5, report=report, reason=reason)


def read_answer(response: str, gold: MaskGold, params: MaskParams, context: Context) -> Any:
    """The answered mask on gold's raster, as pycocotools' RLE.

    Raises:
        NotAMask: there is no sound one, or one of another size.
        Unscorable: the picture's size is needed for its polygons and missing.
    """
    return _drawn(read_json(judged_text(response)), params.answer_space, context, gold.height, gold.width)


def iou(answer: Any, gold: MaskGold) -> float:
    """The IoU in pixels of gold's mask and an answer as `read_answer` gives it."""
    from pycocotools import mask  # noqa: PLC0415 - only this verifier needs it

    return float(mask.iou([answer], [gold.rle], [0])[0, 0])


def _drawn(value: Any, space: BoxSpace, context: Context, height: int, width: int) -> Any:
    """pycocotools' RLE of a mask on a raster of that size."""
    from pycocotools import mask  # noqa: PLC0415 - only this verifier needs it

    runs = run_lengths(value)
    if runs is None:
        relative = BoxSpace.RELATIVE_1
        shapes = [moved(shape, space, relative, context.image_sizes) for shape in polygons(value)]
        return rasterise([shape * np.array((width, height)) for shape in shapes], height, width)
    if runs[0] != (height, width):
        raise NotAMask(f"the mask's size is {list(runs[0])}, not {[height, width]}")
    return mask.frPyObjects({"size": [height, width], "counts": runs[1]}, height, width)
