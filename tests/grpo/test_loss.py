"""The objectives, eq. 1 first, on cases that can be computed by hand, against plain loops, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from vtriune.grpo.loss import Surrogate, cispo, clip_higher, entropies, gspo, kl_k3, truncated_weights
from vtriune.grpo.objective import ObjectiveConfig

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


# --- its relatives ----------------------------------------------------------------------------------------------------

TOKENS = st.tuples(st.floats(0.05, 5), st.floats(-5, 5), st.floats(0, 2))
"""Ratio, advantage, weight."""
ANSWERS = st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=6)


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of(config: ObjectiveConfig, answers: list[list[tuple[float, float, float]]]) -> tuple[Surrogate, Tensor]:
    """The configured loss of answers, whose advantage is that of their first token, and its gradient to log pi."""
    tokens = [(k, ratio, answer[0][1], weight) for k, answer in enumerate(answers) for ratio, _, weight in answer]
    old = torch.full((len(tokens),), -1.5, dtype=torch.float64)
    now = (old + double([one[1] for one in tokens]).log()).requires_grad_()
    surrogate = config.surrogate(
        now,
        old,
        double([one[2] for one in tokens]),
        torch.tensor([one[0] for one in tokens]),
        epsilon_low=LOW,
        epsilon_high=HIGH,
        weights=double([one[3] for one in tokens]),
    )
    (gradient,) = torch.autograd.grad(surrogate.loss, now)
    return surrogate, gradient


CHOICES = [
    ObjectiveConfig(),
    ObjectiveConfig(dual_clip=2.0),
    ObjectiveConfig(loss="gspo"),
    ObjectiveConfig(loss="cispo"),
]


@pytest.mark.parametrize("config", CHOICES)
@given(answers=ANSWERS, cut=st.integers(0, 6))
def test_micro_batches_of_whole_answers_add_up_whatever_the_loss(
    config: ObjectiveConfig, answers: list[list[tuple[float, float, float]]], cut: int
) -> None:
    whole, gradient = of(config, answers)
    parts = [of(config, part) for part in (answers[:cut], answers[cut:]) if part]
    assert whole.loss.item() == pytest.approx(sum(part.loss.item() for part, _ in parts), abs=1e-9)
    assert whole.clipped.item() == sum(part.clipped.item() for part, _ in parts)
    assert whole.ratio_gap.item() == max(part.ratio_gap.item() for part, _ in parts)
    torch.testing.assert_close(gradient, torch.cat([part for _, part in parts]))


@pytest.mark.parametrize("config", CHOICES)
@given(answers=ANSWERS)
def test_on_policy_every_loss_has_the_gradient_of_the_policy_gradient(
    config: ObjectiveConfig, answers: list[list[tuple[float, float, float]]]
) -> None:
    _, gradient = of(config, [[(1.0, advantage, 1.0) for _, advantage, _ in answer] for answer in answers])
    assert gradient.tolist() == pytest.approx([-answer[0][1] for answer in answers for _ in answer])


@given(answers=ANSWERS)
def test_gspo_is_the_clipped_mean_ratio_of_whole_answers(answers: list[list[tuple[float, float, float]]]) -> None:
    expected, clipped = 0.0, 0
    for answer in answers:
        ratio = math.prod(ratio for ratio, _, _ in answer) ** (1 / len(answer))
        assume(min(abs(ratio - 0.8), abs(ratio - 1.28)) > 1e-9)  # on the limits themselves rounding decides
        advantage = answer[0][1]
        limited = min(max(ratio, 1 - LOW), 1 + HIGH)
        expected -= min(ratio * advantage, limited * advantage) * sum(weight for _, _, weight in answer)
        clipped += len(answer) * (limited * advantage < ratio * advantage)
    surrogate, gradient = of(ObjectiveConfig(loss="gspo"), answers)
    assert surrogate.loss.item() == pytest.approx(expected, abs=1e-9)
    assert surrogate.clipped.item() == clipped
    # All tokens of an answer share one gradient.
    for shared in torch.split(gradient, [len(answer) for answer in answers]):
        torch.testing.assert_close(shared, shared[:1].expand_as(shared))


def test_the_length_of_an_answer_does_not_count_in_gspo_once_each_token_weighs_one_over_it() -> None:
    short, long = [(1.1, 2.0, 1.0)], [(1.1, 2.0, 0.25)] * 4
    config = ObjectiveConfig(loss="gspo")
    assert of(config, [short])[0].loss.item() == pytest.approx(-2.2)
    assert of(config, [long])[0].loss.item() == pytest.approx(-2.2)


@given(answers=ANSWERS)
def test_cispo_is_the_policy_gradient_times_the_clipped_ratio_of_each_token(
    answers: list[list[tuple[float, float, float]]],
) -> None:
    surrogate, gradient = of(ObjectiveConfig(loss="cispo"), answers)
    loss, expected, clipped = 0.0, [], 0
    for answer in answers:
        for ratio, _, weight in answer:
            limited = min(max(ratio, 1 - LOW), 1 + HIGH)
            loss -= limited * answer[0][1] * (-1.5 + math.log(ratio)) * weight
            expected.append(-limited * answer[0][1] * weight)
            clipped += not 1 - LOW <= ratio <= 1 + HIGH
    assert surrogate.loss.item() == pytest.approx(loss, abs=1e-9)
    assert gradient.tolist() == pytest.approx(expected, abs=1e-9)
    assert surrogate.clipped.item() == clipped


def test_cispo_has_no_lower_limit_at_an_epsilon_low_of_1() -> None:
    now = double([-9.0]).requires_grad_()
    surrogate = cispo(now, double([-1.0]), double([2.0]), epsilon_low=1.0, epsilon_high=HIGH)
    (gradient,) = torch.autograd.grad(surrogate.loss, now)
    assert gradient.item() == pytest.approx(-2 * math.exp(-8))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        # A bad token has become three times likelier: beyond c = 2 enough is enough.
        (3.0, -2.0, 2.0 * 2.0, 0.0, 1),
        # Within c it is pushed down as ever.
        (1.5, -2.0, 1.5 * 2.0, 1.5 * 2.0, 0),
        # What is clipped below stays so; good tokens know no c.
        (0.5, -2.0, 0.8 * 2.0, 0.0, 1),
        (3.0, 2.0, -1.28 * 2.0, 0.0, 1),
        (0.5, 2.0, -0.5 * 2.0, -0.5 * 2.0, 0),
        (3.0, 0.0, 0.0, 0.0, 0),
    ],
)
def test_each_side_of_the_dual_clip_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, clipped: int
) -> None:
    surrogate, found = of(ObjectiveConfig(dual_clip=2.0), [[(ratio, advantage, 1.0)]])
    assert surrogate.loss.item() == pytest.approx(loss)
    assert found.item() == pytest.approx(gradient)
    assert surrogate.clipped.item() == clipped


@given(gaps=st.lists(st.floats(-3, 3), min_size=1, max_size=10))
def test_k3_is_never_negative_and_has_value_and_gradient_of_zero_where_policy_and_reference_agree(
    gaps: list[float],
) -> None:
    reference = torch.full((len(gaps),), -1.5, dtype=torch.float64)
    now = (reference + double(gaps)).requires_grad_()
    found = kl_k3(now, reference)
    (gradient,) = torch.autograd.grad(found.sum(), now)
    assert (found >= -1e-15).all()
    assert found.tolist() == pytest.approx([math.exp(-gap) - 1 + gap for gap in gaps], abs=1e-12)
    assert gradient.tolist() == pytest.approx([1 - math.exp(-gap) for gap in gaps], abs=1e-12)
    same = reference.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_k3(same, reference).sum(), same)
    assert not kl_k3(same, reference).any()
    assert not gradient.any()


def test_k3_has_the_divergence_as_its_mean() -> None:
    policy, reference = torch.randn(2, 7, dtype=torch.float64).log_softmax(-1)
    expected = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_k3(policy, reference)).sum(), expected)


@given(seed=st.integers(0, 1000))
def test_entropy_is_that_of_the_possible_and_has_autograds_gradient(seed: int) -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    possible = logits[:, [0, 1, 3, 4]]
    expected: Tensor = torch.distributions.Categorical(logits=possible).entropy()  # type: ignore[no-untyped-call]
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    forbidden = torch.zeros(6, dtype=torch.float64).index_fill(0, torch.tensor([2, 5]), -math.inf)
    found = entropies(torch.log_softmax(logits + forbidden, -1))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@given(pairs=st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0)), min_size=1, max_size=10), cap=st.floats(1, 5))
def test_the_samplers_weights_are_the_ratios_up_to_the_cap_and_1_where_it_is_the_policy(
    pairs: list[tuple[float, float]], cap: float
) -> None:
    old, sampler = (double(list(column)) for column in zip(*pairs, strict=True))
    expected = [min(math.exp(a - b), cap) for a, b in pairs]
    assert truncated_weights(old, sampler, cap).tolist() == pytest.approx(expected)
    assert (truncated_weights(old, old, cap) == 1).all()


def test_the_normaliser_is_all_tokens_or_the_answers_or_a_constant_for_each_of_them() -> None:
    divisors = [ObjectiveConfig(normaliser=one).divisor(100, 4) for one in ("tokens", "answers", 50)]
    assert divisors == [100, 4, 200]


def test_no_tokens_have_no_loss_whatever_the_loss() -> None:
    nothing, none = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert cispo(nothing, nothing, nothing, epsilon_low=LOW, epsilon_high=HIGH).loss == 0
    assert gspo(nothing, nothing, nothing, none, epsilon_low=LOW, epsilon_high=HIGH).loss == 0
