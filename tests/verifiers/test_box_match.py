"""Geometry, matching and average precision, against brute force and against pycocotools."""

from __future__ import annotations

import contextlib
import io
import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vtriune.verifiers.box_match import (
    AP_THRESHOLDS,
    Pair,
    average_precisions,
    best_matching,
    iou,
    matched_ious,
    overlaps,
)
from vtriune.verifiers.box_text import Box

LABELS = ("cat", "dog", "bird")


@st.composite
def a_box(draw: st.DrawFn, largest: int = 12) -> Box:
    """On a coarse grid, so that equal boxes, equal IoUs and boxes without area come up often."""
    x1, x2 = sorted((draw(st.integers(0, largest)), draw(st.integers(0, largest))))
    y1, y2 = sorted((draw(st.integers(0, largest)), draw(st.integers(0, largest))))
    return Box(draw(st.sampled_from(LABELS)), float(x1), float(y1), float(x2), float(y2))


some_boxes = st.lists(a_box(), max_size=6)
gold_boxes = st.lists(a_box(), min_size=1, max_size=6)
pair = st.tuples(st.integers(1, 20).map(lambda n: n / 20), st.integers(0, 3), st.integers(0, 3))
some_pairs = st.lists(pair, max_size=12, unique_by=lambda p: p[1:])


def cells(box: Box) -> set[tuple[int, int]]:
    """The unit squares of the grid that the box covers."""
    return {(x, y) for x in range(int(box.x1), int(box.x2)) for y in range(int(box.y1), int(box.y2))}


@given(a_box(), a_box())
def test_iou_is_the_cells_in_common_by_the_cells_covered(a: Box, b: Box) -> None:
    covered = len(cells(a) | cells(b))
    assert iou(a, b) == pytest.approx(len(cells(a) & cells(b)) / covered if covered else 0.0, abs=1e-15)
    assert iou(a, b) == iou(b, a)


@given(a_box(), a_box(), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_iou_does_not_change_when_both_boxes_are_scaled_and_moved(a: Box, b: Box, scale: float, shift: float) -> None:
    moved = [Box("", *(corner * scale + shift for corner in box[1:])) for box in (a, b)]
    assert iou(*moved) == pytest.approx(iou(a, b), abs=1e-6)


def test_iou_of_boxes_too_small_or_too_large_for_an_area_is_a_number() -> None:
    assert iou(Box("", 0, 0, 1e-200, 1e-200), Box("", 0, 0, 1e-200, 1e-200)) == 0.0
    assert iou(Box("", 0, 0, 1e100, 1e100), Box("", 0, 0, 1e100, 1e100)) == 1.0


@given(some_boxes, some_boxes)
def test_only_boxes_of_one_label_overlap(predicted: list[Box], gold: list[Box]) -> None:
    expected = [
        (iou(a, b), i, j)
        for i, a in enumerate(predicted)
        for j, b in enumerate(gold)
        if a.label == b.label and iou(a, b) > 0
    ]
    assert overlaps(predicted, gold) == expected


def brute_force(pairs: list[Pair]) -> tuple[float, int]:
    """Greatest sum of IoU over all one-to-one choices, and the most pairs with that sum."""
    table = {(i, j): overlap for overlap, i, j in pairs}
    found = (0.0, 0)
    for columns in permutations(range(4)):
        chosen = [table[i, j] for i, j in enumerate(columns) if (i, j) in table]
        found = max(found, (round(sum(chosen), 9), len(chosen)))
    return found


@given(some_pairs)
def test_the_best_matching_is_as_good_as_brute_force(pairs: list[Pair]) -> None:
    chosen = best_matching(pairs)
    assert set(chosen) <= set(pairs)
    assert len({i for _, i, _ in chosen}) == len({j for _, _, j in chosen}) == len(chosen)
    assert (round(sum(overlap for overlap, _, _ in chosen), 9), len(chosen)) == brute_force(pairs)


@given(some_pairs, st.randoms(use_true_random=False))
def test_the_best_matching_does_not_depend_on_the_order_of_the_pairs(pairs: list[Pair], rng: random.Random) -> None:
    shuffled = rng.sample(pairs, len(pairs))
    first, second = (sum(overlap for overlap, _, _ in best_matching(order)) for order in (pairs, shuffled))
    assert first == pytest.approx(second, abs=1e-12)


@given(some_pairs)
def test_matching_at_several_thresholds_is_matching_at_each(pairs: list[Pair]) -> None:
    thresholds = [0.0, 0.25, 0.5, 0.75, 0.95]
    for eps, matched in zip(thresholds, matched_ious(pairs, thresholds), strict=True):
        alone = best_matching([p for p in pairs if p[0] >= eps])
        assert sum(matched) == pytest.approx(sum(overlap for overlap, _, _ in alone), abs=1e-12)
        assert len(matched) == len(alone)


def coco_average_precisions(predicted: list[Box], gold: list[Box]) -> list[float] | None:
    """pycocotools' AP of one picture at each threshold, all scores equal; None where it leaves AP undefined."""
    categories = {label: k for k, label in enumerate(dict.fromkeys(box.label for box in gold))}

    def entry(box: Box) -> dict[str, Any]:
        sides = [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
        area = sides[2] * sides[3]
        return {"image_id": 0, "category_id": categories[box.label], "bbox": sides, "area": area, "iscrowd": 0}

    reference, results = COCO(), COCO()
    reference.dataset = {
        "images": [{"id": 0}],
        "categories": [{"id": k} for k in categories.values()],
        "annotations": [entry(box) | {"id": k + 1} for k, box in enumerate(gold)],
    }
    results.dataset = reference.dataset | {
        "annotations": [
            entry(box) | {"id": k + 1, "score": 1.0} for k, box in enumerate(predicted) if box.label in categories
        ]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        results.createIndex()
        evaluation = COCOeval(reference, results, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # (threshold, recall level, label)
    if not (precision > -1).any():
        return None
    return [float(at[at > -1].mean()) for at in precision]


def assert_agreement(predicted: list[Box], gold: list[Box]) -> None:
    ours = average_precisions(predicted, gold, overlaps(predicted, gold))
    assert ours == pytest.approx(coco_average_precisions(predicted, gold), abs=1e-6)


@given(some_boxes, gold_boxes)
def test_ap_agrees_with_pycocotools_on_coarse_boxes_full_of_ties(predicted: list[Box], gold: list[Box]) -> None:
    assert_agreement(predicted, gold)


def random_case(rng: random.Random) -> tuple[list[Box], list[Box]]:
    """Gold of several labels and an answer near it: jittered, doubled, shuffled, relabelled, with misses and extras."""

    def anywhere() -> Box:
        x1, x2 = sorted(rng.sample(range(1001), 2))
        y1, y2 = sorted(rng.sample(range(1001), 2))
        return Box(rng.choice(LABELS), float(x1), float(y1), float(x2), float(y2))

    gold = [anywhere() for _ in range(rng.randint(1, 8))]
    if rng.random() < 0.2:
        gold.append(rng.choice(gold))
    predicted: list[Box] = []
    for box in gold:
        if rng.random() < 0.85:
            spread = rng.choice((0, 2, 10, 60))
            corners = [corner + rng.randint(-spread, spread) for corner in box[1:]]
            x1, x2 = sorted(corners[0::2])
            y1, y2 = sorted(corners[1::2])
            label = box.label if rng.random() < 0.9 else rng.choice((*LABELS, "unicorn"))
            predicted.append(Box(label, x1, y1, x2, y2))
    predicted += [anywhere() for _ in range(rng.choice((0, 0, 1, 4)))]
    if predicted and rng.random() < 0.3:
        predicted += [rng.choice(predicted)] * rng.randint(1, 3)
    if rng.random() < 0.5:
        rng.shuffle(predicted)
    return predicted, gold


def test_ap_agrees_with_pycocotools_on_3000_random_answers() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        assert_agreement(*random_case(rng))


def test_ap_agrees_with_pycocotools_on_more_boxes_than_it_looks_at() -> None:
    rng = random.Random(8)
    for _ in range(5):
        gold = [Box("cat", x, 0.0, x + 5.0, 5.0) for x in map(float, range(0, 1500, 10))]
        predicted = [rng.choice(gold) for _ in range(150)]
        assert_agreement(predicted, gold)


def test_ap_of_no_predictions_is_0_and_without_gold_it_is_undefined_as_in_pycocotools() -> None:
    cat = Box("cat", 0, 0, 10, 10)
    assert average_precisions([], [cat], []) == [0.0] * len(AP_THRESHOLDS)
    assert coco_average_precisions([cat], []) is None
    assert coco_average_precisions([], []) is None


def test_without_confidences_boxes_rank_in_the_order_given() -> None:
    gold = [Box("cat", 0, 0, 10, 10)]
    hit, miss = gold[0], Box("cat", 50, 50, 60, 60)
    for predicted, expected in (([hit, miss], 1.0), ([miss, hit], 0.5)):
        assert average_precisions(predicted, gold, overlaps(predicted, gold))[0] == pytest.approx(expected)
        assert_agreement(predicted, gold)
