"""The released code's detection reward, to the number: how it reads, matches and blends, its faults included.

Only the preset `official_code` speaks of it; everything measured beside the reward is detection.py's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.base import Share
from vtriune.verifiers.box_match import AP_THRESHOLDS, average_precisions, iou, overlaps
from vtriune.verifiers.box_text import Box, BoxList, make_box

_SIZE_PENALTY = 0.6

_SCORES = ("iou_score_max_iou", "iou_score_max_label", "map_score", "map50_score", "map75_score")
RELEASED_FIGURES = (
    "size_penalty",
    *(f"{kind}_{score}" for kind in ("pure", "weighted") for score in _SCORES),
    *(
        f"report_iou_{match}_match_{figure}"
        for match in ("50_iou", "95_iou", "50_label", "75_label", "95_label", "99_label")
        for figure in ("pure", "precision", "recall")
    ),
)
"""The names of `released_figures`."""


class DetRewardRatio(BaseModel):
    """Weights of the five scores of the blend, and the share of completeness in the first two."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iou_max_label_first: Share = 0.0
    """Matches sought gold box by gold box among the boxes of its label."""
    iou_max_iou_first: Share = 0.0
    """Matches sought by IoU alone, labels compared afterwards (as far as the released code gets it right)."""
    iou_completeness: Share = 0.0
    """Not a score of its own: the weight, within either of the above, of 1 - (missed + false) / 2."""
    map: Share = 0.0
    """Average precision, mean over IoU 0.5 to 0.95."""
    map50: Share = 0.0
    """Average precision at IoU 0.5."""
    map75: Share = 0.0
    """Average precision at IoU 0.75."""

    def total(self) -> float:
        """The sum that the blend is divided by."""
        return self.iou_max_iou_first + self.iou_max_label_first + self.map + self.map50 + self.map75


def read_boxes_as_released(text: str) -> BoxList:
    """What the released code's reader makes of a response or of gold, faults included: the boxes it finds, or none.

    Of the first `<answer>` (drafts too) the content is lower-cased, every apostrophe becomes a quote and every
    backslash goes; a text not ending in "]" is cut at the last "}," before JSON reads it. A box needs a label and
    unswapped corners, and its corners must not have occurred before, whatever the label.

    One difference: a coordinate too large for a float makes the released code crash (all rewards of the answer 0);
    here the box is dropped.

    >>> read_boxes_as_released("<answer>[{'bbox_2d': [1, 2, 3, 4], 'label': 'Cat'}]</answer>").boxes
    [Box(label='cat', x1=1.0, y1=2.0, x2=3.0, y2=4.0)]
    >>> read_boxes_as_released("<answer>[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat's eye'}]</answer>").boxes
    []
    """
    rest = text.partition("<answer>")[2]
    content, closed, _ = rest.partition("</answer>")
    if not closed or not content.strip():
        return BoxList([])
    content = content.strip().lower().replace("[[", "[").replace("]]", "]")
    if not content.endswith("]"):
        content = content.rsplit("},", 1)[0] + "}]"
    try:
        items = json.loads(content.replace("'", '"').replace("\\", ""))
    except (ValueError, RecursionError):
        return BoxList([])
    boxes: list[Box] = []
    dropped = 0
    seen: set[tuple[float, ...]] = set()
    for item in items if isinstance(items, list) else ():
        match item:
            case {"bbox_2d": [int() | float(), int() | float(), int() | float(), int() | float()], "label": str(label)}:
                box = make_box(label, item["bbox_2d"])
            case _:
                box = None
        if box is None:
            dropped += 1
        elif box[1:] not in seen:
            seen.add(box[1:])
            boxes.append(box)
    return BoxList(boxes, dropped)


def released_accuracy(predicted: Sequence[Box], gold: Sequence[Box], ratio: DetRewardRatio, eps: float) -> float:
    """R_acc of the released code: sum of w_k * s_k / sum of w_k, times 0.6 ** |n_pred - n_gold|; 0 without predictions.

    s_k is, for the two matchers, (1 - c) * sum of matched IoU / n_gold + c * (1 - (missed + false) / 2) with
    c = `iou_completeness`, missed = share of gold not matched, false = share of predictions not matched; for the
    others average precision at 0.5..0.95, at 0.5 and at 0.75.

    Args:
        predicted: boxes of `read_boxes_as_released`, in the space of gold.
        gold: reference boxes, at least one.
        ratio: the weights, at least one of them above 0.
        eps: least IoU of a match.

    >>> cat = Box("cat", 0, 0, 10, 10)
    >>> released_accuracy([cat], [cat, Box("cat", 20, 0, 30, 10)], DetRewardRatio(iou_max_label_first=1.0), 0.5)
    0.3
    """
    if not predicted:
        return 0.0

    def score(matched: list[float]) -> float:
        return _score(matched, len(predicted), len(gold), ratio.iou_completeness)

    blend = 0.0
    if ratio.iou_max_label_first:
        blend += ratio.iou_max_label_first * score(_label_first(predicted, gold, eps))
    if ratio.iou_max_iou_first:
        blend += ratio.iou_max_iou_first * score(_iou_first(predicted, gold, eps))
    if ratio.map or ratio.map50 or ratio.map75:
        ap = average_precisions(predicted, gold, overlaps(predicted, gold))
        blend += ratio.map * sum(ap) / len(AP_THRESHOLDS) + ratio.map50 * ap[0] + ratio.map75 * ap[5]
    return _SIZE_PENALTY ** abs(len(predicted) - len(gold)) * blend / ratio.total()


def released_figures(
    predicted: Sequence[Box], gold: Sequence[Box], ratio: DetRewardRatio, eps: float
) -> dict[str, float]:
    """All that the released server tells of an answer beside its rewards, under its names; zeros without predictions.

    `pure_*` are the five scores of the blend, `weighted_*` the same times `size_penalty`;
    `report_iou_<eps>_<matcher>_*` the sum of matched IoU / n_gold, the share of predictions and the share of gold
    that are matched.

    >>> cat = Box("cat", 0, 0, 10, 10)
    >>> figures = released_figures([cat], [cat, Box("cat", 20, 0, 30, 10)], DetRewardRatio(map50=1.0), 0.5)
    >>> figures["size_penalty"], [figures[f"report_iou_50_label_match_{one}"] for one in ("precision", "recall")]
    (0.6, [1.0, 0.5])
    """
    if not predicted:
        return dict.fromkeys(RELEASED_FIGURES, 0.0)
    penalty = _SIZE_PENALTY ** abs(len(predicted) - len(gold))
    ap = average_precisions(predicted, gold, overlaps(predicted, gold))
    pure = {
        name: _score(match(predicted, gold, eps), len(predicted), len(gold), ratio.iou_completeness)
        for name, match in (("iou_score_max_iou", _iou_first), ("iou_score_max_label", _label_first))
    }
    pure |= {"map_score": sum(ap) / len(AP_THRESHOLDS), "map50_score": ap[0], "map75_score": ap[5]}
    figures = {"size_penalty": penalty}
    figures |= {f"pure_{name}": score for name, score in pure.items()}
    figures |= {f"weighted_{name}": score * penalty for name, score in pure.items()}
    for name, match, percents in (("iou", _iou_first, (50, 95)), ("label", _label_first, (50, 75, 95, 99))):
        for percent in percents:
            matched = match(predicted, gold, percent / 100)
            figures[f"report_iou_{percent}_{name}_match_pure"] = sum(matched) / len(gold)
            figures[f"report_iou_{percent}_{name}_match_precision"] = len(matched) / len(predicted)
            figures[f"report_iou_{percent}_{name}_match_recall"] = len(matched) / len(gold)
    return figures


def _score(matched: Sequence[float], n_pred: int, n_gold: int, completeness: float) -> float:
    missed, false = (n_gold - len(matched)) / n_gold, (n_pred - len(matched)) / n_pred
    return (1 - completeness) * sum(matched) / n_gold + completeness * (1 - (missed + false) / 2)


def _label_first(predicted: Sequence[Box], gold: Sequence[Box], eps: float) -> list[float]:
    """IoUs matched: each gold box in turn takes the free box of its label that it overlaps most (of equals the first).

    FAULT kept, since its verdicts are real: the result depends on the order of gold.
    """
    free = list(predicted)
    matched: list[float] = []
    for target in gold:
        found = max(((iou(box, target), -k) for k, box in enumerate(free) if box.label == target.label), default=None)
        if found is not None and found[0] >= eps:
            matched.append(found[0])
            del free[-found[1]]
    return matched


def _iou_first(predicted: Sequence[Box], gold: Sequence[Box], eps: float) -> list[float]:
    """IoUs matched: the greatest IoU left, as long as it reaches eps, counted if the labels of its pair agree, else 0.

    FAULT kept, since its verdicts are real: the loop variables are reused, so that the pair is always the last box
    left of either list, whichever boxes have that IoU. A perfect answer in another order can score 0, and disjoint
    boxes 1.
    """
    # best[i][j]: the greatest IoU among the first i + 1 predicted and the first j + 1 gold boxes.
    best: list[list[float]] = []
    for i, box in enumerate(predicted):
        row: list[float] = []
        for j, target in enumerate(gold):
            above = best[i - 1][j] if i else 0.0
            row.append(max(iou(box, target), above, row[-1] if row else 0.0))
        best.append(row)
    matched: list[float] = []
    for k in range(1, min(len(predicted), len(gold)) + 1):
        greatest = best[-k][len(gold) - k]
        if greatest < eps:
            break
        matched.append(greatest if predicted[-k].label == gold[-k].label else 0.0)
    return matched
