"""Dynamic IoU: which eps holds when."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.types import Preset, Progress
from vtriune.verifiers.base import GatedParams
from vtriune.verifiers.schedule import threshold

PRESETS: tuple[Preset, ...] = ("paper", "official_code", "modern")
PAPER = GatedParams().iou_threshold


def eps_in_training(step: int, total_steps: int) -> float:
    return threshold(PAPER, Progress(step, total_steps, "train"))


@st.composite
def increasing_schedules(draw: st.DrawFn) -> list[tuple[float, float]]:
    starts = sorted(draw(st.sets(st.floats(0.001, 0.999), max_size=5)))
    values = sorted(draw(st.lists(st.floats(0, 1), min_size=len(starts) + 1, max_size=len(starts) + 1)))
    return list(zip([0.0, *starts], values, strict=True))


@given(increasing_schedules(), st.integers(1, 10_000), st.data())
def test_the_threshold_never_falls_under_an_increasing_schedule(
    schedule: list[tuple[float, float]], total_steps: int, data: st.DataObject
) -> None:
    earlier, later = sorted(data.draw(st.tuples(st.integers(0, total_steps), st.integers(0, total_steps))))
    assert threshold(schedule, Progress(earlier, total_steps, "train")) <= threshold(
        schedule, Progress(later, total_steps, "train")
    )


@given(st.integers(1, 100_000), st.data())
def test_the_paper_schedule_changes_at_exactly_10_and_25_percent_of_any_number_of_steps(
    total_steps: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total_steps))
    done = Fraction(step, total_steps)
    expected = 0.85 if done < Fraction(1, 10) else 0.95 if done < Fraction(1, 4) else 0.99
    assert eps_in_training(step, total_steps) == expected


def test_training_starts_with_the_first_step_of_the_schedule_and_ends_with_the_last() -> None:
    assert eps_in_training(0, 135) == 0.85
    assert eps_in_training(134, 135) == 0.99
    assert eps_in_training(140, 135) == 0.99


@given(st.integers(0, 50), st.floats(0, 1))
def test_a_number_is_a_schedule_without_steps(step: int, eps: float) -> None:
    assert threshold(eps, Progress(step, 50, "train")) == eps


@given(st.integers(-5, 200), st.integers(-5, 100), st.sampled_from(PRESETS))
def test_the_test_split_has_the_evaluation_threshold_whatever_the_progress_and_preset(
    step: int, total_steps: int, preset: Preset
) -> None:
    assert threshold(PAPER, Progress(step, total_steps, "test"), evaluation=0.6, preset=preset) == 0.6


@pytest.mark.parametrize(
    ("total_steps", "step", "eps"),
    [
        # The server is told steps 1..100 and compares 10/100 > 0.10, 11/100 > 0.10, ...
        (100, 0, 0.85), (100, 9, 0.85), (100, 10, 0.95), (100, 24, 0.95), (100, 25, 0.99), (100, 99, 0.99),
        # 13/135 = 0.096, 14/135 = 0.104; 33/135 = 0.244, 34/135 = 0.252. Ours begin a step later, at 14 and 34.
        (135, 12, 0.85), (135, 13, 0.95), (135, 32, 0.95), (135, 33, 0.99), (135, 134, 0.99),
        (4, 0, 0.95), (4, 1, 0.99), (1, 0, 0.99),
    ],
)  # fmt: skip
def test_official_code_counts_training_steps_from_1_as_the_released_server(
    total_steps: int, step: int, eps: float
) -> None:
    assert threshold(PAPER, Progress(step, total_steps, "train"), preset="official_code") == eps


@pytest.mark.parametrize(("step", "eps"), [(12, 0.85), (13, 0.85), (14, 0.95), (33, 0.95), (34, 0.99), (134, 0.99)])
def test_the_other_presets_begin_a_step_once_its_share_is_done(step: int, eps: float) -> None:
    assert eps_in_training(step, 135) == eps


@pytest.mark.parametrize("progress", [Progress(0, 0, "train"), Progress(3, -1, "train"), Progress(-1, 10, "train")])
@pytest.mark.parametrize("schedule", [0.5, PAPER])
def test_progress_that_is_no_progress_is_an_error_and_not_a_threshold(
    progress: Progress, schedule: float | list[tuple[float, float]]
) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        threshold(schedule, progress)
