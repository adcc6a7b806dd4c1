"""`detection`: do the answered boxes lie where gold has them, under the same labels? One class, three presets.

Reading text is box_text.py's job, geometry box_match.py's, what matches are worth box_reward.py's; the released code's
own ways are in released_detection.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from pydantic import ConfigDict, model_validator

from vtriune.data.boxes import BoxSpace
from vtriune.types import ImageSize, Preset
from vtriune.verifiers.base import Context, GatedParams, Outcome, Unscorable
from vtriune.verifiers.box_match import AP_THRESHOLDS, Pair, average_precisions, matched_ious, overlaps
from vtriune.verifiers.box_reward import Aggregate, Gate, Matching, Rule, Value, box_reward
from vtriune.verifiers.box_text import MAX_BOXES, Box, BoxList, read_boxes
from vtriune.verifiers.format import released_detection_score, tag_score
from vtriune.verifiers.places import gold_text, judged_text, scales
from vtriune.verifiers.released_detection import (
    DetRewardRatio,
    read_boxes_as_released,
    released_accuracy,
    released_figures,
)

REMEMBERED = 4096
"""Samples, each at one eps, whose ceiling is kept: all G answers to it have the same."""

_REPORTED = {0.5: "50", 0.75: "75", 0.95: "95", 0.99: "99"}
_NOT_RELEASED = ("matching", "gate", "value", "aggregate", "empty_gold")
_MAP75 = AP_THRESHOLDS.index(0.75)


class DetectionParams(GatedParams):
    """A detection row's `verifier_parm`, and the box spaces it leaves unsaid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    det_verifier_normalized: bool = False
    """The released code's way to say that answers are in pixels of the resized picture (Qwen2.5-VL)."""
    det_reward_ratio: DetRewardRatio = DetRewardRatio()
    """The blend of `official_code`; the other presets have none."""
    gold_space: BoxSpace = BoxSpace.RELATIVE_1000
    """What gold's coordinates count, see `BoxSpace`."""
    answer_space: BoxSpace | None = None
    """Set it by model family. None: absolute_resized if `det_verifier_normalized`, else relative_1000."""
    matching: Matching | None = None
    """Who is matched with whom. None: hungarian. (`official_code` has its own; so for the four below.)"""
    gate: Gate | None = None
    """What eps makes of a match's value. None: threshold, eq. 5; `iou_threshold` says whether it is scheduled."""
    value: Value | None = None
    """What a match is worth. None: its IoU."""
    aggregate: Aggregate | None = None
    """What the matches make of the answer. None: mean in `paper`, soft_f1 in `modern`."""
    released_report: bool = False
    """`official_code`: report what the released server tells of an answer, too, as `released.<name>`."""
    empty_gold: Literal["empty_is_right", "unscorable"] | None = None
    """Gold `[]`: the answer `[]` is worth 1 and anything else 0 (None means that, too), or there is no verdict."""

    @model_validator(mode="after")
    def _no_idle_parts(self) -> DetectionParams:
        counted = self.aggregate in ("f1", "ap")
        if counted and (self.gate == "saturating" or self.value not in (None, "iou")):
            raise ValueError(f"aggregate {self.aggregate} counts hits: value must be iou, gate threshold or averaged")
        if self.aggregate == "ap" and self.matching not in (None, "coco_greedy"):
            raise ValueError("aggregate ap has its own matching: leave it out or set it to coco_greedy")
        return self

    def rule(self, preset: Preset) -> Rule:
        """The combination that holds in `paper` or `modern`."""
        own: Aggregate = "mean" if preset == "paper" else "soft_f1"
        return Rule(self.matching or "hungarian", self.gate or "threshold", self.value or "iou", self.aggregate or own)

    @property
    def answered_in(self) -> BoxSpace:
        """The space of the answers, however it was said."""
        normalized = BoxSpace.ABSOLUTE_RESIZED if self.det_verifier_normalized else BoxSpace.RELATIVE_1000
        return self.answer_space or normalized


class Detection:
    """R_acc of eq. 5-6 for boxes; correct means an F1 of 1 at IoU 0.5.

    A match is a pair of boxes with equal labels and IoU >= eps (`Context.threshold`); no box is in two. IoU is computed
    in gold's space, in floats, answers converted and not rounded.

    Presets:
        `paper`: sum of the IoU of the matches / max(n_pred, n_gold); for one box that is eq. 5: IoU if IoU >= eps,
            else 0. The paper leaves open who is matched with whom: here the matching with the greatest sum. R_fmt is
            eq. 4.
        `modern`: 2 * sum of the IoU of the matches / (n_pred + n_gold), same matching, which no order of boxes
            changes. R_fmt is eq. 4.
        Other matchings, gates, values and aggregates than these can be set in either, see box_reward.py.
        `official_code`: the blend of the released code, see `released_accuracy`, its real verdicts kept as they are
            (faulty matchers, unreadable labels with an apostrophe, the first `<answer>` graded even in a draft,
            `[]` worth 0, answers in pixels truncated to whole thousandths, taken as they stand where the picture's
            size is unknown). What there is a crash or a silent 0 is unscorable here: gold that cannot be read or has
            no boxes, no weight above 0, a parameter that it does not know. So are swapped corners in gold, there
            dropped. R_fmt is 0 or 1.

    In `paper` and `modern` the answer is what the last `<answer>` after the last `</think>` holds, or all that
    follows `</think>` if no tag does. Labels are equal up to case and white space. `[]` is right (1) if gold is `[]`;
    an answer without any list is 0. In an answer, boxes with swapped corners, NaN or infinity are dropped and counted;
    in gold they make the sample unscorable, as does a gold box without area, which nothing can match.
    A sample with several pictures has its boxes in the first.

    The report, the same for all presets, of the boxes that the preset read:
        iou_50, iou_75, iou_95, iou_99: `paper`'s R_acc at that eps, whatever the schedule.
        precision_*, recall_*: matches at that eps / n_pred, / n_gold; f1 at 0.5.
        mean_iou: over the pairs of the best matching of all that overlap, 0 without such.
        map, map50, map75: as pycocotools, see `average_precisions` for what that means without confidences.
        n_pred, n_gold, dropped_boxes: counts.
        Where nothing is to be found and `[]` is the answer, all but the counts are 1.
        eps, and iou_ceiling: the R_acc that gold's own boxes reach at it when they are written in whole units of the
            answer space, which is as exact as answers are; none in relative_1, which is written in fractions.

    Source: arXiv 2505.18129 eq. 4-7; github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server.

    >>> verifier, params = Detection(), DetectionParams()
    >>> context = Context(preset="paper", split="train", threshold=0.5)
    >>> gold = verifier.parse_gold("[{'bbox_2d': [0, 0, 100, 100], 'label': 'cat'}]", params, context)
    >>> answer = '<think>.</think><answer>[{"bbox_2d": [0, 0, 80, 100], "label": "Cat"}]</answer>'
    >>> outcome = verifier.judge(answer, gold, params, context)
    >>> outcome.accuracy, outcome.format, outcome.correct, outcome.report["iou_75"], outcome.report["map75"]
    (0.8, 1.0, True, 0.8, 1.0)
    """

    name = "detection"
    Params = DetectionParams

    def parse_gold(self, gold: str, params: DetectionParams, context: Context) -> list[Box]:
        """Gold's boxes, in gold's space.

        Raises:
            Unscorable: gold is no list of sound boxes, or `official_code` has nothing to blend or to find.
        """
        if context.preset == "official_code":
            foreign = [part for part in _NOT_RELEASED if getattr(params, part) is not None]
            if foreign:
                raise Unscorable(f"official_code has no {', '.join(foreign)}; remove it or use the preset modern")
            if not params.det_reward_ratio.total():
                raise Unscorable("official_code needs a weight above 0 in verifier_parm.det_reward_ratio")
            found = read_boxes_as_released(gold)
        else:
            found = _plain_labels(read_boxes(gold_text(gold)))
            if any(box.x1 == box.x2 or box.y1 == box.y2 for box in found.boxes):
                raise Unscorable("a gold box has no area; remove it or widen it by a pixel")
        if found.dropped:
            raise Unscorable(
                f"{found.dropped} of the gold boxes are broken; each needs four finite numbers x1 <= x2, y1 <= y2"
            )
        if not found.boxes and not found.empty:
            wanted = 'as <answer>[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]</answer>'
            raise Unscorable(f"no boxes found in gold {gold[:80]!r}; write them {wanted}")
        if found.empty and params.empty_gold == "unscorable":
            raise Unscorable("gold is [], and empty_gold is unscorable")
        if len(found.boxes) >= MAX_BOXES:
            raise Unscorable(f"gold has {MAX_BOXES} boxes or more")
        return found.boxes

    def judge(self, response: str, gold: list[Box], params: DetectionParams, context: Context) -> Outcome:
        """Compare the answered boxes with gold.

        Raises:
            Unscorable: eps is missing, or a picture's size that the conversion of the answer needs.
        """
        eps = context.threshold
        if eps is None:
            raise Unscorable("detection needs a threshold eps, and the context has none")
        answer = read_answer(response, params, context)
        predicted = answer.boxes
        pairs = overlaps(predicted, gold)
        thresholds = sorted({0.0, eps, *_REPORTED})
        ious = dict(zip(thresholds, matched_ious(pairs, thresholds), strict=True))
        official = context.preset == "official_code"
        layout = released_detection_score(response, len(predicted)) if official else tag_score(response)
        accuracy = float(answer.empty)
        if gold:
            accuracy = _accuracy(predicted, gold, pairs, ious[eps], params, context.preset, eps)
        report = _report(answer, gold, pairs, ious)
        report["eps"] = eps
        ceiling = _ceiling(tuple(gold), params, context.preset, context.image_sizes, eps)
        if ceiling is not None:
            report["iou_ceiling"] = ceiling
        if official and params.released_report:
            figures = released_figures(predicted, gold, params.det_reward_ratio, eps)
            report |= {f"released.{name}": value for name, value in figures.items()}
        reason = ""
        if not accuracy:
            found = predicted or answer.empty
            bound = f" at IoU {eps:g}" if params.gate in (None, "threshold") else ""
            reason = f"no match{bound}" if found else "no boxes found in the answer"
        return Outcome(accuracy, layout, correct=report["f1"] == 1, report=report, reason=reason)


def _accuracy(
    predicted: Sequence[Box],
    gold: Sequence[Box],
    pairs: Sequence[Pair],
    best: Sequence[float],
    params: DetectionParams,
    preset: Preset,
    eps: float,
) -> float:
    """R_acc against gold that has boxes; `best` are the IoUs of the best matching at eps."""
    if preset == "official_code":
        return released_accuracy(predicted, gold, params.det_reward_ratio, eps)
    return box_reward(predicted, gold, pairs, best, eps, params.rule(preset))


def read_answer(response: str, params: DetectionParams, context: Context) -> BoxList:
    """The answered boxes in gold's space."""
    official = context.preset == "official_code"
    answer = read_boxes_as_released(response) if official else _plain_labels(read_boxes(judged_text(response)))
    boxes = _in_gold_space(answer.boxes, params, context.preset, context.image_sizes)
    return BoxList(boxes, answer.dropped, answer.empty)


def _answer_space(params: DetectionParams, preset: Preset, sizes: Sequence[ImageSize]) -> BoxSpace:
    unknown = preset == "official_code" and not sizes and params.answer_space is None
    return params.gold_space if unknown else params.answered_in


def _in_gold_space(boxes: list[Box], params: DetectionParams, preset: Preset, sizes: Sequence[ImageSize]) -> list[Box]:
    space = _answer_space(params, preset, sizes)
    boxes = _moved(boxes, space, params.gold_space, sizes)
    if preset == "official_code" and space is not params.gold_space:
        boxes = [Box(label, *(float(math.trunc(one)) for one in corners)) for label, *corners in boxes]
    return boxes


def _moved(boxes: Sequence[Box], source: BoxSpace, target: BoxSpace, sizes: Sequence[ImageSize]) -> list[Box]:
    if source is target:
        return list(boxes)
    width, height, wide, high = scales(source, target, sizes)
    return [
        Box(label, x1 / width * wide, y1 / height * high, x2 / width * wide, y2 / height * high)
        for label, x1, y1, x2, y2 in boxes
    ]


@lru_cache(maxsize=REMEMBERED)
def _ceiling(
    gold: tuple[Box, ...], params: DetectionParams, preset: Preset, sizes: tuple[ImageSize, ...], eps: float
) -> float | None:
    """R_acc of gold's own boxes, written in whole units of the answer space."""
    space = _answer_space(params, preset, sizes)
    if space is BoxSpace.RELATIVE_1:
        return None
    if not gold:
        return 1.0
    written = [
        Box(label, *(float(round(one)) for one in corners))
        for label, *corners in _moved(gold, params.gold_space, space, sizes)
    ]
    read = _in_gold_space(written, params, preset, sizes)
    pairs = overlaps(read, gold)
    return _accuracy(read, gold, pairs, matched_ious(pairs, [eps])[0], params, preset, eps)


def _plain_labels(found: BoxList) -> BoxList:
    """Labels in lower case, white space single."""
    boxes = [Box(" ".join(box[0].casefold().split()), *box[1:]) for box in found.boxes]
    return BoxList(boxes, found.dropped, found.empty)


def _report(
    answer: BoxList, gold: Sequence[Box], pairs: Sequence[Pair], ious: Mapping[float, Sequence[float]]
) -> dict[str, float]:
    n_pred, n_gold = len(answer.boxes), len(gold)
    nothing = float(answer.empty and not gold)
    most = max(n_pred, n_gold)
    report: dict[str, float] = {}
    for eps, name in _REPORTED.items():
        matched = ious[eps]
        report["iou_" + name] = sum(matched) / most if most else nothing
        report["precision_" + name] = len(matched) / n_pred if n_pred else nothing
        report["recall_" + name] = len(matched) / n_gold if n_gold else nothing
    report["f1"] = 2 * len(ious[0.5]) / (n_pred + n_gold) if most else nothing
    report["mean_iou"] = sum(ious[0.0]) / len(ious[0.0]) if ious[0.0] else nothing
    ap = average_precisions(answer.boxes, gold, pairs) if gold else [nothing] * len(AP_THRESHOLDS)
    report["map"] = sum(ap) / len(ap)
    report["map50"] = ap[0]
    report["map75"] = ap[_MAP75]
    report["n_pred"] = float(n_pred)
    report["n_gold"] = float(n_gold)
    report["dropped_boxes"] = float(answer.dropped)
    return report
