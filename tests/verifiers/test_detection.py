"""The detection verifier: rewards by preset, the report, box spaces, and each known fault of the released server."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.data.boxes import BoxSpace, extent
from vtriune.types import ImageSize, Preset
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.box_text import MAX_BOXES
from vtriune.verifiers.detection import Detection, DetectionParams
from vtriune.verifiers.released_detection import DetRewardRatio

VERIFIER = Detection()
ATTESTED = DetRewardRatio(iou_max_label_first=1.0, iou_completeness=0.3)
OURS: tuple[Preset, ...] = ("paper", "modern")
PRESETS: tuple[Preset, ...] = (*OURS, "official_code")
SIZE = ImageSize(original=(640, 480), resized=(644, 476))

Item = tuple[list[float], str]

A: Item = ([0, 0, 100, 100], "cat")
A90: Item = ([0, 0, 90, 100], "cat")  # IoU with A: 0.9
B: Item = ([200, 0, 300, 100], "cat")
C: Item = ([400, 0, 500, 100], "cat")
DOG: Item = ([200, 0, 300, 100], "dog")


def listed(items: list[Item]) -> str:
    return json.dumps([{"bbox_2d": box, "label": label} for box, label in items])


def answer(content: str) -> str:
    return f"<think>\nlooking\n</think>\n\n<answer>\n{content}\n</answer>"


def judge(
    response: str,
    gold: str,
    preset: Preset = "modern",
    eps: float | None = 0.5,
    sizes: tuple[ImageSize, ...] = (),
    **parameters: Any,
) -> Outcome:
    params = DetectionParams(**{"det_reward_ratio": ATTESTED} | parameters)
    context = Context(preset=preset, split="train", threshold=eps, image_sizes=sizes)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, context), params, context)


def judge_items(predicted: list[Item], gold: list[Item], preset: Preset = "modern", eps: float = 0.5) -> Outcome:
    return judge(answer(listed(predicted)), answer(listed(gold)), preset, eps)


# Rewards


@pytest.mark.parametrize(("eps", "expected"), [(0.85, 0.9), (0.9, 0.9), (0.95, 0.0), (0.99, 0.0)])
@pytest.mark.parametrize("preset", OURS)
def test_one_box_is_worth_its_iou_if_that_reaches_eps(preset: Preset, eps: float, expected: float) -> None:
    assert judge_items([A90], [A], preset, eps).accuracy == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("eps", "expected"), [(0.85, 0.93), (0.95, 0.0), (0.99, 0.0)])
def test_the_released_reward_follows_the_scheduled_threshold(eps: float, expected: float) -> None:
    # IoU 0.9: 0.7 * 0.9 + 0.3 * 1 = 0.93 while eps <= 0.9, afterwards nothing is matched
    assert judge_items([A90], [A], "official_code", eps).accuracy == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("predicted", "gold", "paper", "modern"),
    [
        ([A, B], [A, B], 1.0, 1.0),
        ([A90, B], [A, B], 1.9 / 2, 1.9 / 2),
        ([A], [A, B], 1 / 2, 2 / 3),
        ([A, B, C], [A], 1 / 3, 2 / 4),
        ([A, A, A], [A], 1 / 3, 2 / 4),
        ([DOG], [B], 0.0, 0.0),
        ([A, DOG], [A, DOG], 1.0, 1.0),
        ([C], [A], 0.0, 0.0),
        ([A], [], 0.0, 0.0),
        ([], [A], 0.0, 0.0),
        ([], [], 1.0, 1.0),
    ],
)
def test_several_boxes_are_matched_one_to_one_within_a_label(
    predicted: list[Item], gold: list[Item], paper: float, modern: float
) -> None:
    assert judge_items(predicted, gold, "paper").accuracy == pytest.approx(paper, abs=1e-12)
    assert judge_items(predicted, gold, "modern").accuracy == pytest.approx(modern, abs=1e-12)


@st.composite
def some_items(draw: st.DrawFn) -> list[Item]:
    items: list[Item] = []
    for label in draw(st.lists(st.sampled_from(["cat", "dog"]), max_size=5)):
        x, y = draw(st.integers(0, 20)), draw(st.integers(0, 20))
        items.append(([x, y, x + draw(st.integers(1, 10)), y + draw(st.integers(1, 10))], label))
    return items


@given(some_items(), some_items(), st.randoms(use_true_random=False), st.sampled_from(OURS), st.floats(0, 1))
def test_no_order_of_boxes_changes_the_reward_or_correctness(
    predicted: list[Item], gold: list[Item], rng: random.Random, preset: Preset, eps: float
) -> None:
    first = judge_items(predicted, gold, preset, eps)
    again = judge_items(rng.sample(predicted, len(predicted)), rng.sample(gold, len(gold)), preset, eps)
    assert again.accuracy == pytest.approx(first.accuracy, abs=1e-9)
    assert again.correct == first.correct


@given(some_items(), some_items(), st.sampled_from(OURS))
def test_every_figure_but_the_counts_lies_within_0_and_1(
    predicted: list[Item], gold: list[Item], preset: Preset
) -> None:
    outcome = judge_items(predicted, gold, preset)
    counts = {"n_pred", "n_gold", "dropped_boxes"}
    figures = [value for name, value in outcome.report.items() if name not in counts]
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in [outcome.accuracy, outcome.format, *figures])
    assert (outcome.report["n_pred"], outcome.report["n_gold"]) == (len(predicted), len(gold))


@given(some_items(), st.randoms(use_true_random=False), st.sampled_from(OURS), st.floats(0, 1))
def test_gold_in_any_order_is_a_perfect_answer(
    gold: list[Item], rng: random.Random, preset: Preset, eps: float
) -> None:
    outcome = judge_items(rng.sample(gold, len(gold)), gold, preset, eps)
    assert outcome.accuracy == pytest.approx(1.0, abs=1e-12)
    assert outcome.correct
    assert {outcome.report[name] for name in ("f1", "map", "iou_99", "precision_99", "recall_99")} == {1.0}


# The report and correctness


def test_the_report_has_the_same_keys_for_every_answer() -> None:
    outcomes = [
        judge(response, gold, preset)
        for response in ("", answer("[]"), answer(listed([A, C])))
        for gold in (answer(listed([A])), answer("[]"))
        for preset in OURS
    ]
    assert len({tuple(outcome.report) for outcome in outcomes}) == 1
    assert set(outcomes[0].report) == {
        *(f"{figure}_{eps}" for figure in ("iou", "precision", "recall") for eps in (50, 75, 95, 99)),
        *("f1", "mean_iou", "map", "map50", "map75", "n_pred", "n_gold", "dropped_boxes", "eps", "iou_ceiling"),
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_the_report_is_the_same_in_every_preset_and_at_every_threshold(preset: Preset) -> None:
    report = dict(judge_items([A90, C], [A, B], preset, eps=0.99).report)
    assert report.pop("eps") == 0.99
    assert report.pop("iou_ceiling") == 1.0  # gold is whole
    # A90 has IoU 0.9 with A, C meets nothing.
    assert report == pytest.approx(
        {
            **{"iou_50": 0.45, "iou_75": 0.45, "iou_95": 0.0, "iou_99": 0.0},
            **{"precision_50": 0.5, "precision_75": 0.5, "precision_95": 0.0, "precision_99": 0.0},
            **{"recall_50": 0.5, "recall_75": 0.5, "recall_95": 0.0, "recall_99": 0.0},
            **{"f1": 0.5, "mean_iou": 0.9, "n_pred": 2.0, "n_gold": 2.0, "dropped_boxes": 0.0},
            # Recall 0.5 at precision 1 covers 51 of 101 levels, at 9 of 10 thresholds.
            **{"map": 0.9 * 51 / 101, "map50": 51 / 101, "map75": 51 / 101},
        },
        abs=1e-12,
    )


def test_mean_iou_is_over_all_overlapping_pairs_however_small_the_overlap() -> None:
    far: Item = ([80, 0, 180, 100], "cat")  # IoU with A: 2,000 / 18,000
    assert judge_items([far], [A]).report["mean_iou"] == pytest.approx(1 / 9)
    assert judge_items([C], [A]).report["mean_iou"] == 0.0


def test_correct_means_that_every_box_meets_its_own_at_half_overlap() -> None:
    half: Item = ([0, 0, 50, 100], "cat")
    assert judge_items([half, B], [B, A], eps=0.99).correct
    assert not judge_items([A], [A, B]).correct
    assert not judge_items([A, A], [A]).correct
    assert not judge_items([([0, 0, 49, 100], "cat")], [A]).correct


def test_nothing_said_to_be_there_where_nothing_is_has_full_figures() -> None:
    report = judge_items([], []).report
    other = ("n_pred", "n_gold", "dropped_boxes", "eps")
    assert {value for name, value in report.items() if name not in other} == {1.0}


def test_a_0_says_why() -> None:
    gold = answer(listed([A]))
    assert judge("I see a cat.", gold).reason == "no boxes found in the answer"
    assert judge(answer("[]"), gold).reason == "no match at IoU 0.5"
    assert judge(answer(listed([A90])), gold, eps=0.95).reason == "no match at IoU 0.95"
    assert judge(answer(listed([A90])), gold).reason == ""


# The ceiling

sides = st.tuples(st.floats(0, 900), st.floats(0, 900), st.floats(1, 100), st.floats(1, 100))


@given(
    corners=st.lists(sides, min_size=1, max_size=3),
    preset=st.sampled_from(PRESETS),
    space=st.sampled_from([BoxSpace.RELATIVE_1000, BoxSpace.ABSOLUTE_RESIZED, BoxSpace.ABSOLUTE_ORIGINAL]),
    eps=st.sampled_from([0.5, 0.85, 0.95, 0.99]),
)
def test_the_ceiling_is_what_gold_itself_is_worth_in_whole_units(
    corners: list[tuple[float, float, float, float]], preset: Preset, space: BoxSpace, eps: float
) -> None:
    gold: list[Item] = [([x, y, x + w, y + h], f"thing {n}") for n, (x, y, w, h) in enumerate(corners)]
    width, height = extent(space, SIZE)
    unit = (width / 1000, height / 1000) * 2
    whole: list[Item] = [([round(one * u) for one, u in zip(box, unit, strict=True)], name) for box, name in gold]
    given = {"preset": preset, "eps": eps, "sizes": (SIZE,), "answer_space": space}
    outcome = judge(answer(listed(whole)), answer(listed(gold)), **given)  # type: ignore[arg-type]
    assert outcome.accuracy == pytest.approx(outcome.report["iou_ceiling"], abs=1e-9)
    assert judge("nothing", answer(listed(gold)), **given).report["iou_ceiling"] == outcome.report["iou_ceiling"]  # type: ignore[arg-type]


def test_small_boxes_that_pixels_cannot_say_have_a_ceiling_below_1() -> None:
    small, large = ([100.4, 100.4, 130.4, 130.4], "cat"), ([100.4, 100.4, 900.4, 900.4], "cat")
    assert judge_items([], [small], eps=0.99).report["iou_ceiling"] == 0
    assert judge_items([], [small], eps=0.5).report["iou_ceiling"] == pytest.approx((29.6 / 30.4) ** 2, abs=1e-3)
    assert judge_items([], [large], eps=0.99).report["iou_ceiling"] > 0.99


def test_fractions_have_no_whole_units_and_so_no_ceiling() -> None:
    report = judge(answer("[]"), answer(listed([A])), answer_space=BoxSpace.RELATIVE_1).report
    assert "iou_ceiling" not in report


# Box spaces


@pytest.mark.parametrize("gold_space", BoxSpace)
@pytest.mark.parametrize("answer_space", BoxSpace)
@pytest.mark.parametrize("preset", OURS)
def test_the_same_place_in_any_two_spaces_is_a_perfect_answer(
    gold_space: BoxSpace, answer_space: BoxSpace, preset: Preset
) -> None:
    def written(space: BoxSpace) -> str:
        width, height = extent(space, SIZE)
        return answer(listed([([0.25 * width, 0.125 * height, 0.75 * width, 0.5 * height], "cat")]))

    spaces: dict[str, Any] = {"gold_space": gold_space, "answer_space": answer_space}
    outcome = judge(written(answer_space), written(gold_space), preset, eps=0.99, sizes=(SIZE,), **spaces)
    assert outcome.accuracy == pytest.approx(1.0, abs=1e-9)


def test_answers_in_pixels_are_not_rounded_but_the_released_code_truncates_them() -> None:
    gold = answer(listed([([0, 0, 500, 500], "cat")]))
    # 322.9 / 644 * 1000 = 501.39..., 238 / 476 * 1000 = 500
    response = answer(listed([([0, 0, 322.9, 238], "cat")]))
    as_is: dict[str, Any] = {"sizes": (SIZE,), "det_verifier_normalized": True}
    assert judge(response, gold, "modern", **as_is).accuracy == pytest.approx(500 / (322.9 / 0.644), abs=1e-12)
    # truncated to 501: IoU 500 / 501; 0.7 * 500 / 501 + 0.3
    assert judge(response, gold, "official_code", **as_is).accuracy == pytest.approx(0.7 * 500 / 501 + 0.3, abs=1e-9)


def test_the_answer_space_of_the_model_overrules_the_rows_flag() -> None:
    gold = answer(listed([A]))
    said: dict[str, Any] = {"det_verifier_normalized": True, "answer_space": "relative_1000"}
    assert judge(gold, gold, sizes=(SIZE,), **said).accuracy == 1.0


@pytest.mark.parametrize("preset", OURS)
def test_a_missing_picture_size_is_unscorable_where_it_is_needed(preset: Preset) -> None:
    gold = answer(listed([A]))
    with pytest.raises(Unscorable, match="absolute_resized need the size of the picture"):
        judge(gold, gold, preset, det_verifier_normalized=True)


def test_the_released_code_takes_answers_as_they_stand_where_the_size_is_missing() -> None:
    gold = answer(listed([A]))
    assert judge(gold, gold, "official_code", det_verifier_normalized=True).accuracy == 1.0


def test_without_a_threshold_nothing_can_be_judged() -> None:
    with pytest.raises(Unscorable, match="needs a threshold eps"):
        judge(answer(listed([A])), answer(listed([A])), eps=None)


# Gold that cannot be judged against


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("", "no boxes found in gold"),
        ("a cat", "no boxes found in gold"),
        ("<answer>[{'bbox_2d': [3, 2, 1, 4], 'label': 'cat'}]</answer>", "1 of the gold boxes are broken"),
        ("<answer>[{'bbox_2d': [1, 2, 1e999, 4], 'label': 'cat'}]</answer>", "1 of the gold boxes are broken"),
        ("<answer>[{'bbox_2d': [1, 2, 3], 'label': 'cat'}]</answer>", "1 of the gold boxes are broken"),
    ],
)
def test_gold_without_sound_boxes_is_unscorable(gold: str, message: str, preset: Preset) -> None:
    with pytest.raises(Unscorable, match=message):
        judge(answer("[]"), gold, preset)


@pytest.mark.parametrize("preset", OURS)
def test_nan_and_boxes_without_area_in_gold_are_unscorable(preset: Preset) -> None:
    with pytest.raises(Unscorable, match="broken"):
        judge(answer("[]"), "[{'bbox_2d': [NaN, 2, 3, 4], 'label': 'cat'}]", preset)
    with pytest.raises(Unscorable, match="a gold box has no area"):
        judge(answer("[]"), "[{'bbox_2d': [5, 2, 5, 4], 'label': 'cat'}]", preset)


def test_gold_of_too_many_boxes_is_unscorable() -> None:
    with pytest.raises(Unscorable, match="1000 boxes or more"):
        judge(answer("[]"), listed([([i, 0, i + 1, 1], "cat") for i in range(MAX_BOXES)]))


def test_what_the_released_code_scores_0_without_a_word_is_unscorable_in_official_code() -> None:
    with pytest.raises(Unscorable, match="needs a weight above 0"):
        judge(answer("[]"), answer(listed([A])), "official_code", det_reward_ratio=DetRewardRatio())
    with pytest.raises(Unscorable, match="no boxes found in gold"):
        judge(answer("[]"), answer("[]"), "official_code")


@pytest.mark.parametrize("preset", OURS)
def test_gold_is_read_with_and_without_tags(preset: Preset) -> None:
    for gold in (listed([A]), answer(listed([A])), str([{"bbox_2d": A[0], "label": A[1]}])):
        assert judge(answer(listed([A])), gold, preset).accuracy == 1.0


# The faults found by running the released reward server


@pytest.mark.parametrize("preset", OURS)
@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (answer("[{'bbox_2d': [1, 2, 3, 4], 'label': 'driver's seat'}]"), [([1, 2, 3, 4], "driver's seat")]),
        (answer(f"```json\n{listed([A])}\n```"), [A]),
        (answer(listed([A])[:-1] + ",]"), [A]),
        (answer(listed([A, B])[:-5]), [A]),
        (answer(listed([A])[1:-1]), [A]),
        (answer(listed([A]) + "\nThat is the cat."), [A]),
        (answer("[]"), []),
        (f"<think><answer>{listed([C])}</answer> no</think><answer>{listed([A])}</answer>", [A]),
        (answer(listed([C])) + answer(listed([A])), [A]),
        (f"<think>.</think>```json\n{listed([A])}\n```", [A]),
        (f"<think>.</think><answer>{listed([A])}", [A]),
        (answer(listed([(A[0], " Cat ")])), [A]),
        (answer(listed([(A[0], "traffic   LIGHT")])), [(A[0], "Traffic light")]),
        (answer(listed([B, A])), [A, B]),
        (answer("[{'bbox_2d': [5, 6, 1e999, 8], 'label': 'cat'}, " + listed([A])[1:]), [A]),
        (answer("[{'bbox_2d': [9, 6, 1, 8], 'label': 'cat'}, " + listed([A])[1:]), [A]),
    ],
)
def test_a_right_answer_is_right_however_it_is_written(response: str, gold: list[Item], preset: Preset) -> None:
    outcome = judge(response, answer(listed(gold)), preset, eps=0.99)
    assert outcome.accuracy == 1.0
    assert outcome.correct


def test_dropped_boxes_are_counted() -> None:
    broken = "[{'bbox_2d': [9, 6, 1, 8], 'label': 'cat'}, " + listed([A])[1:]
    report = judge(answer(broken), answer(listed([A]))).report
    assert (report["n_pred"], report["dropped_boxes"]) == (1.0, 1.0)


@pytest.mark.parametrize("preset", OURS)
@pytest.mark.parametrize(
    "response",
    [
        "",
        answer(""),
        answer("There is nothing."),
        answer("[{'bbox_2d': [9, 6, 1, 8], 'label': 'cat'}]"),
        "<think>[]",
        "<think><answer>[]</answer>",
    ],
)
def test_only_an_empty_list_says_that_nothing_is_there(response: str, preset: Preset) -> None:
    outcome = judge(response, answer("[]"), preset)
    assert (outcome.accuracy, outcome.correct, outcome.report["map"]) == (0.0, False, 0.0)


@pytest.mark.parametrize("preset", OURS)
def test_a_hit_among_19_boxes_of_other_labels_is_not_a_full_hit(preset: Preset) -> None:
    outcome = judge_items([A] + [([i, 0, i + 5, 5], "kite") for i in range(19)], [A], preset)
    assert outcome.accuracy < 0.1
    assert not outcome.correct


@pytest.mark.parametrize("preset", OURS)
def test_a_miss_before_or_after_the_hit_costs_the_same(preset: Preset) -> None:
    before, after = (judge_items(order, [A], preset).accuracy for order in ([C, A], [A, C]))
    assert before == after


def test_a_second_answer_tag_costs_format_except_in_the_released_code() -> None:
    twice = answer(listed([A])) + "\n<answer>\n"
    formats = [judge(twice, answer(listed([A])), preset).format for preset in PRESETS]
    assert formats == [0.75, 0.75, 1.0]


def test_the_released_format_wants_boxes_that_can_be_read() -> None:
    gold = answer(listed([A]))
    assert judge(answer("none"), gold, "official_code").format == 0.0
    assert judge(answer(listed([A])), gold, "official_code").format == 1.0
    assert judge(answer("none"), gold, "modern").format == 1.0


def test_spraying_boxes_is_bounded_and_earns_next_to_nothing() -> None:
    grid: list[Item] = [([x, y, x + 100, y + 100], "cat") for x in range(0, 900, 9) for y in range(0, 900, 9)]
    outcome = judge_items([A, *grid], [A], eps=0.85)
    assert outcome.report["n_pred"] == MAX_BOXES
    assert outcome.accuracy < 0.002


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("unit", ["<answer>", "</answer>", "{", '{"bbox_2d": [', "[", '"', "[]", "</think>", "}],"])
def test_400000_characters_of_anything_are_judged(unit: str, preset: Preset) -> None:
    text = unit * (400_000 // len(unit))
    assert not judge(text, answer(listed([A])), preset).correct
    assert not judge(answer(text), answer(listed([A])), preset).correct
