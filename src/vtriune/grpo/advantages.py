"""Group-relative advantages (eq. 2). Which rollouts have a reward is decided elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-6
"""Added to the standard deviation, as verl does, so that both engines give the same numbers."""


def advantages(rewards: Sequence[float | None]) -> np.ndarray:
    """A_i = (R_i - mean) / std over the group, eq. 2.

    Args:
        rewards: R_1 .. R_G; None where there is no verdict. Those enter neither the mean nor the deviation.

    Returns:
        (G,) float64. 0 where there is no reward, and everywhere if fewer than two rewards differ.
        The deviation is the sample's (divided by n - 1), as in verl.

    >>> advantages([1.0, 0.0, None, 1.0, 0.0]).round(3).tolist()
    [0.866, -0.866, 0.0, 0.866, -0.866]
    """
    scored = np.array([reward is not None for reward in rewards])
    values = np.array([reward for reward in rewards if reward is not None], dtype=np.float64)
    result = np.zeros(len(rewards))
    if values.size and np.ptp(values) > 0:
        result[scored] = (values - values.mean()) / (values.std(ddof=1) + EPSILON)
    return result
