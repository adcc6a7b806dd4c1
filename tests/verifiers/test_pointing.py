"""Points: reading, the click rule, decay by distance, several targets, spaces, spraying."""

from __future__ import annotations

import json
import random
from math import exp, hypot, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.data.boxes import BoxSpace, extent
from vtriune.types import ImageSize
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.point_text import MAX_POINTS, read_points
from vtriune.verifiers.pointing import Pointing, PointingParams

SIZE = ImageSize(original=(640, 480), resized=(644, 476))
BUTTON = "[100, 100, 200, 150]"
TWO = '[{"point_2d": [100, 100], "radius": 10}, {"point_2d": [300, 300], "radius": 10}]'
DIAGONAL = hypot(1000, 1000)


def judge(response: str, gold: str = BUTTON, sizes: tuple[ImageSize, ...] = (), **parameters: Any) -> Outcome:
    params = PointingParams(**parameters)
    context = Context(preset="modern", split="train", image_sizes=sizes)
    verifier = Pointing()
    return verifier.judge(response, verifier.parse_gold(gold, params, context), params, context)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ('{"point_2d": [1, 2], "label": "a"}', [(1, 2)]),
        ("```json\n[{'label': 'b', 'point_2d': [1.5, -2]}, {'point_2d': (3, 4)}]\n```", [(1.5, -2), (3, 4)]),
        ("(1, 2)", [(1, 2)]),
        ("click(0.25,.5)", [(0.25, 0.5)]),
        ("[[1, 2], [3, 4]]", [(1, 2), (3, 4)]),
        ("[(1, 2), (3, 4)]", [(1, 2), (3, 4)]),
        ('<point x="61.5" y="40.4" alt="Mt">Mt</point>', [(61.5, 40.4)]),
        ("<point x=61.5 y=40>", [(61.5, 40)]),
        ('<points x1="1" y1="2" x2="3" y2="4" alt="(9, 9)">two</points>', [(1, 2), (3, 4)]),
        ('<point x="1" y="2">a</point> <point x="3" y="4">b</point>', [(1, 2), (3, 4)]),
        ("(1, 2) and again (1.0, 2)", [(1, 2)]),
        ('[{"point_2d": [1, 2], "label": "key (3, 4)"}]', [(1, 2)]),
        ("[1, 2, 3, 4]", []),
        ("(1e999, 2)", []),
        ("(nan, 2)", []),
        ("I cannot see it.", []),
        ("", []),
    ],
)
def test_points_are_read_from_what_models_write(text: str, points: list[tuple[float, float]]) -> None:
    assert read_points(text) == points


def test_reading_stops_at_the_cap_on_points() -> None:
    assert len(read_points(str([[k, 0] for k in range(2 * MAX_POINTS)]))) == MAX_POINTS


# One target


@pytest.mark.parametrize(
    ("click", "hit"),
    [("(150, 125)", 1), ("(100, 100)", 1), ("(200, 150)", 1), ("(99.9, 125)", 0), ("(150, 151)", 0), ("(0, 0)", 0)],
)
def test_a_click_inside_the_box_is_correct(click: str, hit: int) -> None:
    outcome = judge(f"<think>(150, 125)</think><answer>{click}</answer>")
    assert (outcome.accuracy, outcome.correct, outcome.report["f1"]) == (hit, bool(hit), hit)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "no point found in the answer"),
        ("<think>(150, 125)", "no point found in the answer"),
        ("[100, 100, 200, 150]", "no point found in the answer"),
        ("(10, 10)", "no point on its target"),
        ("(150, 125) or (10, 10)", "several points for one target"),
        (str([[x, y] for x in range(0, 1000, 50) for y in range(0, 1000, 100)]), "several points for one target"),
    ],
)
def test_no_point_or_several_for_one_target_are_worth_0(response: str, reason: str) -> None:
    outcome = judge(response)
    assert (outcome.accuracy, outcome.correct, outcome.reason) == (0.0, False, reason)


@pytest.mark.parametrize("value", ["gaussian", "linear"])
def test_hedging_is_worth_0_by_distance_too(value: str) -> None:
    assert judge("(150, 125) or (160, 125)", value=value).accuracy == 0.0


def test_the_decay_starts_from_the_centre_of_the_box_in_diagonals() -> None:
    # 100 from (150, 125) along x
    d = 100 / DIAGONAL
    assert judge("(250, 125)", value="linear").accuracy == pytest.approx(1 - d)
    assert judge("(250, 125)", value="gaussian", sigma=0.05).accuracy == pytest.approx(exp(-((d / 0.05) ** 2)))
    assert judge("(150, 125)", value="gaussian").accuracy == 1.0
    # Off by the whole diagonal nothing is left, and correctness stays the hit.
    assert judge("(1e90, 1e90)", value="linear").accuracy == 0.0
    assert judge("(1e90, 1e90)", value="gaussian", sigma=1e-9).accuracy == 0.0
    assert not judge("(201, 125)", value="linear").correct


@given(st.floats(-2000, 2000), st.floats(-2000, 2000), st.sampled_from(["in_box", "gaussian", "linear"]))
def test_the_nearer_click_is_never_worth_less(x: float, y: float, value: str) -> None:
    far, near = (judge(f"({150 + k * x:.6f}, {125 + k * y:.6f})", value=value) for k in (1, 0.5))
    assert 0 <= far.accuracy <= near.accuracy + 1e-9 <= 1 + 1e-9


def test_a_gold_point_is_hit_within_its_radius() -> None:
    gold = '{"point_2d": [100, 100], "radius": 10}'
    assert [judge(p, gold).accuracy for p in ("(106, 108)", "(106, 109)")] == [1.0, 0.0]
    assert [judge(p, "(100, 100)", radius=5).accuracy for p in ("(103, 104)", "(106, 108)")] == [1.0, 0.0]


# Several targets


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("(100, 100), (300, 300)", 1.0),
        ("(300, 305), (105, 100)", 1.0),
        ("(100, 100)", 2 / 3),
        ("(100, 100), (101, 100)", 1 / 2),
        ("(100, 100), (500, 500), (300, 300)", 4 / 5),
        ("(500, 500)", 0.0),
        ("nothing", 0.0),
    ],
)
def test_several_targets_are_worth_the_f1_of_a_one_to_one_matching(response: str, expected: float) -> None:
    outcome = judge(response, TWO)
    assert outcome.accuracy == pytest.approx(expected)
    assert outcome.report["f1"] == pytest.approx(expected)
    assert outcome.correct == (expected == 1.0)


def test_boxes_that_share_a_place_need_a_point_each() -> None:
    gold = "[[0, 0, 100, 100], [50, 0, 150, 100]]"
    # (75, 50) lies in both, (25, 50) only in the first: a greedy choice could leave the second without.
    assert judge("(75, 50), (25, 50)", gold).correct
    assert judge("(75, 50)", gold).accuracy == pytest.approx(2 / 3)


points = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=5, unique=True)


@given(points, points, st.randoms(use_true_random=False), st.sampled_from(["in_box", "gaussian", "linear"]))
def test_no_order_of_points_changes_the_reward(
    answered: list[tuple[int, int]], gold: list[tuple[int, int]], rng: random.Random, value: str
) -> None:
    row: dict[str, Any] = {"value": value, "radius": 5, "sigma": 0.01}
    first = judge(str(answered), str(gold), **row)
    again = judge(str(rng.sample(answered, len(answered))), str(rng.sample(gold, len(gold))), **row)
    assert again.accuracy == pytest.approx(first.accuracy, abs=1e-9)
    assert again.report == pytest.approx(first.report, abs=1e-9)
    assert 0 <= first.accuracy <= 1
    assert judge(str(gold), str(gold), **row).accuracy == pytest.approx(1.0, abs=1e-7)
    assert judge(str(gold), str(gold), **row).correct


# Spaces and gold


@pytest.mark.parametrize("gold_space", BoxSpace)
@pytest.mark.parametrize("answer_space", BoxSpace)
def test_the_same_place_in_any_two_spaces_is_a_hit(gold_space: BoxSpace, answer_space: BoxSpace) -> None:
    (w, h), (gw, gh) = extent(answer_space, SIZE), extent(gold_space, SIZE)
    click = f"({0.3 * w:.9f}, {0.4 * h:.9f})"
    gold = json.dumps([0.2 * gw, 0.35 * gh, 0.4 * gw, 0.45 * gh])
    spaces: dict[str, Any] = {"gold_space": gold_space, "answer_space": answer_space}
    assert judge(click, gold, (SIZE,), **spaces).accuracy == 1.0
    assert judge(click, gold, (SIZE,), value="linear", **spaces).accuracy == pytest.approx(1.0)


def test_distances_in_pixels_are_shares_of_the_pictures_diagonal() -> None:
    gold = '{"point_2d": [0, 0], "radius": 1}'
    spaces: dict[str, Any] = {"gold_space": "absolute_original", "answer_space": "absolute_original"}
    # The diagonal of 640 x 480 is 800.
    assert judge("(80, 0)", gold, (SIZE,), value="linear", **spaces).accuracy == pytest.approx(0.9)
    assert judge("(0, 80)", gold, (SIZE,), **spaces).report["distance"] == pytest.approx(0.1)
    assert judge("(1000, 0)", "(0, 0)", radius=1).report["distance"] == pytest.approx(1 / sqrt(2))


def test_a_missing_picture_size_is_unscorable_whatever_the_answer() -> None:
    rows: tuple[dict[str, Any], ...] = ({"answer_space": "absolute_resized"}, {"gold_space": "absolute_original"})
    for row in rows:
        for response in ("(1, 2)", "nothing"):
            with pytest.raises(Unscorable, match="need the size of the picture"):
                judge(response, **row)


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("", "no boxes or points"),
        ("[]", "no boxes or points"),
        ("(1, 2)", "has no radius"),
        ('{"point_2d": [1, 2], "radius": 0}', "has no radius"),
        ('[{"point_2d": [1, 2], "radius": 3}, {"point_2d": [3, 4]}]', "2 different points and 1 radii"),
        ("[5, 2, 5, 4]", "no area"),
        ('{"bbox_2d": [3, 2, 1, 4]}', "broken"),
        (str([[k, 0, k + 1, 1] for k in range(MAX_POINTS)]), "300 targets or more"),
    ],
)
def test_gold_that_marks_nothing_sound_is_unscorable(gold: str, message: str) -> None:
    with pytest.raises(Unscorable, match=message):
        judge("(1, 2)", gold)


def test_the_report_has_the_same_keys_and_finite_values_for_every_answer() -> None:
    reports = [judge(response).report for response in ("", "(1, 2)", "(1, 2), (3, 4)", "(1e99, -1e99)")]
    assert len({tuple(report) for report in reports}) == 1
    assert all(0 <= report["distance"] <= 1 for report in reports)


HOSTILE = ["(", "(1", "(1,", "(1,2", "[[", "1,", "<point ", '<point x="1" ', "x1=1 y1=2 ", '"point_2d": [', "<", " "]


@pytest.mark.parametrize("unit", [*HOSTILE, "(" + "1" * 400, "(" + " " * 400, '<points x="1" y="1" '])
def test_400000_characters_of_anything_are_judged(unit: str) -> None:
    assert not judge(unit * (400_000 // len(unit))).correct


@given(st.text(st.sampled_from("()[]{},.x=y<>point_2d: 0129e-\"'"), max_size=200))
def test_no_text_breaks_the_reading(text: str) -> None:
    assert len(read_points(text)) <= MAX_POINTS
