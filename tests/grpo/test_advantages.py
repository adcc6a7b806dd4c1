"""Group-relative advantages (eq. 2): properties over any group, and a plain twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.grpo.advantages import EPSILON, advantages

REWARDS = st.floats(-10, 10, allow_nan=False).map(lambda reward: round(reward, 3))
"""In steps of 0.001, so that different rewards differ by far more than EPSILON."""
GROUPS = st.lists(st.none() | REWARDS, min_size=1, max_size=16)
SPREAD = st.lists(REWARDS, min_size=2, max_size=16).filter(lambda group: len(set(group)) > 1)


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
