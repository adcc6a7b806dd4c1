"""The label: what is written for a row is what is judged, and what has no verdict moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.reward.judge import JudgeItem
from vtriune.reward.label import neutral_rewards, read_label, write_label
from vtriune.types import ImageSize, Progress, RewardSpec, Sample, Status, UserError, Verdict

SPEC = RewardSpec("detection", "[]", 1.0, 0.1, {"iou_threshold": [[0.0, 0.5]]}, "paper")
SIZE = ImageSize((640, 480), (644, 476))


@given(st.text(), st.integers(0, 9), st.integers(0, 9))
def test_a_written_label_reads_as_the_samples_side_of_the_item(response: str, step: int, tokens: int) -> None:
    label = read_label(write_label(Sample("a#0", "coco", "detection", (), (), SPEC), "train", [SIZE]))
    expected = JudgeItem(response, SPEC, Progress(step, 10, "train"), (SIZE,), tokens, "coco")
    assert (label.id, label.item(response, step, 10, tokens)) == ("a#0", expected)


def test_where_the_trainer_tells_no_step_thresholds_are_those_of_tests() -> None:
    label = read_label(write_label(Sample("a#0", "coco", "detection", (), (), SPEC)))
    assert label.item("", None, 1).progress == Progress(0, 1, "test")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("4", "Input should be an object"),
        ("{}", "spec: Field required"),
        ('{"spec": {"verifier": "mathverify", "gold": "4", "wieght": 1}}', "spec.wieght: Extra inputs"),
        ('{"spec": {"verifier": "mathverify", "gold": 4}}', "spec.gold: Input should be a valid string"),
        ('{"spec": {"verifier": "mathverify", "gold": "4", "parameters": {"a": [' + "0," * 5000 + "0]}}}", "4096"),
        ("\ud800", "no Unicode"),
    ],
)
def test_what_is_no_label_is_refused_with_the_place(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_label(text)


def scored(reward: float) -> Verdict:
    return Verdict(Status.SCORED, reward, reward, 0.0, False)


@given(st.lists(st.none() | st.floats(-1, 1), min_size=2, max_size=8))
def test_an_answer_without_a_verdict_leaves_the_mean_and_learns_nothing(rewards: list[float | None]) -> None:
    verdicts = [Verdict(Status.FAILED) if one is None else scored(one) for one in rewards]
    filled = neutral_rewards(["a"] * len(rewards), verdicts)
    given_ = [one for one in rewards if one is not None]
    mean = np.mean(given_) if given_ else 0.0
    assert np.mean(filled) == pytest.approx(mean, abs=1e-12)
    for one, value in zip(rewards, filled, strict=True):
        assert value == (pytest.approx(mean, abs=1e-12) if one is None else one)


def test_a_group_without_a_verdict_whose_rest_is_elsewhere_is_not_made_up() -> None:
    with pytest.raises(UserError, match="whole groups"):
        neutral_rewards(["a", "b", "b"], [Verdict(Status.FAILED, reason="lost"), scored(1), scored(0)], group=2)
    assert neutral_rewards(["a", "a"], [Verdict(Status.FAILED)] * 2, group=2) == [0.0, 0.0]
