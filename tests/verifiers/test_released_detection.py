"""The released code's reward on cases computed by hand: every step of the arithmetic stands beside the case."""

from __future__ import annotations

import pytest

from vtriune.verifiers.box_text import Box
from vtriune.verifiers.released_detection import DetRewardRatio, read_boxes_as_released, released_accuracy

EXACT = 1e-9

LABEL_FIRST = DetRewardRatio(iou_max_label_first=1.0)
ATTESTED = DetRewardRatio(iou_max_label_first=1.0, iou_completeness=0.3)
"""The weights of the data set's detection rows."""
IOU_FIRST = DetRewardRatio(iou_max_iou_first=1.0)

A = Box("cat", 0, 0, 100, 100)
A90 = Box("cat", 0, 0, 90, 100)  # IoU with A: 9,000 / 10,000 = 0.9
A80 = Box("cat", 0, 0, 80, 100)  # IoU with A: 8,000 / 10,000 = 0.8; with A90: 8,000 / 9,000
B = Box("cat", 200, 0, 300, 100)
C = Box("cat", 400, 0, 500, 100)
DOG = Box("dog", 200, 0, 300, 100)


@pytest.mark.parametrize(
    ("predicted", "gold", "ratio", "eps", "expected"),
    [
        # One match of IoU 0.9: 0.7 * 0.9 + 0.3 * (1 - (0 + 0) / 2) = 0.63 + 0.3; penalty 0.6^0
        ([A90], [A], ATTESTED, 0.85, 0.93),
        # IoU 0.8 < 0.85, no match: 0.7 * 0 + 0.3 * (1 - (1 + 1) / 2) = 0
        ([A80], [A], ATTESTED, 0.85, 0.0),
        # IoU equal to eps is a match: 0.7 * 0.8 + 0.3
        ([A80], [A], ATTESTED, 0.8, 0.86),
        # One of two found: 0.7 * 1 / 2 + 0.3 * (1 - (1/2 + 0) / 2) = 0.35 + 0.225; penalty 0.6^1
        ([A], [A, B], ATTESTED, 0.85, 0.575 * 0.6),
        # One found, two false: 0.7 * 1 + 0.3 * (1 - (0 + 2/3) / 2) = 0.7 + 0.2; penalty 0.6^2
        ([A, B, C], [A], ATTESTED, 0.85, 0.9 * 0.36),
        # One found of two, one false, equal counts: 0.7 * 1/2 + 0.3 * (1 - (1/2 + 1/2) / 2) = 0.35 + 0.15; 0.6^0
        ([A, C], [A, B], ATTESTED, 0.85, 0.5),
        # The label is wrong: no match
        ([DOG], [B], ATTESTED, 0.5, 0.0),
        # Completeness alone (c = 1): 1 - (1/2 + 0) / 2 = 0.75; penalty 0.6
        ([A], [A, B], DetRewardRatio(iou_max_label_first=1.0, iou_completeness=1.0), 0.85, 0.75 * 0.6),
        # Nothing predicted
        ([], [A], ATTESTED, 0.85, 0.0),
    ],
)
def test_label_first(predicted: list[Box], gold: list[Box], ratio: DetRewardRatio, eps: float, expected: float) -> None:
    assert released_accuracy(predicted, gold, ratio, eps) == pytest.approx(expected, abs=EXACT)


def test_label_first_depends_on_the_order_of_gold_as_in_the_released_code() -> None:
    # Predicted A and A80. Gold A80 first: it takes A80 (1.0), then A takes A (1.0): 2 / 2.
    assert released_accuracy([A, A80], [A80, A], LABEL_FIRST, 0.5) == pytest.approx(1.0, abs=EXACT)
    # Predicted A90 and C. Gold A80 first: it takes A90 (8/9), and for A nothing of IoU >= 0.5 is left: (8/9) / 2.
    assert released_accuracy([A90, C], [A80, A], LABEL_FIRST, 0.5) == pytest.approx(4 / 9, abs=EXACT)
    # Gold A first: it takes A90 (0.9), and for A80 nothing is left: 0.9 / 2.
    assert released_accuracy([A90, C], [A, A80], LABEL_FIRST, 0.5) == pytest.approx(0.45, abs=EXACT)


def test_of_equal_overlaps_the_first_predicted_box_is_taken() -> None:
    left, right = Box("cat", 0, 0, 50, 100), Box("cat", 50, 0, 100, 100)
    # Gold A: both overlap it by 0.5, `left` is taken; gold `left` then finds only `right` (IoU 0): 0.5 / 2.
    assert released_accuracy([left, right], [A, left], LABEL_FIRST, 0.5) == pytest.approx(0.25, abs=EXACT)
    # With `right` first it is taken for A, and gold `left` finds itself: (0.5 + 1) / 2.
    assert released_accuracy([right, left], [A, left], LABEL_FIRST, 0.5) == pytest.approx(0.75, abs=EXACT)


def test_iou_first_pairs_the_last_boxes_with_the_best_iou_as_the_released_code_does() -> None:
    # In order: round 1 best 1.0 given to (DOG, DOG): 1; round 2 best 1.0 given to (A, A): 1; 2 / 2.
    assert released_accuracy([A, DOG], [A, DOG], IOU_FIRST, 0.85) == pytest.approx(1.0, abs=EXACT)
    # A perfect answer in another order: round 1 best 1.0 given to (A, DOG): labels differ, 0; round 2 best of what is
    # left, (DOG, A), is 0 < eps: 0 / 2.
    assert released_accuracy([DOG, A], [A, DOG], IOU_FIRST, 0.85) == 0.0
    # C misses B: round 1 best 1.0 (A with A) given to (C, B): 1; round 2 best 1.0 given to (A, A): 1; 2 / 2.
    assert released_accuracy([A, C], [A, B], IOU_FIRST, 0.85) == pytest.approx(1.0, abs=EXACT)


def test_iou_first_counts_a_match_of_unequal_labels_as_found_with_iou_0() -> None:
    # c = 0.5: 0.5 * 0 / 1 + 0.5 * (1 - (0 + 0) / 2) = 0.5
    half = DetRewardRatio(iou_max_iou_first=1.0, iou_completeness=0.5)
    assert released_accuracy([DOG], [B], half, 0.85) == pytest.approx(0.5, abs=EXACT)


@pytest.mark.parametrize(
    ("predicted", "gold", "ratio", "expected"),
    [
        # IoU 0.9 reaches 9 of the thresholds 0.5, 0.55, ..., 0.95: map 0.9; map50 and map75 1
        ([A90], [A], DetRewardRatio(map=1.0), 0.9),
        ([A90], [A], DetRewardRatio(map50=1.0), 1.0),
        ([A90], [A], DetRewardRatio(map75=0.5), 1.0),
        # (0.5 * map 0.9 + 1 * map50 1 + 0.25 * map75 1) / 1.75 = 1.7 / 1.75
        ([A90], [A], DetRewardRatio(map=0.5, map50=1.0, map75=0.25), 1.7 / 1.75),
        # A hit, then a miss: precision 1 at every recall; penalty 0.6
        ([A, C], [A], DetRewardRatio(map50=1.0), 0.6),
        # A miss, then the hit: precision 1/2 at every recall; penalty 0.6
        ([C, A], [A], DetRewardRatio(map50=1.0), 0.3),
        # One of two found: recall 0.00 to 0.50 are 51 of 101 levels at precision 1; penalty 0.6
        ([A], [A, B], DetRewardRatio(map50=1.0), 51 / 101 * 0.6),
        # Two labels, one found: (1 + 0) / 2; penalty 0.6
        ([A], [A, DOG], DetRewardRatio(map50=1.0), 0.3),
        # A hit and 19 boxes of a label that gold lacks: the mean knows only gold's labels; the penalty, 0.6^19, does
        ([A] + [DOG] * 19, [A], DetRewardRatio(map50=1.0), 0.6**19),
        # label first 0.9 and map50 1, equal weights: 0.95
        ([A90], [A], DetRewardRatio(iou_max_label_first=1.0, map50=1.0), 0.95),
        # All five, c = 0.3: label first 0.93, IoU first 0.7 * 0.9 + 0.3 = 0.93, map 0.9, map50 1, map75 1: 4.76 / 5
        (
            [A90],
            [A],
            DetRewardRatio(iou_max_label_first=1, iou_max_iou_first=1, iou_completeness=0.3, map=1, map50=1, map75=1),
            4.76 / 5,
        ),
    ],
)
def test_average_precision_in_the_blend(
    predicted: list[Box], gold: list[Box], ratio: DetRewardRatio, expected: float
) -> None:
    assert released_accuracy(predicted, gold, ratio, 0.85) == pytest.approx(expected, abs=EXACT)


def read(content: str) -> list[Box]:
    return read_boxes_as_released(f"<answer>\n{content}\n</answer>").boxes


def test_the_released_reader_takes_single_quotes_and_lower_cases_everything() -> None:
    assert read("[{'BBOX_2D': [1, 2, 3, 4], 'Label': 'Shiba Dog'}]") == [Box("shiba dog", 1, 2, 3, 4)]
    assert read('[{"bbox_2d": [1, 2.5, 3, 4], "label": "cat ", "confidence": 1}]') == [Box("cat ", 1, 2.5, 3, 4)]
    assert read('[[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]]') == [Box("cat", 1, 2, 3, 4)]


def test_the_released_reader_keeps_the_boxes_before_the_last_comma_of_a_list_cut_off() -> None:
    cut = '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6'
    assert read(cut) == [Box("a", 1, 2, 3, 4)]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "",
        "[{'bbox_2d': [1, 2, 3, 4], 'label': 'driver's seat'}]",
        "```json\n[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}]\n```",
        "[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'},]",
        "{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}",
        "[{'bbox_2d': [1, 2, 3, 4]}]",
        "[{'bbox_2d': [NaN, 2, 3, 4], 'label': 'cat'}]",
        "[{'bbox_2d': [3, 2, 1, 4], 'label': 'cat'}]",
        "[" * 100_000,
        "[" + "1" * 10_000 + "]",
    ],
)
def test_what_the_released_reader_cannot_read_has_no_boxes(content: str) -> None:
    assert read(content) == []


def test_the_released_reader_takes_the_first_answer_even_a_draft() -> None:
    draft = "<think><answer>[{'bbox_2d': [1, 2, 3, 4], 'label': 'draft'}]</answer></think>"
    assert read_boxes_as_released(draft + "<answer>[]</answer>").boxes == [Box("draft", 1, 2, 3, 4)]
    assert read_boxes_as_released("[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}]").boxes == []


def test_the_released_reader_drops_a_box_at_a_place_already_taken() -> None:
    twice = "[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}, {'bbox_2d': [1.0, 2, 3, 4], 'label': 'dog'}]"
    assert read(twice) == [Box("cat", 1, 2, 3, 4)]


def test_a_coordinate_that_crashes_the_released_code_only_costs_its_box() -> None:
    sound = Box("b", 1, 2, 3, 4)
    for corner in ("1e999", "1" + "0" * 400):
        text = f"[{{'bbox_2d': [1, 2, {corner}, 4], 'label': 'a'}}, {{'bbox_2d': [1, 2, 3, 4], 'label': 'b'}}]"
        found = read_boxes_as_released(f"<answer>{text}</answer>")
        assert (found.boxes, found.dropped) == ([sound], 1)
