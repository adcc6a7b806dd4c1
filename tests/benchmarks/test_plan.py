"""The plan's peaks beside what a process of the local engine really takes."""

from __future__ import annotations

import pytest
from benchmarks.plan import Case, measure


@pytest.mark.heavy
@pytest.mark.parametrize(
    "case",
    [Case("training", prompts=5), Case("training", checkpointing=True), Case("sampling", prompts=16)],
    ids=["training", "training with checkpointing", "sampling"],
)
def test_a_planned_peak_is_the_measured_one_to_a_quarter(case: Case) -> None:
    planned, taken = measure(case)
    assert 0.8 <= planned / taken <= 1.25
