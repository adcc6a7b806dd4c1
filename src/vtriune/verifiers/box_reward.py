"""What matched boxes are worth: a pair's value and gate, an answer's aggregate, in every combination.

Geometry, matching and average precision are box_match.py's; which combination a preset means is the verifier's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from vtriune.verifiers.box_match import (
    AP_THRESHOLDS,
    Pair,
    average_precisions,
    best_matching,
    ciou,
    coco_greedy,
    diou,
    giou,
    label_first,
)
from vtriune.verifiers.box_text import Box

Matching = Literal["label_first", "hungarian", "coco_greedy"]
"""Who is matched with whom among pairs of equal labels that are worth anything: see `box_match.label_first`,
`best_matching` (the greatest sum of worths; no order of boxes changes it) and `coco_greedy`."""

Gate = Literal["threshold", "averaged", "saturating"]
"""What IoU and eps make of a pair's value, see `gated`."""

Value = Literal["iou", "giou", "diou", "ciou", "iou2"]
"""What a pair is worth before its gate, see `value_of`."""

Aggregate = Literal["mean", "soft_f1", "f1", "ap", "completeness", "count_penalty"]
"""What the matches make of the answer, see `box_reward`."""

_COMPLETENESS = 0.3
_SIZE_PENALTY = 0.6

_MATCHINGS: dict[Matching, Callable[[Sequence[Pair]], list[Pair]]] = {
    "label_first": label_first,
    "hungarian": best_matching,
    "coco_greedy": coco_greedy,
}


class Rule(NamedTuple):
    """One combination."""

    matching: Matching
    gate: Gate
    value: Value
    aggregate: Aggregate


def value_of(value: Value, a: Box, b: Box, overlap: float) -> float:
    """A pair's value in 0..1: IoU, IoU^2, or (1 + x) / 2 of a generalised IoU x (CIoU, which can be less than -1,
    then not below 0). The halved ones are worth about 0.5 to boxes that barely meet: gate them.

    >>> value_of("giou", Box("", 0, 0, 2, 2), Box("", 0, 0, 2, 1), overlap=0.5)
    0.75
    """
    if value == "iou":
        return overlap
    if value == "iou2":
        return overlap * overlap
    generalised = {"giou": giou, "diou": diou, "ciou": ciou}[value](a, b)
    return max(0.0, (1 + generalised) / 2)


def gated(value: float, overlap: float, gate: Gate, eps: float) -> float:
    """The worth of a pair of that value and IoU.

    `threshold`: value if IoU >= eps, else 0 (eq. 5). `averaged`: value times the share of COCO's ten thresholds
    0.5, 0.55, ..., 0.95 that IoU reaches; no eps. `saturating`: min(1, value / eps): full worth from eps on, a slope
    instead of a cliff below; with eps = 0 whatever has a value is worth 1.

    >>> [round(gated(0.8, 0.8, gate, eps=0.9), 3) for gate in ("threshold", "averaged", "saturating")]
    [0.0, 0.56, 0.889]
    """
    if gate == "threshold":
        return value if overlap >= eps else 0.0
    if gate == "averaged":
        return value * (bisect_right(AP_THRESHOLDS, overlap) / len(AP_THRESHOLDS))
    return min(1.0, value / eps) if eps else float(value > 0)


def box_reward(
    predicted: Sequence[Box], gold: Sequence[Box], pairs: Sequence[Pair], best: Sequence[float], eps: float, rule: Rule
) -> float:
    """R_acc in 0..1 of an answer to gold that has boxes; 0 for an answer without boxes.

    With S the sum of the worths of the matches and k their number, n = n_pred and m = n_gold, the aggregates are:
        `mean`: S / max(n, m).
        `soft_f1`: 2 S / (n + m).
        `f1`: 2 k / (n + m) with the matches at IoU >= eps (F1@eps); gate `averaged`: the mean of that over COCO's ten
            thresholds. It has no value, nor the gate `saturating`.
        `ap`: COCO's average precision at eps (eq. 7 of the paper with the gate `averaged`), see `average_precisions`.
            Without confidences it depends on the order of boxes, and boxes of labels that gold lacks cost nothing:
            it is here to reproduce, not to recommend. It has its own matching (`coco_greedy`) and no value.
        `completeness`: the released code's score, 0.6 ** |n - m| * (0.7 S / m + 0.3 (1 - (missed + false) / 2)) with
            missed = (m - k) / m and false = (n - k) / n.
        `count_penalty`: 0.6 ** |n - m| * S / max(n, m).

    Args:
        predicted: boxes as answered.
        gold: reference boxes, at least one.
        pairs: `overlaps(predicted, gold)`; boxes that do not overlap are no match, whatever their value.
        best: the IoUs of the best matching at eps, which a report needs anyway.
        eps: eq. 5's, for the gates that have one.
        rule: how.

    >>> cat, dog = Box("cat", 0, 0, 10, 10), Box("dog", 0, 0, 10, 10)
    >>> rule = Rule("hungarian", "threshold", "iou", "count_penalty")
    >>> box_reward([cat, dog], [cat], [(1.0, 0, 0)], [1.0], 0.5, rule)
    0.3
    """
    n, m = len(predicted), len(gold)
    if not n:
        return 0.0
    if rule.aggregate in ("ap", "f1"):
        thresholds = AP_THRESHOLDS if rule.gate == "averaged" else (eps,)
        if rule.aggregate == "ap":
            scores = average_precisions(predicted, gold, pairs, thresholds)
        else:
            match = _MATCHINGS[rule.matching]
            scores = [2 * len(match([pair for pair in pairs if pair[0] >= t])) / (n + m) for t in thresholds]
        return sum(scores) / len(scores)
    plain = rule[:3] == ("hungarian", "threshold", "iou")
    worths = best if plain else _worths(predicted, gold, pairs, eps, rule)
    if rule.aggregate == "soft_f1":
        return 2 * sum(worths) / (n + m)
    mean = sum(worths) / max(n, m)
    if rule.aggregate == "mean":
        return mean
    penalty: float = _SIZE_PENALTY ** abs(n - m)
    if rule.aggregate == "count_penalty":
        return penalty * mean
    k = len(worths)
    complete = 1 - ((m - k) / m + (n - k) / n) / 2
    return penalty * ((1 - _COMPLETENESS) * sum(worths) / m + _COMPLETENESS * complete)


def _worths(
    predicted: Sequence[Box], gold: Sequence[Box], pairs: Sequence[Pair], eps: float, rule: Rule
) -> list[float]:
    """The worths of the matches."""
    worth: dict[tuple[int, int], float] = {}
    ranked: list[Pair] = []
    for overlap, i, j in pairs:
        own = gated(value_of(rule.value, predicted[i], gold[j], overlap), overlap, rule.gate, eps)
        if own > 0:
            worth[i, j] = own
            ranked.append((own if rule.matching == "hungarian" else overlap, i, j))
    return [worth[i, j] for _, i, j in _MATCHINGS[rule.matching](ranked)]
