"""One box: reading, gates and values, spaces, spraying."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vtriune.data.boxes import BoxSpace, extent
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import ImageSize, Progress, RewardSpec
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.grounding import Grounding, GroundingParams

SIZE = ImageSize(original=(640, 480), resized=(644, 476))
GOLD = "[0, 0, 100, 100]"


def judge(
    response: str, gold: str = GOLD, eps: float | None = 0.5, sizes: tuple[ImageSize, ...] = (), **parameters: Any
) -> Outcome:
    params = GroundingParams(**parameters)
    context = Context(preset="modern", split="train", threshold=eps, image_sizes=sizes)
    verifier = Grounding()
    return verifier.judge(response, verifier.parse_gold(gold, params, context), params, context)


@pytest.mark.parametrize(
    "response",
    [
        "[0, 0, 80, 100]",
        "It is at [[0, 0, 80.0, 100]].",
        '<think>[5, 5, 9, 9]</think><answer>{"bbox_2d": [0, 0, 80, 100], "label": "the cat\'s"}</answer>',
        "<think>.</think><answer>\n```json\n[{'bbox_2d': [0, 0, 80, 100]}]\n```\n</answer>",
        "<answer>[1, 1, 2, 2]</answer><answer>[0, 0, 80, 100]</answer>",
        "[0, 0, 80, 100], again: [0, 0, 80, 100]",
    ],
)
def test_one_box_is_read_however_it_is_written(response: str) -> None:
    outcome = judge(response)
    assert (outcome.accuracy, outcome.correct, outcome.reason) == (0.8, True, "")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "no box found in the answer"),
        ("<think>[0, 0, 100, 100]", "no box found in the answer"),
        ("a cat, [1, 2, 3]", "no box found in the answer"),
        ("[100, 0, 0, 100]", "no box found in the answer"),
        ("[0, 0, 1e999, 100]", "no box found in the answer"),
        ("[nan, 0, 100, 100]", "no box found in the answer"),
        ("[]", "no box found in the answer"),
        ("[0, 0, 100, 100] or [0, 0, 90, 100]", "several boxes in the answer"),
        (json.dumps([{"bbox_2d": [0, 0, k, 100]} for k in range(1, 200)]), "several boxes in the answer"),
        ("[300, 300, 400, 400]", "IoU 0 is worth nothing"),
        ("[0, 0, 40, 100]", "IoU 0.4 is worth nothing"),
    ],
)
def test_anything_else_is_0_and_says_why(response: str, reason: str) -> None:
    outcome = judge(response)
    assert (outcome.accuracy, outcome.correct, outcome.reason) == (0.0, False, reason)


@pytest.mark.parametrize(
    ("parameters", "eps", "expected"),
    [
        ({}, 0.5, 0.8),
        ({}, 0.9, 0.0),
        ({"value": "giou"}, 0.5, 0.9),
        ({"value": "acc"}, 0.99, 1.0),
        ({"gate": "averaged"}, 0.99, 0.8 * 0.7),
        ({"gate": "saturating"}, 0.8, 1.0),
        ({"gate": "saturating"}, 1.0, 0.8),
    ],
)
def test_values_and_gates(parameters: dict[str, Any], eps: float, expected: float) -> None:
    outcome = judge("[0, 0, 80, 100]", eps=eps, **parameters)
    assert outcome.accuracy == pytest.approx(expected, abs=1e-12)
    assert outcome.correct


def test_giou_without_a_threshold_pays_a_miss_the_more_the_nearer_it_is() -> None:
    far, near = (judge(box, eps=0, value="giou") for box in ("[800, 0, 900, 100]", "[150, 0, 250, 100]"))
    assert 0 < far.accuracy < near.accuracy < 0.5
    assert not near.correct
    # Hull 250 x 100, union 200 x 100: GIoU is -0.2.
    assert near.report["giou"] == pytest.approx(-0.2)


def test_acc_with_a_gate_is_refused() -> None:
    with pytest.raises(ValidationError, match="has its own threshold"):
        GroundingParams(value="acc", gate="averaged")


def test_the_schedule_resolves_eps_in_training_only() -> None:
    parameters = {"iou_threshold": [[0, 0.5], [0.5, 0.9]]}
    spec = RewardSpec("grounding", GOLD, parameters=parameters)
    rewards = [
        judge_item(JudgeItem("[0, 0, 80, 100]", spec, progress)).reward
        for progress in (Progress(0, 10, "train"), Progress(9, 10, "train"), Progress(9, 10, "test"))
    ]
    assert rewards == [0.8, 0.0, 0.8]


@pytest.mark.parametrize("gold_space", BoxSpace)
@pytest.mark.parametrize("answer_space", BoxSpace)
def test_the_same_place_in_any_two_spaces_is_a_perfect_answer(gold_space: BoxSpace, answer_space: BoxSpace) -> None:
    def written(space: BoxSpace) -> str:
        width, height = extent(space, SIZE)
        return json.dumps([0.25 * width, 0.125 * height, 0.75 * width, 0.5 * height])

    outcome = judge(
        written(answer_space), written(gold_space), 0.99, (SIZE,), gold_space=gold_space, answer_space=answer_space
    )
    assert outcome.accuracy == pytest.approx(1.0, abs=1e-9)


def test_a_missing_picture_size_or_threshold_is_unscorable() -> None:
    for response in ("[0, 0, 1, 1]", "nothing"):
        with pytest.raises(Unscorable, match="absolute_resized need the size of the picture"):
            judge(response, answer_space="absolute_resized")
    with pytest.raises(Unscorable, match="needs a threshold eps"):
        judge("[0, 0, 1, 1]", eps=None)


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("a cat", "holds 0 boxes"),
        ("[]", "holds 0 boxes"),
        ("[3, 2, 1, 4]", "holds 0 boxes"),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", "holds 2 boxes"),
        ("[5, 2, 5, 4]", "no area"),
    ],
)
def test_gold_that_is_not_one_box_is_unscorable(gold: str, message: str) -> None:
    with pytest.raises(Unscorable, match=message):
        judge("[]", gold)


corner = st.integers(0, 1000)


@given(st.lists(corner, min_size=4, max_size=4), st.floats(0, 1), st.sampled_from(["iou", "giou", "acc"]))
def test_every_answer_lies_in_0_to_1_and_gold_itself_is_1(corners: list[int], eps: float, value: str) -> None:
    outcome = judge(str(corners), eps=eps, value=value)
    assert 0 <= outcome.accuracy <= 1
    assert outcome.correct == (outcome.report["iou"] >= 0.5)
    assert judge(GOLD, eps=eps, value=value).accuracy == 1.0


def test_the_report_has_the_same_keys_for_every_answer() -> None:
    assert len({tuple(judge(response).report) for response in ("", "[0, 0, 1, 1]", "[0, 0, 1, 1][0, 0, 2, 2]")}) == 1


@pytest.mark.parametrize("unit", ["[", "[1,", "[1,2,3,4]", "[1,2,3,4", '{"bbox_2d": [', "<answer>", "</think>", "]"])
def test_400000_characters_of_anything_are_judged(unit: str) -> None:
    assert not judge(unit * (400_000 // len(unit))).correct


@given(
    gold=st.tuples(st.floats(0, 900), st.floats(0, 900), st.floats(1, 100), st.floats(1, 100)),
    value=st.sampled_from(["iou", "giou", "acc"]),
    space=st.sampled_from([BoxSpace.RELATIVE_1000, BoxSpace.ABSOLUTE_RESIZED]),
    eps=st.sampled_from([0.5, 0.95, 0.99]),
)
def test_the_ceiling_is_what_gold_itself_is_worth_in_whole_units(
    gold: tuple[float, float, float, float], value: str, space: BoxSpace, eps: float
) -> None:
    x, y, w, h = gold
    width, height = extent(space, SIZE)
    unit = (width / 1000, height / 1000) * 2
    whole = [round(one * u) for one, u in zip((x, y, x + w, y + h), unit, strict=True)]
    outcome = judge(json.dumps(whole), str([x, y, x + w, y + h]), eps, (SIZE,), value=value, answer_space=space)
    assert outcome.accuracy == pytest.approx(outcome.report["iou_ceiling"], abs=1e-9)
    assert outcome.report["eps"] == eps


def test_fractions_have_no_whole_units_and_so_no_ceiling() -> None:
    assert "iou_ceiling" not in judge("[0, 0, 0.1, 0.1]", answer_space=BoxSpace.RELATIVE_1).report
