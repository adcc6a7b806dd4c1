"""The released protocol: what the released client sends reads as an item, and a verdict as what its trainer reads.

The figures of the boxes are computed by hand; every step of the arithmetic stands beside them.
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.reward import released
from vtriune.reward.judge import JudgeItem, exhausted, judge_item
from vtriune.reward.released import Payload, read, write
from vtriune.types import ImageSize, Progress, Status, UserError
from vtriune.verifiers.box_text import Box
from vtriune.verifiers.released_detection import RELEASED_FIGURES, DetRewardRatio, released_figures

EXACT = 1e-9
CONTEXT = {"is_training": True, "step": 1, "total_steps": 100, "image_grid_thw": [[1, 560, 840]], "image_path": ["a"]}
GOLD = "<answer>\n[{'bbox_2d': [0, 0, 100, 100], 'label': 'cat'}]\n</answer>"
ANSWERED = "<think>\nx\n</think>\n<answer>\n[{'bbox_2d': [0, 0, 90, 100], 'label': 'cat'}]\n</answer>"
NULLS = dict.fromkeys(DetRewardRatio.model_fields)
REWARDS = {"format_reward", "accuracy_reward", "reflection_reward", "final_reward"}


def payload(parm: object = None, **changes: Any) -> Payload:
    fields = {
        "response": ANSWERED,
        "prompt": "Detect every cat.",
        "answer": "",
        "solution": GOLD,
        "data_source": "coco",
        "reward_verifier": "detection",
        "reward_verifier_parm": orjson.dumps(CONTEXT if parm is None else parm).decode(),
    }
    return Payload(**(fields | changes))


def detection(ratio: dict[str, object] | None = None, **changes: Any) -> Payload:
    return payload(CONTEXT | {"det_reward_ratio": ratio or {"iou_max_label_first": 1.0}}, **changes)


def mathematics(parm: dict[str, object] | None = None) -> Payload:
    return payload(CONTEXT | (parm or {}), reward_verifier="mathverify", solution="4", response=r"\boxed{4}")


def rewards_of(item: JudgeItem) -> dict[str, float]:
    verdict = judge_item(item)
    assert verdict.status is Status.SCORED, verdict.reason
    rewards: dict[str, float] = write(item, verdict)["rewards"]
    return rewards


@pytest.mark.parametrize(
    "parm",
    [
        {},
        {"det_verifier_normalized": False, "det_reward_ratio": NULLS},
        {"det_verifier_normalized": None, "det_reward_ratio": None, "verifier_style": "rule"},
        {"det_verifier_normalized": True, "det_reward_ratio": {"iou_max_label_first": 1.0}},
        {"image_grid_thw": [[1, 0, 0]]},
        {"image_grid_thw": None, "image_path": None},
    ],
)
def test_a_row_of_mathematics_is_judged_whatever_keys_of_detection_it_carries(parm: dict[str, object]) -> None:
    # 0.5 of the accuracy's weight is wanted for the layout, of which nothing is there: (1 * 1 + 0.5 * 0) / 1.5
    item = read(mathematics(parm).model_copy(update={"accuracy_ratio": 1.0, "format_ratio": 0.5}), "official_code")
    rewards = rewards_of(item)
    assert set(rewards) == REWARDS
    assert rewards["final_reward"] == pytest.approx(2 / 3, abs=EXACT)


def test_the_weights_that_the_client_leaves_out_are_1_and_a_tenth() -> None:
    spec = read(mathematics(), "official_code").spec
    assert (spec.accuracy_weight, spec.format_weight) == (1.0, 0.1)


def test_nulls_of_detection_are_left_out() -> None:
    item = read(payload(CONTEXT | {"det_reward_ratio": NULLS | {"map50": 1.0}}), "official_code")
    assert item.spec.parameters["det_reward_ratio"] == {"map50": 1.0}


def test_a_weight_beyond_1_counts_as_0_and_an_unknown_one_not_at_all() -> None:
    item = read(detection({"iou_max_label_first": 1.0, "map": 1.5, "map50": -1, "map95": 1.0}), "official_code")
    assert item.spec.parameters["det_reward_ratio"] == {"iou_max_label_first": 1.0, "map": 0.0, "map50": 0.0}


def test_a_weight_that_is_no_number_is_refused() -> None:
    verdict = judge_item(read(detection({"iou_max_label_first": "much"}), "official_code"))
    assert verdict.status is Status.UNSCORABLE
    assert "det_reward_ratio.iou_max_label_first" in verdict.reason


@pytest.mark.parametrize(
    ("step", "training", "eps"),
    [(1, True, 0.85), (10, True, 0.85), (11, True, 0.95), (25, True, 0.95), (26, True, 0.99), (26, False, 0.99)],
)
def test_the_threshold_goes_by_progress_and_not_by_split(step: int, training: bool, eps: float) -> None:
    parm = CONTEXT | {"step": step, "is_training": training, "det_reward_ratio": {"iou_max_label_first": 1.0}}
    item = read(payload(parm), "official_code")
    # IoU 0.9, so that it counts up to 0.85; the layout is right: (0.9 + 0.1) / 1.1 or 0.1 / 1.1
    expected = (0.9 * (eps < 0.9) + 0.1) / 1.1
    assert rewards_of(item)["final_reward"] == pytest.approx(expected, abs=EXACT)


def test_pixels_of_the_resized_picture_are_converted_and_truncated() -> None:
    # A picture of 840 x 560: 75.6 / 840 * 1000 = 90, 56 / 560 * 1000 = 100, so that the IoU is 9,000 / 10,000.
    parm = CONTEXT | {"det_verifier_normalized": True, "det_reward_ratio": {"iou_max_label_first": 1.0}}
    response = ANSWERED.replace("[0, 0, 90, 100]", "[0, 0, 75.65, 56.5]")
    item = read(payload(parm, response=response), "official_code")
    assert item.image_sizes == (ImageSize((840, 560), (840, 560)),)
    assert rewards_of(item)["accuracy_reward"] == pytest.approx(0.9, abs=EXACT)


def test_another_preset_sees_the_split_and_counts_steps_from_0() -> None:
    parm = CONTEXT | {"step": 11, "is_training": False}
    item = read(payload(parm), "modern")
    assert item.progress == Progress(10, 100, "test")
    assert item.spec.preset == "modern"
    rewards = rewards_of(item)
    assert rewards["iou_50_reward"] == pytest.approx(0.9, abs=EXACT)
    assert set(rewards) > REWARDS


@pytest.mark.parametrize(
    ("parm", "reason"),
    [
        ("{", "is not JSON"),
        ("null", "is no JSON object"),
        ("[1]", "is no JSON object"),
        (CONTEXT | {"total_steps": 0}, "total_steps"),
        (CONTEXT | {"total_steps": None}, "total_steps"),
        (CONTEXT | {"step": "1"}, "step"),
        (CONTEXT | {"is_training": None}, "is_training"),
        (CONTEXT | {"image_grid_thw": [[1, 560, 0]]}, "without an area"),
        (CONTEXT | {"image_grid_thw": [[560, 0]]}, "image_grid_thw"),
        (CONTEXT | {"image_grid_thw": 7}, "image_grid_thw"),
    ],
)
def test_what_the_released_server_answers_with_a_silent_0_is_refused_by_name(parm: object, reason: str) -> None:
    text = parm if isinstance(parm, str) else orjson.dumps(parm).decode()
    with pytest.raises(UserError, match=reason):
        read(payload(reward_verifier_parm=text), "official_code")


def test_parameters_of_any_depth_are_refused_and_never_crash() -> None:
    for depth in (17, 200, 1000):
        text = orjson.dumps(CONTEXT).decode()[:-1] + ',"x":' + '{"a":' * depth + "1" + "}" * depth + "}"
        with pytest.raises(UserError, match=r"deeper|not JSON"):
            read(payload(reward_verifier_parm=text), "official_code")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*CONTEXT, "det_reward_ratio", "det_verifier_normalized", "iou_threshold", "x"]), json_values
    ),
    st.sampled_from(["mathverify", "detection", "grounding", "nonsense"]),
    st.sampled_from(["official_code", "modern", "paper"]),
)
def test_parameters_of_any_kind_read_as_an_item_or_are_refused(
    parm: dict[str, object], verifier: str, preset: Any
) -> None:
    text = orjson.dumps(CONTEXT | {key: value for key, value in parm.items() if _fits(value)}).decode()
    try:
        item = read(payload(reward_verifier_parm=text, reward_verifier=verifier), preset)
    except UserError:
        return
    verdict = judge_item(item)
    if verdict.status is Status.SCORED:
        told = write(item, verdict)["rewards"]
        assert set(told) >= REWARDS
        assert orjson.loads(orjson.dumps(told)) == told


def _fits(value: object) -> bool:
    """Can orjson write it? Its whole numbers end at 64 bits."""
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def test_an_answer_that_exhausts_its_verifier_has_all_figures_of_detection() -> None:
    item = read(detection(), "official_code")
    rewards = write(item, exhausted("cpu limit"))["rewards"]
    assert set(rewards) == REWARDS | {f"{name}_reward" for name in RELEASED_FIGURES}
    assert set(rewards.values()) == {0.0}


def test_the_keys_of_detection_are_those_that_the_released_trainer_averages() -> None:
    expected = {"size_penalty_reward", *REWARDS}
    for kind in ("pure", "weighted"):
        expected |= {f"{kind}_iou_score_max_{by}_reward" for by in ("iou", "label")}
        expected |= {f"{kind}_map{at}_score_reward" for at in ("", "50", "75")}
    for match in ("50_iou", "95_iou", "50_label", "75_label", "95_label", "99_label"):
        expected |= {f"report_iou_{match}_match_{figure}_reward" for figure in ("pure", "precision", "recall")}
    assert set(rewards_of(read(detection(), "official_code"))) == expected
    assert len(expected) == 33


def test_figures_by_hand() -> None:
    gold = [Box("cat", 0, 0, 100, 100), Box("dog", 200, 0, 300, 100)]
    predicted = [Box("cat", 0, 0, 80, 100), Box("cat", 400, 0, 500, 100), Box("dog", 200, 0, 300, 100)]
    figures = released_figures(predicted, gold, DetRewardRatio(iou_max_label_first=1.0, iou_completeness=0.5), 0.85)
    expected = {
        "size_penalty": 0.6,  # 0.6^|3 - 2|
        # At 0.85 the dog alone: 0.5 * 1/2 + 0.5 * (1 - (1/2 + 2/3) / 2) = 0.25 + 0.5 * 5/12
        "pure_iou_score_max_label": 0.25 + 0.5 * 5 / 12,
        "weighted_iou_score_max_label": 0.6 * (0.25 + 0.5 * 5 / 12),
        # The greatest IoU left is 1, and the last boxes left are the dogs; then 0.8 < 0.85. The same.
        "pure_iou_score_max_iou": 0.25 + 0.5 * 5 / 12,
        "weighted_iou_score_max_iou": 0.6 * (0.25 + 0.5 * 5 / 12),
        # The cat, first of its label, is a hit up to 0.8: 7 of 10 thresholds. The dog always is.
        "pure_map_score": (0.7 + 1) / 2,
        "weighted_map_score": 0.6 * (0.7 + 1) / 2,
        "pure_map50_score": 1.0,
        "weighted_map50_score": 0.6,
        "pure_map75_score": 1.0,
        "weighted_map75_score": 0.6,
        # At 0.5 by IoU: the dogs (1), then the greatest left is 0.8, of the last boxes left: two cats. Sum 1.8 / 2.
        "report_iou_50_iou_match_pure": 0.9,
        "report_iou_50_iou_match_precision": 2 / 3,
        "report_iou_50_iou_match_recall": 1.0,
        "report_iou_95_iou_match_pure": 0.5,
        "report_iou_95_iou_match_precision": 1 / 3,
        "report_iou_95_iou_match_recall": 0.5,
        "report_iou_50_label_match_pure": 0.9,
        "report_iou_50_label_match_precision": 2 / 3,
        "report_iou_50_label_match_recall": 1.0,
        "report_iou_75_label_match_pure": 0.9,
        "report_iou_75_label_match_precision": 2 / 3,
        "report_iou_75_label_match_recall": 1.0,
        "report_iou_95_label_match_pure": 0.5,
        "report_iou_95_label_match_precision": 1 / 3,
        "report_iou_95_label_match_recall": 0.5,
        "report_iou_99_label_match_pure": 0.5,
        "report_iou_99_label_match_precision": 1 / 3,
        "report_iou_99_label_match_recall": 0.5,
    }
    assert figures == pytest.approx(expected, abs=EXACT)
    assert tuple(figures) == RELEASED_FIGURES


def test_an_answer_without_boxes_has_figures_of_0() -> None:
    figures = released_figures([], [Box("cat", 0, 0, 1, 1)], DetRewardRatio(map=1.0), 0.85)
    assert figures == dict.fromkeys(RELEASED_FIGURES, 0.0)


def test_the_silent_zero_is_the_released_servers() -> None:
    assert {"rewards": dict.fromkeys(REWARDS, 0.0)} == released.SILENT_ZERO
