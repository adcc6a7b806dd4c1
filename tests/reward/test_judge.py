"""One answer to one verdict, in this process."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from vtriune.reward.judge import MAX_CHARACTERS, MAX_REASON, REMEMBERED, JudgeItem, judge_item, validate, weigh
from vtriune.types import ImageSize, Preset, Progress, RewardSpec, Status, UserError
from vtriune.verifiers import registry
from vtriune.verifiers.base import Context, Outcome, Unscorable

START = Progress(0, 100, "train")
END = Progress(99, 100, "train")
TEST = Progress(99, 100, "test")

MATH = RewardSpec("mathverify", r"\boxed{4}")
BOX_GOLD = "<answer>\n[{'bbox_2d': [100, 100, 300, 300], 'label': 'shiba dog'}]\n</answer>"
DETECTION = RewardSpec("detection", BOX_GOLD, accuracy_weight=1.0, format_weight=0.1)
OFFICIAL = replace(
    DETECTION,
    preset="official_code",
    parameters={"det_reward_ratio": {"iou_max_label_first": 1.0, "iou_completeness": 0.3}},
)

finite_weights = st.floats(0, 1e6, allow_nan=False)
shares = st.floats(0, 1)


def box_answer(x2: int) -> str:
    return f'<think>a dog</think>\n<answer>\n[{{"bbox_2d": [100, 100, {x2}, 300], "label": "shiba dog"}}]\n</answer>'


def test_a_sample_is_routed_to_the_verifier_that_its_row_names() -> None:
    assert judge_item(JudgeItem(r"\boxed{4}", MATH, TEST)).accuracy == 1.0
    verdict = judge_item(JudgeItem(box_answer(300), DETECTION, TEST))
    assert verdict.accuracy == 1.0
    assert verdict.report
    assert judge_item(JudgeItem(box_answer(300), MATH, TEST)).accuracy == 0.0


def test_the_parts_of_a_verdict_are_the_verifiers_and_their_sum_is_weighed_by_the_row() -> None:
    spec = replace(MATH, accuracy_weight=2.0, format_weight=0.4)
    verdict = judge_item(JudgeItem(r"<think>2 + 2</think> <answer>\boxed{4}", spec, TEST))
    assert (verdict.accuracy, verdict.format, verdict.correct) == (1.0, 0.75, True)
    assert verdict.reward == pytest.approx(2.0 * 1.0 + 0.4 * 0.75)


@given(shares, shares, finite_weights, finite_weights)
def test_the_total_is_the_weighed_sum_in_paper_and_modern(
    accuracy: float, format_: float, a_acc: float, a_fmt: float
) -> None:
    for preset in ("paper", "modern"):
        spec = RewardSpec("x", "", a_acc, a_fmt, preset=preset)
        assert weigh(accuracy, format_, spec) == a_acc * accuracy + a_fmt * format_


@given(shares, shares, st.floats(1e-6, 1e6), st.floats(0, 1e6))
def test_the_total_of_official_code_is_a_mean_and_so_lies_between_its_parts(
    accuracy: float, format_: float, a_acc: float, a_fmt: float
) -> None:
    total = weigh(accuracy, format_, RewardSpec("x", "", a_acc, a_fmt, preset="official_code"))
    assert total == pytest.approx((a_acc * accuracy + a_fmt * format_) / (a_acc + a_fmt), abs=1e-9)
    assert min(accuracy, format_) - 1e-9 <= total <= max(accuracy, format_) + 1e-9


@given(shares, shares, finite_weights, finite_weights)
def test_a_better_answer_never_earns_less(accuracy: float, format_: float, a_acc: float, a_fmt: float) -> None:
    spec = RewardSpec("x", "", a_acc, a_fmt)
    assert weigh(accuracy, format_, spec) <= weigh(1.0, 1.0, spec)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"format_weight": -0.99}, "format_ratio"),
        ({"accuracy_weight": -1.0}, "accuracy_ratio"),
        ({"accuracy_weight": math.nan}, "accuracy_ratio"),
        ({"format_weight": math.inf}, "format_ratio"),
        ({"accuracy_weight": 0.0, "format_weight": 0.0}, "above 0, got 0.0"),
        ({"accuracy_weight": 1.7e308, "format_weight": 1.7e308}, "above 0, got inf"),
    ],
)
@pytest.mark.parametrize("preset", ["paper", "official_code", "modern"])
def test_weights_that_make_no_reward_are_unscorable_and_named(
    weights: dict[str, float], named: str, preset: Preset
) -> None:
    spec = replace(MATH, preset=preset, **weights)  # type: ignore[arg-type]
    verdict = judge_item(JudgeItem(r"<think></think><answer>\boxed{4}</answer>", spec, TEST))
    assert verdict.status is Status.UNSCORABLE
    assert verdict.reward is None
    assert named in verdict.reason


def test_the_threshold_of_a_training_sample_follows_progress_and_that_of_a_test_sample_does_not() -> None:
    loose = box_answer(320)  # IoU 200 / 220 = 0.909
    spec = replace(DETECTION, preset="paper")
    assert judge_item(JudgeItem(loose, spec, START)).accuracy == pytest.approx(200 / 220)
    assert judge_item(JudgeItem(loose, spec, END)).accuracy == 0.0
    assert judge_item(JudgeItem(loose, spec, TEST)).accuracy == pytest.approx(200 / 220)


def test_a_row_brings_its_own_schedule() -> None:
    parameters = {"iou_threshold": [[0, 0.99], [0.5, 0.5]], "eval_iou_threshold": 0.95}
    spec = replace(DETECTION, preset="paper", parameters=parameters)
    accuracies = [judge_item(JudgeItem(box_answer(320), spec, progress)).accuracy for progress in (START, END, TEST)]
    assert accuracies == [0.0, pytest.approx(200 / 220), 0.0]


def test_official_code_follows_the_schedule_in_training_and_never_on_the_test_split() -> None:
    full = pytest.approx(0.7 * 200 / 220 + 0.3)
    assert judge_item(JudgeItem(box_answer(320), OFFICIAL, START)).accuracy == full
    assert judge_item(JudgeItem(box_answer(320), OFFICIAL, END)).accuracy == pytest.approx(0.0)
    assert judge_item(JudgeItem(box_answer(320), OFFICIAL, TEST)).accuracy == full
    assert judge_item(JudgeItem(box_answer(320), OFFICIAL, replace(TEST, step=0))).accuracy == full


@pytest.mark.parametrize("total_steps", [0, -3])
def test_a_run_without_steps_is_a_failure_of_ours_and_never_a_zero(total_steps: int) -> None:
    verdict = judge_item(JudgeItem(box_answer(300), DETECTION, Progress(0, total_steps, "train")))
    assert (verdict.status, verdict.reward) == (Status.FAILED, None)
    assert "total_steps" in verdict.reason


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (replace(DETECTION, verifier="detecton"), 'did you mean "detection"'),
        (replace(DETECTION, parameters={"iou_treshold": 0.5}), "iou_treshold"),
        (replace(DETECTION, parameters={"iou_threshold": 1.5}), "iou_threshold"),
        (replace(DETECTION, parameters={"iou_threshold": "high"}), "iou_threshold"),
        (replace(DETECTION, parameters={"eval_iou_threshold": [[0, 0.5]]}), "eval_iou_threshold"),
        (replace(DETECTION, parameters={"iou_threshold": [[0.2, 0.5]]}), "starts from progress 0"),
        (replace(DETECTION, parameters={"iou_threshold": {1, 2}}), "verifier_parm is not JSON"),
        (replace(MATH, parameters={"tolerance": 1}), "tolerance"),
        (replace(MATH, gold=""), "gold is empty"),
        (replace(DETECTION, gold="two dogs"), "gold"),
        (replace(MATH, gold="1" * (MAX_CHARACTERS + 1)), "ground_truth is longer"),
    ],
)
def test_a_broken_sample_is_unscorable_and_refused_before_training_with_the_same_words(
    spec: RewardSpec, named: str
) -> None:
    verdict = judge_item(JudgeItem(box_answer(300), spec, TEST))
    assert (verdict.status, verdict.reward, verdict.accuracy) == (Status.UNSCORABLE, None, None)
    assert named in verdict.reason
    with pytest.raises(UserError) as error:
        validate(spec)
    assert str(error.value) == verdict.reason


def test_a_broken_sample_is_unscorable_every_time_and_not_only_the_first() -> None:
    broken = replace(DETECTION, parameters={"no_such_field": 1})
    assert judge_item(JudgeItem("", broken, TEST)) == judge_item(JudgeItem("", broken, TEST))


@pytest.mark.parametrize("spec", [MATH, DETECTION, OFFICIAL])
def test_a_good_sample_passes_validation(spec: RewardSpec) -> None:
    validate(spec, (ImageSize((640, 480), (644, 476)),))


def test_an_exception_inside_our_own_code_is_failed_with_its_type_and_message() -> None:
    not_a_text: Any = 4
    verdict = judge_item(JudgeItem(not_a_text, MATH, TEST))
    assert (verdict.status, verdict.reward) == (Status.FAILED, None)
    assert "mathverify" in verdict.reason
    assert "TypeError" in verdict.reason


def test_an_answer_beyond_all_bounds_is_scored_0_without_being_read() -> None:
    verdict = judge_item(JudgeItem(r"\boxed{4}" + " " * MAX_CHARACTERS, MATH, TEST))
    assert (verdict.status, verdict.reward, verdict.correct) == (Status.SCORED, 0.0, False)
    assert str(MAX_CHARACTERS) in verdict.reason


@pytest.mark.parametrize("spec", [MATH, DETECTION, OFFICIAL])
def test_an_answer_that_is_no_unicode_is_scored_0_and_says_so(spec: RewardSpec) -> None:
    verdict = judge_item(JudgeItem(box_answer(300) + r"\boxed{4}" + "\ud83d", spec, TEST))
    assert (verdict.status, verdict.reward, verdict.correct) == (Status.SCORED, 0.0, False)
    assert "no Unicode text" in verdict.reason


def test_an_empty_answer_is_scored_0() -> None:
    for spec in (MATH, DETECTION):
        verdict = judge_item(JudgeItem("", spec, TEST))
        assert (verdict.status, verdict.reward) == (Status.SCORED, 0.0)


def test_a_reason_is_one_bounded_line_whatever_it_quotes() -> None:
    forged = "x\n2026-01-01 ERROR everything is lost\r" + "y" * 5000
    verdict = judge_item(JudgeItem("", replace(MATH, verifier=forged), TEST))
    assert "\n" not in verdict.reason
    assert "\r" not in verdict.reason
    assert len(verdict.reason) <= MAX_REASON


@given(st.text(max_size=200), st.sampled_from([MATH, DETECTION]), st.sampled_from([START, END, TEST]))
def test_every_text_gets_a_finite_reward_within_the_weights(text: str, spec: RewardSpec, progress: Progress) -> None:
    verdict = judge_item(JudgeItem(text, spec, progress))
    assert verdict.status is Status.SCORED
    assert verdict.reward is not None
    assert 0 <= verdict.reward <= spec.accuracy_weight + spec.format_weight


def test_gold_is_announced_before_the_answer_and_only_while_it_is_not_remembered() -> None:
    phases: list[str] = []
    for gold in (r"\boxed{20261}", r"\boxed{20261}", r"\boxed{20262}"):
        judge_item(JudgeItem(r"\boxed{4}", replace(MATH, gold=gold), TEST), phases.append)
    assert phases == ["gold", "answer", "answer", "gold", "answer"]


def test_samples_are_remembered_up_to_a_number() -> None:
    for n in range(REMEMBERED + 10):
        judge_item(JudgeItem(r"\boxed{4}", replace(MATH, gold=rf"\boxed{{1{n}}}"), TEST))
    phases: list[str] = []
    judge_item(JudgeItem(r"\boxed{4}", replace(MATH, gold=rf"\boxed{{1{REMEMBERED + 9}}}"), TEST), phases.append)
    judge_item(JudgeItem(r"\boxed{4}", replace(MATH, gold=r"\boxed{11}"), TEST), phases.append)
    assert phases == ["answer", "gold", "answer"]


class NoParams(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Odd:
    """A verifier that somebody wrote badly: what it is told to do as gold, it does when it judges."""

    name = "odd"
    Params = NoParams

    def parse_gold(self, gold: str, params: NoParams, context: Context) -> str:
        if gold == "recursion in gold":
            self.descend()
        if gold == "memory in gold":
            bytearray(2**62)
        return gold

    def judge(self, response: str, gold: str, params: NoParams, context: Context) -> Outcome:
        if gold == "recursion":
            self.descend()
        if gold == "memory":
            bytearray(2**62)
        if gold == "crash":
            raise ZeroDivisionError("division of nothing")
        if gold == "unfit":
            raise Unscorable("the image size is needed and missing")
        accuracy = {"nan accuracy": math.nan, "infinite accuracy": math.inf}.get(gold, 1.0)
        return Outcome(accuracy, 1.0, True, report={"map": math.nan if gold == "nan report" else 1.0})

    def descend(self) -> None:
        self.descend()


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._VERIFIERS, "odd", Odd())


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("limit", ["memory", "recursion"])
def test_an_answer_that_exhausts_its_verifier_is_scored_0_and_says_of_what(limit: str) -> None:
    verdict = judge_item(JudgeItem("x", RewardSpec("odd", limit), TEST))
    assert (verdict.status, verdict.reward, verdict.correct) == (Status.SCORED, 0.0, False)
    assert verdict.reason == f"{limit} limit"


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("gold", "named"), [("memory in gold", "memory limit"), ("recursion in gold", "recursion limit"), ("unfit", "size")]
)
def test_gold_that_exhausts_or_does_not_fit_its_verifier_is_unscorable(gold: str, named: str) -> None:
    verdict = judge_item(JudgeItem("x", RewardSpec("odd", gold), TEST))
    assert (verdict.status, verdict.reward) == (Status.UNSCORABLE, None)
    assert named in verdict.reason


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("gold", "named"),
    [
        ("crash", "ZeroDivisionError: division of nothing"),
        ("nan accuracy", "accuracy came out as nan"),
        ("infinite accuracy", "accuracy came out as inf"),
        ("nan report", "map came out as nan"),
    ],
)
def test_a_verifier_that_breaks_or_measures_nonsense_is_failed_and_named(gold: str, named: str) -> None:
    verdict = judge_item(JudgeItem("x", RewardSpec("odd", gold), TEST))
    assert (verdict.status, verdict.reward) == (Status.FAILED, None)
    assert verdict.reason.startswith('verifier "odd": ')
    assert named in verdict.reason
