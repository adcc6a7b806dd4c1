"""Boxes against boxes: IoU and its generalisations, one-to-one matching inside a label, COCO's average precision.

Plain Python, since answers hold few boxes: arrays would cost more than they save. No text, no rewards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from math import atan2, pi
from operator import itemgetter

import numpy as np

from vtriune.verifiers.box_text import Box

AP_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""COCO's ten IoU thresholds: `map` is their mean, `map50` the first, `map75` the sixth."""

_RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100
"""Of one label, as COCO: later ones do not count for average precision."""

Pair = tuple[float, int, int]
"""(IoU, index of the predicted box, index of the gold box)."""


_predicted: Callable[[Pair], int] = itemgetter(1)
_wanted: Callable[[Pair], int] = itemgetter(2)


def iou(a: Box, b: Box) -> float:
    """Intersection over union in 0..1, labels aside; 0 for boxes without area.

    >>> iou(Box("", 0, 0, 2, 2), Box("", 1, 0, 3, 2))
    0.3333333333333333
    """
    _, ax1, ay1, ax2, ay2 = a
    _, bx1, by1, bx2, by2 = b
    width = (ax2 if ax2 < bx2 else bx2) - (ax1 if ax1 > bx1 else bx1)
    height = (ay2 if ay2 < by2 else by2) - (ay1 if ay1 > by1 else by1)
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    if inter == 0:  # smaller than the smallest float
        return 0.0
    return inter / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter)


def giou(a: Box, b: Box) -> float:
    """IoU - (share of the hull that neither box covers), in -1..1 (Rezatofighi et al. 2019, arXiv 1902.09630).

    >>> giou(Box("", 0, 0, 1, 1), Box("", 3, 0, 4, 1))
    -0.5
    """
    overlap = iou(a, b)
    width, height = _hull(a, b)
    hull = width * height
    union = ((a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1)) / (1 + overlap)
    return overlap - max(0.0, hull - union) / hull if hull else overlap


def diou(a: Box, b: Box) -> float:
    """IoU - (distance of the centres / diagonal of the hull)^2, in -1..1 (Zheng et al. 2020, arXiv 1911.08287).

    >>> diou(Box("", 0, 0, 1, 1), Box("", 3, 0, 4, 1)) == -9 / 17
    True
    """
    width, height = _hull(a, b)
    diagonal = width * width + height * height
    dx, dy = (a.x1 + a.x2 - b.x1 - b.x2) / 2, (a.y1 + a.y2 - b.y1 - b.y2) / 2
    return iou(a, b) - ((dx * dx + dy * dy) / diagonal if diagonal else 0.0)


def ciou(a: Box, b: Box) -> float:
    """DIoU - alpha v, which also compares the aspect ratios; in -1.5..1 (Zheng et al. 2020, arXiv 1911.08287).

    v = (2 / pi * (atan(w_a / h_a) - atan(w_b / h_b)))^2 and alpha = v / (1 - IoU + v).

    >>> ciou(Box("", 0, 0, 4, 4), Box("", 1, 1, 3, 3)) == diou(Box("", 0, 0, 4, 4), Box("", 1, 1, 3, 3)) == 0.25
    True
    """
    turn = 2 / pi * (atan2(a.x2 - a.x1, a.y2 - a.y1) - atan2(b.x2 - b.x1, b.y2 - b.y1))
    v = turn * turn
    return diou(a, b) - (v * v / (1 - iou(a, b) + v) if v else 0.0)


def _hull(a: Box, b: Box) -> tuple[float, float]:
    """Width and height of the smallest box around both."""
    return max(a.x2, b.x2) - min(a.x1, b.x1), max(a.y2, b.y2) - min(a.y1, b.y1)


def overlaps(predicted: Sequence[Box], gold: Sequence[Box]) -> list[Pair]:
    """Every pair of equal labels that overlaps, in the order of the predicted boxes, then of gold."""
    by_label: dict[str, list[tuple[int, Box]]] = {}
    for j, box in enumerate(gold):
        by_label.setdefault(box.label, []).append((j, box))
    return [
        (overlap, i, j)
        for i, box in enumerate(predicted)
        for j, other in by_label.get(box.label, ())
        if (overlap := iou(box, other)) > 0
    ]


def best_matching(pairs: Sequence[Pair]) -> list[Pair]:
    """The one-to-one choice among `pairs` with the greatest sum of IoU, and the most pairs among such.

    It does not depend on the order of the boxes.
    """
    # If each box of one side can have the one that it overlaps most, no other choice is worth more.
    for own, other in ((_predicted, _wanted), (_wanted, _predicted)):
        best: dict[int, Pair] = {}
        for pair in pairs:
            if own(pair) not in best or pair[0] > best[own(pair)][0]:
                best[own(pair)] = pair
        if len(set(map(other, best.values()))) == len(best):
            return [pair for pair in pairs if best[own(pair)] is pair]
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - half a second, and `vtriune --help` needs none

    row_of, column_of = ({box: n for n, box in enumerate(set(map(side, pairs)))} for side in (_predicted, _wanted))
    weights = np.zeros((len(row_of), len(column_of)))
    for overlap, i, j in pairs:
        # The bonus decides ties only: it is smaller than any difference of IoU that means something.
        weights[row_of[i], column_of[j]] = overlap + 1e-9
    chosen = set(zip(*(side.tolist() for side in linear_sum_assignment(weights, maximize=True)), strict=True))
    return [pair for pair in pairs if (row_of[pair[1]], column_of[pair[2]]) in chosen]


def label_first(pairs: Sequence[Pair]) -> list[Pair]:
    """Each gold box in turn takes the free predicted box it overlaps most, of equals the first, as the released code.

    Depends on the order of gold.

    >>> label_first([(0.9, 0, 0), (0.8, 0, 1), (0.7, 1, 0)])
    [(0.9, 0, 0)]
    """
    rivals: dict[int, list[Pair]] = {}
    for pair in pairs:
        rivals.setdefault(pair[2], []).append(pair)
    taken: set[int] = set()
    chosen: list[Pair] = []
    for _, candidates in sorted(rivals.items()):
        free = [pair for pair in candidates if pair[1] not in taken]
        if free:
            chosen.append(max(free, key=lambda pair: (pair[0], -pair[1])))
            taken.add(chosen[-1][1])
    return chosen


def coco_greedy(pairs: Sequence[Pair]) -> list[Pair]:
    """Each predicted box in turn takes the free gold box it overlaps most, of equals the last, as pycocotools.

    Depends on the order of the predicted boxes.

    >>> coco_greedy([(0.9, 0, 0), (0.8, 0, 1), (0.7, 1, 0), (0.6, 1, 1)])
    [(0.9, 0, 0), (0.6, 1, 1)]
    """
    turned = [(overlap, -j, i) for overlap, i, j in pairs]
    return [(overlap, i, -j) for overlap, j, i in label_first(turned)]


def matched_ious(pairs: Sequence[Pair], thresholds: Iterable[float]) -> list[list[float]]:
    """For each eps of ascending `thresholds`, the IoUs of the best matching among the pairs with IoU >= eps."""
    results: list[list[float]] = []
    chosen: Sequence[Pair] = ()
    unique = False
    for eps in thresholds:
        if unique:
            # Nothing competed at a lower threshold, so nothing does here.
            chosen = [pair for pair in chosen if pair[0] >= eps]
        else:
            pairs = [pair for pair in pairs if pair[0] >= eps]
            chosen = best_matching(pairs)
            unique = len(chosen) == len(pairs)
        results.append([overlap for overlap, _, _ in chosen])
    return results


def average_precisions(
    predicted: Sequence[Box], gold: Sequence[Box], pairs: Sequence[Pair], thresholds: Sequence[float] = AP_THRESHOLDS
) -> list[float]:
    """COCO's average precision at each of `thresholds`, averaged over the labels of gold (eq. 7), as pycocotools.

    Answers carry no confidence: like detections of equal score in pycocotools, boxes rank in the order given, so a
    miss costs more before a hit than after it. Boxes of labels that gold lacks cost nothing. Without gold COCO leaves
    the figure undefined, and so does this function.

    Args:
        predicted: boxes as answered.
        gold: reference boxes, at least one.
        pairs: `overlaps(predicted, gold)`.
        thresholds: least IoUs of a hit, ascending.

    >>> hit, miss = Box("cat", 0, 0, 10, 10), Box("cat", 50, 50, 60, 60)
    >>> [average_precisions(p, [hit], overlaps(p, [hit]))[0] for p in ([hit, miss], [miss, hit])]
    [1.0, 0.5]
    """
    n_gold = Counter(box.label for box in gold)
    rivals: dict[int, list[tuple[float, int]]] = {}
    for overlap, i, j in pairs:
        if overlap >= thresholds[0]:
            rivals.setdefault(i, []).append((overlap, j))
    # Per label, the boxes that can hit something: (rank, [(IoU, gold index), ...]).
    contenders: dict[str, list[tuple[int, list[tuple[float, int]]]]] = {}
    ranks: dict[str, int] = {}
    for i, box in enumerate(predicted):
        rank = ranks[box.label] = ranks.get(box.label, 0) + 1
        if i in rivals and rank <= _MAX_DETECTIONS:
            contenders.setdefault(box.label, []).append((rank, rivals[i]))
    sums = [0.0] * len(thresholds)
    for label, ranked in contenders.items():
        steps = sorted(overlap for _, candidates in ranked for overlap, _ in candidates)
        out_of_reach, precision = -1, 0.0
        for k, threshold in enumerate(thresholds):
            # Only when another pair falls below the threshold can the hits change.
            below = bisect_left(steps, threshold)
            if below != out_of_reach:
                out_of_reach = below
                precision = _average_precision(tuple(_hits(ranked, threshold)), n_gold[label])
            if below == len(steps):  # nothing is left, nor will be
                break
            sums[k] += precision
    return [total / len(n_gold) for total in sums]


def _hits(contenders: Iterable[tuple[int, list[tuple[float, int]]]], threshold: float) -> list[int]:
    """Ranks of the true positives: each box in turn takes the free gold box it overlaps most (of equals the last)."""
    taken: set[int] = set()
    hits: list[int] = []
    for rank, candidates in contenders:
        best, chosen = threshold, -1
        for overlap, j in candidates:
            if overlap >= best and j not in taken:
                best, chosen = overlap, j
        if chosen >= 0:
            taken.add(chosen)
            hits.append(rank)
    return hits


@lru_cache(4096)
def _average_precision(hits: tuple[int, ...], n_gold: int) -> float:
    """Mean over 101 recall levels of the best precision at that recall or beyond. `hits`: ranks from 1, ascending."""
    total = envelope = 0.0
    levels = _levels_per_hit(n_gold)
    for k in range(len(hits), 0, -1):
        envelope = max(envelope, k / hits[k - 1])
        total += levels[k - 1] * envelope
    return total / len(_RECALL_LEVELS)


@cache
def _levels_per_hit(n_gold: int) -> tuple[int, ...]:
    """How many of COCO's 101 recall levels are first reached by the k-th of `n_gold` hits, for every k."""
    first = np.searchsorted(np.arange(1, n_gold + 1) / n_gold, _RECALL_LEVELS, side="left")
    return tuple(np.bincount(first, minlength=n_gold).tolist())
