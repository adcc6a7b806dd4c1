"""Advantages within a group (eq. 2 and its relatives): properties over any group, and plain twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.grpo.advantages import EPSILON, advantages, dr_grpo, gdpo, group_advantages, rloo
from vtriune.types import RewardSpec, Status, Verdict

REWARDS = st.floats(-10, 10, allow_nan=False).map(lambda reward: round(reward, 3))
"""In steps of 0.001, so that different rewards differ by far more than EPSILON."""
GROUPS = st.lists(st.none() | REWARDS, min_size=1, max_size=16)
SPREAD = st.lists(REWARDS, min_size=2, max_size=16).filter(lambda group: len(set(group)) > 1)

Advantages = Callable[[Sequence[float | None]], np.ndarray]


def plain(rewards: list[float | None]) -> list[float]:
    """Eq. 2 written out with Python's own numbers."""
    values = [reward for reward in rewards if reward is not None]
    if len(set(values)) < 2:
        return [0.0] * len(rewards)
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [0.0 if reward is None else (reward - mean) / (deviation + EPSILON) for reward in rewards]


@given(rewards=GROUPS)
def test_advantages_equal_the_plain_twin(rewards: list[float | None]) -> None:
    found = advantages(rewards)
    assert found.shape == (len(rewards),)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, plain(rewards), atol=1e-9)


@given(rewards=SPREAD, masked=st.lists(st.integers(0, 16), max_size=8))
def test_answers_without_a_verdict_move_nothing(rewards: list[float], masked: list[int]) -> None:
    padded: list[float | None] = list(rewards)
    for position in masked:
        padded.insert(min(position, len(padded)), None)
    found = advantages(padded)
    scored = np.array([reward is not None for reward in padded])
    assert (found[~scored] == 0).all()
    np.testing.assert_array_equal(found[scored], advantages(rewards))


@given(rewards=GROUPS)
def test_advantages_sum_to_zero(rewards: list[float | None]) -> None:
    assert advantages(rewards).sum() == pytest.approx(0, abs=1e-9)


@given(rewards=SPREAD)
def test_advantages_have_a_deviation_of_one(rewards: list[float]) -> None:
    assert advantages(rewards).std(ddof=1) == pytest.approx(1, rel=1e-2)


@given(rewards=SPREAD, shift=st.integers(-100, 100), scale=st.floats(1, 100))
def test_advantages_depend_on_neither_offset_nor_scale_of_the_rewards(
    rewards: list[float], shift: int, scale: float
) -> None:
    found = advantages([scale * reward + shift for reward in rewards])
    np.testing.assert_allclose(found, advantages(rewards), rtol=1e-2, atol=1e-6)


@given(rewards=SPREAD)
def test_the_order_of_answers_does_not_matter(rewards: list[float]) -> None:
    np.testing.assert_allclose(advantages(rewards[::-1]), advantages(rewards)[::-1], atol=1e-9)


@given(rewards=SPREAD)
def test_a_better_answer_has_a_larger_advantage(rewards: list[float]) -> None:
    ordered = advantages(sorted(rewards))
    assert (np.diff(ordered) >= 0).all()
    assert ordered[0] < 0 < ordered[-1]


@given(reward=REWARDS, scored=st.integers(1, 8), masked=st.integers(0, 8))
def test_a_group_without_spread_teaches_nothing(reward: float, scored: int, masked: int) -> None:
    assert not advantages([reward] * scored + [None] * masked).any()


@given(reward=REWARDS, masked=st.integers(0, 8))
def test_a_single_reward_teaches_nothing(reward: float, masked: int) -> None:
    assert not advantages([None] * masked + [reward]).any()


def test_a_group_without_any_reward_has_advantages_of_zero() -> None:
    assert advantages([None, None]).tolist() == [0.0, 0.0]
    assert advantages([]).tolist() == []


# --- its relatives ----------------------------------------------------------------------------------------------------


@given(rewards=GROUPS)
def test_dr_grpo_is_the_difference_to_the_mean(rewards: list[float | None]) -> None:
    values = [reward for reward in rewards if reward is not None]
    expected = [0.0 if reward is None else reward - math.fsum(values) / len(values) for reward in rewards]
    np.testing.assert_allclose(dr_grpo(rewards), expected, atol=1e-9)


@given(rewards=GROUPS)
def test_rloo_is_the_difference_to_the_mean_of_the_other_answers(rewards: list[float | None]) -> None:
    expected = []
    for k, reward in enumerate(rewards):
        others = [other for j, other in enumerate(rewards) if j != k and other is not None]
        expected.append(0.0 if reward is None or not others else reward - math.fsum(others) / len(others))
    np.testing.assert_allclose(rloo(rewards), expected, atol=1e-9)


@given(rewards=SPREAD)
def test_rloo_is_dr_grpo_times_n_over_n_minus_1_and_grpo_is_dr_grpo_over_the_deviation(rewards: list[float]) -> None:
    n, deviation = len(rewards), np.std(rewards, ddof=1)
    np.testing.assert_allclose(rloo(rewards), dr_grpo(rewards) * n / (n - 1), atol=1e-9)
    np.testing.assert_allclose(advantages(rewards), dr_grpo(rewards) / (deviation + EPSILON), atol=1e-9)


@given(parts=st.lists(st.tuples(REWARDS, REWARDS) | st.none(), min_size=1, max_size=16), weight=st.floats(0, 2))
def test_gdpo_is_the_weighted_sum_of_each_parts_own_advantages(
    parts: list[tuple[float, float] | None], weight: float
) -> None:
    accuracy = [None if one is None else one[0] for one in parts]
    form = [None if one is None else one[1] for one in parts]
    expected = np.array(plain(accuracy)) + weight * np.array(plain(form))
    np.testing.assert_allclose(gdpo([accuracy, form], [1.0, weight]), expected, atol=1e-9)


def test_gdpo_tells_answers_apart_whose_sums_are_equal() -> None:
    accuracy, form = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]
    total = [sum(pair) for pair in zip(accuracy, form, strict=True)]
    assert advantages(total)[0] == advantages(total)[1]
    assert gdpo([accuracy, form], [1.0, 1.0])[0] > gdpo([accuracy, form], [1.0, 1.0])[1]


@given(reward=REWARDS, scored=st.integers(0, 8), masked=st.integers(0, 8))
@pytest.mark.parametrize("choice", [dr_grpo, rloo, lambda group: gdpo([group, group], [1.0, 0.5])])
def test_whatever_the_choice_a_group_without_spread_teaches_nothing(
    choice: Advantages, reward: float, scored: int, masked: int
) -> None:
    found = choice([reward] * scored + [None] * masked)
    assert found.shape == (scored + masked,)
    assert not found.any()


def test_a_verdicts_reward_is_what_counts_and_for_gdpo_its_parts_with_the_samples_weights() -> None:
    scores = [(1.0, 0.0), None, (0.0, 1.0), (0.0, 0.25)]
    spec = RewardSpec("mathverify", "4", accuracy_weight=0.9, format_weight=0.1)
    verdicts = [
        Verdict(Status.FAILED) if one is None else Verdict(Status.SCORED, 0.9 * one[0] + 0.1 * one[1], *one)
        for one in scores
    ]
    rewards = [0.9, None, 0.1, 0.025]
    np.testing.assert_allclose(group_advantages("grpo", verdicts, spec), advantages(rewards))
    np.testing.assert_allclose(group_advantages("dr_grpo", verdicts, spec), dr_grpo(rewards))
    np.testing.assert_allclose(group_advantages("rloo", verdicts, spec), rloo(rewards))
    parts = [[1.0, None, 0.0, 0.0], [0.0, None, 1.0, 0.25]]
    np.testing.assert_allclose(group_advantages("gdpo", verdicts, spec), gdpo(parts, [0.9, 0.1]))
