"""Every matching, gate, value and aggregate: range, identity, invariance, and figures computed by hand."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask
from pydantic import ValidationError

from vtriune.types import Preset
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.box_match import AP_THRESHOLDS, best_matching, ciou, coco_greedy, diou, giou, iou, overlaps
from vtriune.verifiers.box_reward import Aggregate, Gate, Matching, Rule, Value, box_reward, gated, value_of
from vtriune.verifiers.box_text import Box
from vtriune.verifiers.detection import Detection, DetectionParams
from vtriune.verifiers.released_detection import DetRewardRatio, released_accuracy

PLAIN = Rule("hungarian", "threshold", "iou", "soft_f1")
RULES = [Rule(*parts) for parts in product(*(get_args(kind) for kind in (Matching, Gate, Value, Aggregate)))]
SUMS = [rule for rule in RULES if rule.aggregate not in ("f1", "ap")]

CAT = Box("cat", 0, 0, 10, 10)
CAT9 = Box("cat", 0, 0, 9, 10)  # IoU with CAT: 0.9
CAT8 = Box("cat", 0, 0, 8, 10)  # IoU with CAT: 0.8
FAR = Box("cat", 50, 50, 60, 60)


@st.composite
def some_boxes(draw: st.DrawFn, least: int = 0) -> list[Box]:
    """With areas, on a coarse grid, so that ties and equal boxes come up often."""
    boxes = []
    for label in draw(st.lists(st.sampled_from(["cat", "dog"]), min_size=least, max_size=5)):
        x, y = float(draw(st.integers(0, 12))), float(draw(st.integers(0, 12)))
        boxes.append(Box(label, x, y, x + draw(st.integers(1, 8)), y + draw(st.integers(1, 8))))
    return boxes


a_box = some_boxes(least=1).map(lambda boxes: boxes[0])
eps_values = st.sampled_from([0.0, 0.3, 0.5, 0.85, 0.99, 1.0])


def worth(predicted: list[Box], gold: list[Box], rule: Rule, eps: float = 0.5) -> float:
    pairs = overlaps(predicted, gold)
    best = [pair[0] for pair in best_matching([pair for pair in pairs if pair[0] >= eps])]
    return box_reward(predicted, gold, pairs, best, eps, rule)


# Values


def twin(kind: str, a: Box, b: Box) -> float:
    """GIoU, DIoU and CIoU as their papers write them out, in numpy."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = np.array(a[1:]), np.array(b[1:])
    inter = np.clip(min(ax2, bx2) - max(ax1, bx1), 0, None) * np.clip(min(ay2, by2) - max(ay1, by1), 0, None)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    ratio = inter / union
    hull_w, hull_h = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    if kind == "giou":
        return float(ratio - (hull_w * hull_h - union) / (hull_w * hull_h))
    rho2 = ((ax1 + ax2) / 2 - (bx1 + bx2) / 2) ** 2 + ((ay1 + ay2) / 2 - (by1 + by2) / 2) ** 2
    distance_iou = ratio - rho2 / (hull_w**2 + hull_h**2)
    if kind == "diou":
        return float(distance_iou)
    v = 4 / np.pi**2 * (np.arctan((bx2 - bx1) / (by2 - by1)) - np.arctan((ax2 - ax1) / (ay2 - ay1))) ** 2
    alpha = v / ((1 - ratio) + v) if v else 0.0
    return float(distance_iou - alpha * v)


@given(a_box, a_box)
def test_the_generalised_ious_are_as_their_papers_write_them(a: Box, b: Box) -> None:
    for kind, ours in (("giou", giou), ("diou", diou), ("ciou", ciou)):
        assert ours(a, b) == pytest.approx(twin(kind, a, b), abs=1e-12)
        assert ours(a, b) == pytest.approx(ours(b, a), abs=1e-12)
        assert ours(a, b) <= iou(a, b) + 1e-12
        assert ours(a, a) == pytest.approx(1.0, abs=1e-12)


@given(a_box, a_box, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_no_value_changes_when_both_boxes_are_scaled_and_moved(a: Box, b: Box, scale: float, shift: float) -> None:
    c, d = (Box("", *(corner * scale + shift for corner in box[1:])) for box in (a, b))
    for value in get_args(Value):
        assert value_of(value, c, d, iou(c, d)) == pytest.approx(value_of(value, a, b, iou(a, b)), abs=1e-5)


@given(a_box, a_box)
def test_every_value_lies_in_0_to_1_and_is_1_for_the_same_box(a: Box, b: Box) -> None:
    for value in get_args(Value):
        assert 0 <= value_of(value, a, b, iou(a, b)) <= 1 + 1e-12
        assert value_of(value, a, a, 1.0) == pytest.approx(1.0, abs=1e-12)


def test_boxes_without_area_and_far_ones_have_finite_values() -> None:
    point, huge = Box("", 5, 5, 5, 5), Box("", -1e100, -1e100, 1e100, 1e100)
    for a, b in ((point, point), (point, huge), (huge, huge), (point, CAT)):
        for kind in (giou, diou, ciou):
            assert -1.5 <= kind(a, b) <= 1


def test_iou_is_pycocotools_box_iou() -> None:
    rng = random.Random(5)

    def anywhere() -> Box:
        (x1, x2), (y1, y2) = sorted(rng.sample(range(100), 2)), sorted(rng.sample(range(100), 2))
        return Box("", x1, y1, x2, y2)

    a, b = [anywhere() for _ in range(60)], [anywhere() for _ in range(60)]
    sides = [np.array([[x1, y1, x2 - x1, y2 - y1] for _, x1, y1, x2, y2 in boxes], dtype=float) for boxes in (a, b)]
    ours = np.array([[iou(one, other) for other in b] for one in a])
    assert ours == pytest.approx(mask.iou(*sides, [0] * len(b)), abs=1e-12)


# Gates


@pytest.mark.parametrize(
    ("gate", "overlap", "eps", "expected"),
    [
        ("threshold", 0.85, 0.85, 0.85),
        ("threshold", 0.84, 0.85, 0.0),
        ("averaged", 0.49, 0.99, 0.0),
        # Of 0.5, 0.55, 0.6, ... 0.95 it reaches seven.
        ("averaged", 0.82, 0.99, 0.82 * 0.7),
        ("averaged", 1.0, 0.99, 1.0),
        ("saturating", 0.45, 0.9, 0.5),
        ("saturating", 0.95, 0.9, 1.0),
        ("saturating", 0.1, 0.0, 1.0),
        ("saturating", 0.0, 0.0, 0.0),
    ],
)
def test_a_gate_makes_of_a_value_what_it_says(gate: Gate, overlap: float, eps: float, expected: float) -> None:
    assert gated(overlap, overlap, gate, eps) == pytest.approx(expected, abs=1e-12)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(get_args(Gate)))
def test_no_gate_pays_less_for_more_overlap(a: float, b: float, eps: float, gate: Gate) -> None:
    low, high = sorted((a, b))
    assert 0 <= gated(low, low, gate, eps) <= gated(high, high, gate, eps) <= 1


# Matchings


@pytest.mark.parametrize(
    ("matching", "predicted", "gold", "expected"),
    [
        # CAT8 has 0.8 with CAT and 1 with CAT8; CAT9 has 0.9 with CAT and 8/9 with CAT8.
        ("hungarian", [CAT9, CAT8], [CAT, CAT8], 1.9),
        # Gold CAT8 first takes CAT8, then CAT takes CAT9; the other way round CAT takes CAT9 first: the same.
        ("label_first", [CAT9, CAT8], [CAT8, CAT], 1.9),
        # Only CAT9 overlaps both well: gold CAT8 takes it and nothing is left for CAT.
        ("label_first", [CAT9, FAR], [CAT8, CAT], 8 / 9),
        ("label_first", [CAT9, FAR], [CAT, CAT8], 0.9),
        # Each predicted box takes its best: CAT8 takes CAT9 (8/9), so CAT9 is left with CAT (0.9).
        ("coco_greedy", [CAT8, CAT9], [CAT, CAT9], 8 / 9 + 0.9),
        ("coco_greedy", [CAT9, CAT8], [CAT, CAT9], 1.8),
        ("hungarian", [CAT8, CAT9], [CAT, CAT9], 1.8),
    ],
)
def test_a_matching_pairs_as_it_says(
    matching: Matching, predicted: list[Box], gold: list[Box], expected: float
) -> None:
    total = worth(predicted, gold, Rule(matching, "threshold", "iou", "mean")) * 2
    assert total == pytest.approx(expected, abs=1e-12)


def test_of_equal_overlaps_coco_takes_the_last_gold_box_and_label_first_the_first_answer() -> None:
    left, right = Box("cat", 0, 0, 5, 10), Box("cat", 5, 0, 10, 10)
    assert coco_greedy(overlaps([CAT], [left, right])) == [(0.5, 0, 1)]
    label_first = worth([left, right], [CAT, left], Rule("label_first", "threshold", "iou", "mean"))
    assert label_first == pytest.approx(0.5 / 2)


# Aggregates


@pytest.mark.parametrize(
    ("aggregate", "predicted", "gold", "expected"),
    [
        ("mean", [CAT9, FAR], [CAT], 0.9 / 2),
        ("soft_f1", [CAT9, FAR], [CAT], 2 * 0.9 / 3),
        ("f1", [CAT9, FAR], [CAT], 2 / 3),
        ("ap", [CAT9, FAR], [CAT], 1.0),
        ("ap", [FAR, CAT9], [CAT], 0.5),
        ("count_penalty", [CAT9, FAR], [CAT], 0.6 * 0.9 / 2),
        # 0.7 * 0.9 + 0.3 * (1 - (0 + 1/2) / 2) = 0.855
        ("completeness", [CAT9, FAR], [CAT], 0.6 * 0.855),
        ("mean", [], [CAT], 0.0),
        ("completeness", [], [CAT], 0.0),
        ("completeness", [FAR], [CAT], 0.0),
    ],
)
def test_an_aggregate_is_what_it_says(
    aggregate: Aggregate, predicted: list[Box], gold: list[Box], expected: float
) -> None:
    assert worth(predicted, gold, PLAIN._replace(aggregate=aggregate)) == pytest.approx(expected, abs=1e-12)


def test_averaged_f1_and_ap_are_means_over_cocos_thresholds() -> None:
    # IoU 0.9 reaches nine of the ten.
    for aggregate in ("f1", "ap"):
        rule = Rule("coco_greedy", "averaged", "iou", aggregate)
        assert worth([CAT9], [CAT], rule, eps=0.99) == pytest.approx(0.9)
        at_eps = [worth([CAT9], [CAT], rule._replace(gate="threshold"), eps) for eps in AP_THRESHOLDS]
        assert sum(at_eps) / 10 == pytest.approx(0.9)


@given(some_boxes(), some_boxes(least=1), eps_values)
def test_completeness_over_label_first_matches_is_the_released_score(
    predicted: list[Box], gold: list[Box], eps: float
) -> None:
    rule = Rule("label_first", "threshold", "iou", "completeness")
    attested = DetRewardRatio(iou_max_label_first=1.0, iou_completeness=0.3)
    # At eps 0 the released code also counts pairs that do not meet.
    least = max(eps, 1e-9)
    released = released_accuracy(predicted, gold, attested, least)
    assert worth(predicted, gold, rule, least) == pytest.approx(released, abs=1e-9)


@given(some_boxes(), some_boxes(least=1), eps_values, st.sampled_from(RULES))
def test_every_combination_lies_in_0_to_1(predicted: list[Box], gold: list[Box], eps: float, rule: Rule) -> None:
    assert -1e-12 <= worth(predicted, gold, rule, eps) <= 1 + 1e-9


@given(some_boxes(least=1), eps_values, st.sampled_from(SUMS))
def test_gold_itself_is_worth_1_in_every_combination(gold: list[Box], eps: float, rule: Rule) -> None:
    assert worth(gold, gold, rule, eps) == pytest.approx(1.0, abs=1e-9)


@given(some_boxes(), some_boxes(least=1), eps_values, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_with_the_hungarian_matching_no_order_of_boxes_changes_a_sum_of_worths(
    predicted: list[Box], gold: list[Box], eps: float, rule: Rule, rng: random.Random
) -> None:
    if rule.aggregate != "ap":
        rule = rule._replace(matching="hungarian")
        shuffled = rng.sample(predicted, len(predicted)), rng.sample(gold, len(gold))
        assert worth(*shuffled, rule, eps) == pytest.approx(worth(predicted, gold, rule, eps), abs=1e-7)


@given(some_boxes(least=1), some_boxes(least=1), eps_values, st.sampled_from(SUMS))
def test_a_box_that_meets_nothing_never_pays(predicted: list[Box], gold: list[Box], eps: float, rule: Rule) -> None:
    sprayed = [*predicted, *[Box("bird", 0, 0, k, k) for k in range(1, 20)]]
    assert worth(sprayed, gold, rule, eps) <= worth(predicted, gold, rule, eps) + 1e-12
    assert worth(sprayed, gold, rule, eps) < 1


@given(some_boxes(), some_boxes(least=1), eps_values)
def test_the_default_needs_no_matching_of_its_own(predicted: list[Box], gold: list[Box], eps: float) -> None:
    # The shortcut that reuses the report's matches and the long way through the worths of pairs agree.
    pairs = overlaps(predicted, gold)
    matches = best_matching([pair for pair in pairs if gated(pair[0], pair[0], "threshold", eps) > 0])
    n, m = len(predicted), len(gold)
    totals: dict[Aggregate, float] = {"mean": max(n, m), "soft_f1": (n + m) / 2}
    for aggregate, total in totals.items():
        shortcut = worth(predicted, gold, PLAIN._replace(aggregate=aggregate), eps)
        assert shortcut == pytest.approx(sum(pair[0] for pair in matches) / total, abs=1e-12)


# The verifier's parameters


def judge(predicted: list[Box], gold: list[Box], preset: Preset = "modern", **parameters: Any) -> Outcome:
    def listed(boxes: list[Box]) -> str:
        return json.dumps([{"bbox_2d": box[1:], "label": box.label} for box in boxes])

    params = DetectionParams(**parameters)
    context = Context(preset=preset, split="train", threshold=0.5)
    verifier = Detection()
    return verifier.judge(listed(predicted), verifier.parse_gold(listed(gold), params, context), params, context)


def test_the_verifier_rewards_by_the_combination_that_the_row_names() -> None:
    row: dict[str, Any] = {"matching": "label_first", "gate": "averaged", "value": "iou2", "aggregate": "count_penalty"}
    for preset in ("paper", "modern"):
        # 0.81 at nine of ten thresholds, one box too many
        assert judge([CAT9, FAR], [CAT], preset, **row).accuracy == pytest.approx(0.6 * 0.81 * 0.9 / 2)
    assert judge([CAT9, FAR], [CAT], "paper", value="giou").accuracy == pytest.approx(0.95 / 2)


def test_the_report_and_correctness_do_not_depend_on_the_combination() -> None:
    plain = judge([CAT9, FAR], [CAT])
    other = judge([CAT9, FAR], [CAT], value="ciou", gate="saturating", aggregate="completeness", matching="coco_greedy")
    assert (other.report, other.correct) == (plain.report, plain.correct)
    assert other.accuracy != plain.accuracy


def test_what_gold_without_boxes_is_worth_is_said() -> None:
    rows: tuple[dict[str, Any], ...] = ({}, {"empty_gold": "empty_is_right"})
    for said in rows:
        assert [judge(boxes, [], aggregate="ap", **said).accuracy for boxes in ([], [CAT])] == [1.0, 0.0]
    with pytest.raises(Unscorable, match="gold is \\[\\], and empty_gold is unscorable"):
        judge([], [], empty_gold="unscorable")
    assert judge([CAT], [CAT], empty_gold="unscorable").accuracy == 1.0


@pytest.mark.parametrize(
    "part",
    [
        {"matching": "hungarian"},
        {"gate": "threshold"},
        {"value": "iou"},
        {"aggregate": "ap"},
        {"empty_gold": "unscorable"},
    ],
)
def test_official_code_knows_none_of_these_parameters(part: dict[str, Any]) -> None:
    with pytest.raises(
        Unscorable, match=f"official_code has no {next(iter(part))}; remove it or use the preset modern"
    ):
        judge([CAT], [CAT], "official_code", det_reward_ratio={"map": 1.0}, **part)


@pytest.mark.parametrize(
    "parts",
    [
        {"aggregate": "f1", "value": "giou"},
        {"aggregate": "ap", "gate": "saturating"},
        {"aggregate": "ap", "matching": "hungarian"},
        {"gate": "soft"},
    ],
)
def test_a_combination_with_an_idle_part_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DetectionParams(**parts)
