"""The objectives (eq. 1 and its relatives) on log-probabilities. Models and batches are the engine's business.

All tensors are (N,), one entry per response token, answers one after the other. `weights` is what a token counts in the
sum: a correction for the sampler (`truncated_weights`), one over its answer's length, or 1 where it is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Sums over the tokens of a micro-batch, so that micro-batches add up to exactly one batch."""

    loss: Tensor
    """() Sum of the negative objective; divide by what the batch is normalised by, e.g. its number of tokens."""
    clipped: Tensor
    """() Number of tokens whose ratio was clipped."""
    ratio_gap: Tensor
    """() Largest |log pi - log pi_old|; on-policy this is the engine's numerical error."""


def clip_higher(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> Surrogate:
    """Clip-higher surrogate, eq. 1: -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), summed over tokens.

    Args:
        logprobs: (N,) log pi of the response tokens, with gradient.
        old_logprobs: (N,) the same under the policy that sampled them.
        advantages: (N,) A of each token's response.
        epsilon_low: 0.2 in the paper.
        epsilon_high: 0.28 in the paper.
        dual_clip: c > 1. Where A < 0 the objective is at least c A, so that a token that has become many times likelier
            does not outweigh all others (Ye et al. 2019, arXiv 1912.09729). None: no such limit.
        weights: (N,) what each token counts.
    """
    gap = logprobs - old_logprobs
    ratio = gap.exp()
    clipped_ratio = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    objective = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    clipped = clipped_ratio * advantages < ratio * advantages
    if dual_clip is not None:
        least = torch.where(advantages < 0, dual_clip * advantages, -torch.inf)
        clipped = clipped | (objective < least)
        objective = torch.maximum(objective, least)
    return _surrogate(objective, clipped, gap, weights)


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    answers: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    weights: Tensor | None = None,
) -> Surrogate:
    """GSPO: the clipped surrogate of whole answers, s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|), at each of their tokens.

    Each token holds its answer's -min(s A, clip(s) A): over the tokens, weighed by 1 / |y_i|, it is eq. 5 of the paper.
    Source: Zheng et al. 2025, arXiv 2507.18071, eq. 5-7; eps are 3e-4 and 4e-4 there.

    Args:
        logprobs: (N,) log pi of the response tokens, with gradient.
        old_logprobs: (N,) the same under the policy that sampled them.
        advantages: (N,) A of each token's response.
        answers: (N,) int64, which answer a token is of, numbered from 0. An answer is never split between calls.
        epsilon_low: s is clipped below at 1 - eps_low.
        epsilon_high: s is clipped above at 1 + eps_high.
        weights: (N,) what each token counts.
    """
    gap = logprobs - old_logprobs
    lengths = torch.bincount(answers)
    mean_gap = gap.new_zeros(len(lengths)).index_add(0, answers, gap) / lengths
    ratio = mean_gap.exp()[answers]
    clipped_ratio = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    objective = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    return _surrogate(objective, clipped_ratio * advantages < ratio * advantages, gap, weights)


def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    weights: Tensor | None = None,
) -> Surrogate:
    """CISPO: -sg(clip(r, 1 - eps_low, 1 + eps_high)) A log pi. The weight is clipped, and every token keeps a gradient.

    Source: MiniMax 2025, arXiv 2506.13585, eq. 4-5, which sets no lower limit: eps_low of 1 is that.

    Args:
        logprobs: (N,) log pi of the response tokens, with gradient.
        old_logprobs: (N,) the same under the policy that sampled them.
        advantages: (N,) A of each token's response.
        epsilon_low: r is clipped below at 1 - eps_low.
        epsilon_high: r is clipped above at 1 + eps_high.
        weights: (N,) what each token counts.
    """
    gap = logprobs - old_logprobs
    ratio = gap.detach().exp()
    clipped_ratio = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    return _surrogate(clipped_ratio * advantages * logprobs, clipped_ratio != ratio, gap, weights)


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(N,) estimates of KL(pi || pi_ref) at sampled tokens: pi_ref / pi - 1 - log(pi_ref / pi), never negative.

    Source: Schulman 2020, "Approximating KL divergence" (k3); eq. 4 of GRPO, Shao et al. 2024, arXiv 2402.03300.

    >>> kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0])).double().numpy().round(4).tolist()
    [0.0, 0.3679]
    """
    gap = reference - logprobs
    return gap.exp() - 1 - gap


def entropies(distributions: Tensor) -> Tensor:
    """(N, V) log-probabilities, -inf for what is impossible -> (N,) entropies in nats, with gradient.

    >>> entropies(torch.tensor([[0.5, 0.5, 0.0]]).log()).double().numpy().round(4).tolist()
    [0.6931]
    """
    # Else 0 * -inf, which is NaN, and so would be its gradient.
    return -(distributions.exp() * distributions.masked_fill(distributions == -torch.inf, 0.0)).sum(-1)


def truncated_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """(N,) min(pi_old / pi_sampler, C): corrects for a sampler whose numbers are not quite the policy's.

    Source: truncated importance sampling, Ionides 2008; for the samplers of language models Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training".

    Args:
        old_logprobs: (N,) log pi_old, recomputed by the learner before its first optimizer step.
        sampler_logprobs: (N,) the same tokens' as the sampler saw them.
        cap: C.

    >>> truncated_weights(torch.tensor([0.4, 0.2]).log(), torch.tensor([0.1, 0.4]).log(), 2.0).numpy().round(4).tolist()
    [2.0, 0.5]
    """
    return (old_logprobs - sampler_logprobs).exp().clamp(max=cap)


def _surrogate(objective: Tensor, clipped: Tensor, gap: Tensor, weights: Tensor | None) -> Surrogate:
    if weights is not None:
        objective = objective * weights
    with torch.no_grad():
        ratio_gap = gap.abs().amax() if gap.numel() else gap.new_zeros(())
    return Surrogate(-objective.sum(), clipped.sum(), ratio_gap)
