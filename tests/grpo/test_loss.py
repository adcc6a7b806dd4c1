"""The clipped objective of eq. 1 on cases that can be computed by hand, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from vtriune.grpo.loss import Surrogate, clip_higher

LOW, HIGH = 0.2, 0.28


def on(ratios: list[float], advantages: list[float]) -> tuple[Surrogate, Tensor]:
    """The surrogate of tokens with these ratios, and its gradient to log pi."""
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    now = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    weights = torch.tensor(advantages, dtype=torch.float64)
    surrogate = clip_higher(now, old, weights, epsilon_low=LOW, epsilon_high=HIGH)
    (gradient,) = torch.autograd.grad(surrogate.loss, now)
    return surrogate, gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # A good token has become likelier than 1 + eps_high: enough of it.
        (1.5, 2.0, -1.28 * 2.0, 0.0, 1),
        # A good token has become less likely: no limit on bringing it back.
        (0.5, 2.0, -0.5 * 2.0, -0.5 * 2.0, 0),
        # A bad token has become less likely than 1 - eps_low: enough of it.
        (0.5, -2.0, 0.8 * 2.0, 0.0, 1),
        # A bad token has become likelier: no limit on pushing it down.
        (1.5, -2.0, 1.5 * 2.0, 1.5 * 2.0, 0),
        # Inside the limits nothing is clipped, above 1.2 too: clip-higher.
        (1.25, 2.0, -1.25 * 2.0, -1.25 * 2.0, 0),
        (0.85, -2.0, 0.85 * 2.0, 0.85 * 2.0, 0),
        # Without advantage there is nothing to learn and nothing to clip.
        (3.0, 0.0, 0.0, 0.0, 0),
    ],
)
def test_each_side_of_the_clip_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    surrogate, found = on([ratio], [advantage])
    assert surrogate.loss.item() == pytest.approx(loss)
    assert found.item() == pytest.approx(gradient)
    assert surrogate.clipped.item() == clipped
    assert surrogate.ratio_gap.item() == pytest.approx(abs(math.log(ratio)))


def test_tokens_are_summed_not_averaged() -> None:
    surrogate, _ = on([1.5, 0.5, 0.5, 1.5], [1.0, 1.0, -1.0, -1.0])
    assert surrogate.loss.item() == pytest.approx(-1.28 - 0.5 + 0.8 + 1.5)
    assert surrogate.clipped.item() == 2
    assert surrogate.ratio_gap.item() == pytest.approx(math.log(2))


@given(advantages=st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_on_policy_it_is_the_plain_policy_gradient(advantages: list[float]) -> None:
    surrogate, gradient = on([1.0] * len(advantages), advantages)
    assert gradient.tolist() == pytest.approx([-advantage for advantage in advantages])
    assert surrogate.clipped.item() == 0
    assert surrogate.ratio_gap.item() == 0


@given(
    tokens=st.lists(st.tuples(st.floats(0.05, 5), st.floats(-5, 5)), min_size=2, max_size=20),
    cut=st.integers(1, 19),
)
def test_micro_batches_add_up(tokens: list[tuple[float, float]], cut: int) -> None:
    ratios, advantages = [ratio for ratio, _ in tokens], [advantage for _, advantage in tokens]
    cut = min(cut, len(tokens) - 1)
    whole, gradient = on(ratios, advantages)
    first, first_gradient = on(ratios[:cut], advantages[:cut])
    second, second_gradient = on(ratios[cut:], advantages[cut:])
    assert whole.loss.item() == pytest.approx((first.loss + second.loss).item(), abs=1e-12)
    assert whole.clipped == first.clipped + second.clipped
    assert whole.ratio_gap == max(first.ratio_gap, second.ratio_gap)
    torch.testing.assert_close(gradient, torch.cat([first_gradient, second_gradient]))


@given(hundredths=st.integers(5, 500), advantage=st.floats(-5, 5).map(lambda advantage: round(advantage, 3)))
def test_a_token_is_clipped_exactly_where_its_gradient_vanishes(hundredths: int, advantage: float) -> None:
    assume(hundredths not in (80, 128))  # on the limits themselves rounding decides
    surrogate, gradient = on([hundredths / 100], [advantage])
    clipped = (hundredths > 128 and advantage > 0) or (hundredths < 80 and advantage < 0)
    assert surrogate.clipped.item() == clipped
    assert (gradient.item() == 0) == (clipped or advantage == 0)


def test_no_tokens_have_no_loss() -> None:
    nothing = torch.zeros(0)
    surrogate = clip_higher(nothing, nothing, nothing, epsilon_low=LOW, epsilon_high=HIGH)
    assert surrogate.loss == surrogate.clipped == surrogate.ratio_gap == 0
