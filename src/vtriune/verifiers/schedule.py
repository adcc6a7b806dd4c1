"""Dynamic IoU (paper 3.4): which threshold eps holds at a given point of training.

Pure functions of progress. How a schedule is written and checked is `verifiers.base.GatedParams`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vtriune.types import Preset, Progress


def threshold(
    schedule: float | Sequence[tuple[float, float]],
    progress: Progress,
    *,
    evaluation: float = 0.5,
    preset: Preset = "modern",
) -> float:
    """The eps of eq. 5 that holds at `progress`.

    Args:
        schedule: One eps for all of training, or steps (from_progress, eps) that start from 0 and rise in
            from_progress. A step holds from its share of training on: with 100 steps the tenth of
            (0.10, 0.95) begins at step 10, since steps count from 0.
        progress: step / total_steps is the share of training that is done; past the end the last step holds.
        evaluation: eps on the test split, in every preset: fixed, so that evaluations can be compared over time.
        preset: `official_code` does in training as the released server, which gets steps that count from 1 and lets
            a step of the schedule begin only after its share is exceeded: (step + 1) / total_steps > from_progress.
            (The released server schedules test samples too; a table of before and after would compare two rulers.)

    Raises:
        ValueError: `progress` is no point of a training run, e.g. total_steps is 0.

    >>> paper = [(0, 0.85), (0.10, 0.95), (0.25, 0.99)]
    >>> [threshold(paper, Progress(step, 100, "train")) for step in (0, 9, 10, 24, 25, 100)]
    [0.85, 0.85, 0.95, 0.95, 0.99, 0.99]
    >>> threshold(paper, Progress(50, 100, "test"))
    0.5
    """
    if progress.split == "test":
        return evaluation
    if progress.total_steps < 1:
        raise ValueError(f"progress.total_steps must be at least 1, got {progress.total_steps}")
    if progress.step < 0:
        raise ValueError(f"progress.step must be at least 0, got {progress.step}")
    if isinstance(schedule, int | float):
        return float(schedule)
    eps = schedule[0][1]
    for from_progress, value in schedule[1:]:
        if preset == "official_code":
            begun = (progress.step + 1) / progress.total_steps > from_progress
        else:
            begun = progress.step / progress.total_steps >= from_progress
        if begun:
            eps = value
    return eps
