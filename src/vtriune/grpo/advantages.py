"""Advantages within a group (eq. 2 and its relatives). Which rollouts have a reward is decided elsewhere.

Whatever the choice: an answer without a verdict (None) enters nothing and gets 0, and a group whose scored rewards
(GDPO: parts of them) are all equal teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vtriune.types import RewardSpec, Verdict

Advantage = Literal["grpo", "dr_grpo", "rloo", "gdpo"]

EPSILON = 1e-6
"""Added to the standard deviation, as verl does, so that both engines give the same numbers."""


def advantages(rewards: Sequence[float | None]) -> np.ndarray:
    """GRPO: A_i = (R_i - mean) / std over the group, eq. 2.

    Args:
        rewards: R_1 .. R_G; None where there is no verdict. Those enter neither the mean nor the deviation.

    Returns:
        (G,) float64. 0 where there is no reward, and everywhere if fewer than two rewards differ.
        The deviation is the sample's (divided by n - 1), as in verl.

    >>> advantages([1.0, 0.0, None, 1.0, 0.0]).round(3).tolist()
    [0.866, -0.866, 0.0, 0.866, -0.866]
    """
    scored, values = _scored(rewards)
    result = np.zeros(len(rewards))
    if values.size and np.ptp(values) > 0:
        result[scored] = (values - values.mean()) / (values.std(ddof=1) + EPSILON)
    return result


def dr_grpo(rewards: Sequence[float | None]) -> np.ndarray:
    """Dr.GRPO: A_i = R_i - mean. No deviation, which weighs up groups that are nearly all right or all wrong.

    Source: Liu et al. 2025, arXiv 2503.20783, section 3. (G,) float64.

    >>> dr_grpo([1.0, 0.0, None, 1.0, 0.0]).tolist()
    [0.5, -0.5, 0.0, 0.5, -0.5]
    """
    scored, values = _scored(rewards)
    result = np.zeros(len(rewards))
    if values.size and np.ptp(values) > 0:
        result[scored] = values - values.mean()
    return result


def rloo(rewards: Sequence[float | None]) -> np.ndarray:
    """RLOO: A_i = R_i - mean of the others' rewards, a baseline that does not depend on the answer itself.

    Source: Ahmadian et al. 2024, arXiv 2402.14740. It is n / (n - 1) times Dr.GRPO's. (G,) float64.

    >>> rloo([1.0, 0.0, None, 0.0]).tolist()
    [1.0, -0.5, 0.0, -0.5]
    """
    scored, values = _scored(rewards)
    result = np.zeros(len(rewards))
    if values.size and np.ptp(values) > 0:
        result[scored] = values - (values.sum() - values) / (values.size - 1)
    return result


def gdpo(parts: Sequence[Sequence[float | None]], weights: Sequence[float]) -> np.ndarray:
    """GDPO: each part of the reward is normalised within the group as GRPO does the whole, then A = sum of w_k A_k.

    So a part that varies little still counts by its weight, and answers with different parts but equal sums differ.
    Source: Liu et al. 2026, arXiv 2601.05242, section 3. Its last step, which normalises the sums over the batch, is
    left out: a group's advantages would depend on what else happened to be in the batch.

    Args:
        parts: K times (G,) e.g. R_acc and R_fmt; None where there is no verdict.
        weights: (K,) w_k.

    Returns:
        (G,) float64.

    >>> gdpo([[1.0, 0.0, None], [0.25, 0.75, None]], [1.0, 0.5]).round(3).tolist()
    [0.354, -0.354, 0.0]
    """
    result = np.zeros(len(parts[0]))
    for part, weight in zip(parts, weights, strict=True):
        result += weight * advantages(part)
    return result


def group_advantages(choice: Advantage, verdicts: Sequence[Verdict], spec: RewardSpec) -> np.ndarray:
    """(G,) advantages of a group's answers from their verdicts; GDPO's parts are R_acc and R_fmt with eq. 8's weights.

    >>> from vtriune.types import Status
    >>> right, wrong = Verdict(Status.SCORED, 1.0, 1.0, 0.0), Verdict(Status.SCORED, 0.0, 0.0, 0.0)
    >>> verdicts = [right, Verdict(Status.FAILED), wrong]
    >>> group_advantages("rloo", verdicts, RewardSpec("mathverify", "4")).tolist()
    [1.0, 0.0, -1.0]
    """
    if choice == "gdpo":
        parts = [verdict.accuracy for verdict in verdicts], [verdict.format for verdict in verdicts]
        return gdpo(parts, (spec.accuracy_weight, spec.format_weight))
    of_rewards = {"grpo": advantages, "dr_grpo": dr_grpo, "rloo": rloo}[choice]
    return of_rewards([verdict.reward for verdict in verdicts])


def _scored(rewards: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """(G,) bool, where there is a reward; and the n rewards there are, float64."""
    scored = np.array([reward is not None for reward in rewards], dtype=bool)
    return scored, np.array([reward for reward in rewards if reward is not None], dtype=np.float64)
