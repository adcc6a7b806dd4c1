"""The clipped objective of GRPO (eq. 1) on log-probabilities. Models and batches are the engine's business."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Sums over the tokens of a micro-batch, so that micro-batches add up to exactly one batch."""

    loss: Tensor
    """() Sum of the negative clipped objective; divide by the batch's number of response tokens."""
    clipped: Tensor
    """() Number of tokens whose ratio was clipped."""
    ratio_gap: Tensor
    """() Largest |log pi - log pi_old|; on-policy this is the engine's numerical error."""


def clip_higher(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, epsilon_low: float, epsilon_high: float
) -> Surrogate:
    """Clip-higher surrogate, eq. 1: -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), summed over tokens.

    Args:
        logprobs: (N,) log pi of the response tokens, with gradient.
        old_logprobs: (N,) the same under the policy that sampled them.
        advantages: (N,) A of each token's response.
        epsilon_low: 0.2 in the paper.
        epsilon_high: 0.28 in the paper.
    """
    gap = logprobs - old_logprobs
    ratio = gap.exp()
    clipped_ratio = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    objective = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    with torch.no_grad():
        clipped = (clipped_ratio * advantages < ratio * advantages).sum()
        ratio_gap = gap.abs().amax() if gap.numel() else gap.new_zeros(())
    return Surrogate(-objective.sum(), clipped, ratio_gap)
