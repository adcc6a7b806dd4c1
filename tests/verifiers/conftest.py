"""How the tests of this folder show that time grows no faster than a text."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

LENGTH = 400_000
"""The longest answer that is judged."""
MOST = 8.0
"""Of four times the text: linear time takes 4 times as long, quadratic time 16 times."""
NOISE = 0.005
"""Seconds of CPU time below which a ratio means nothing; quadratic work on LENGTH characters takes minutes."""


@pytest.fixture
def assert_linear() -> Callable[[Callable[[str], object], str], None]:
    """Demands that a function's CPU time on LENGTH characters is at most MOST times that on a quarter of them."""

    def cpu_seconds(work: Callable[[str], object], text: str) -> float:
        start = time.process_time()
        work(text)
        return time.process_time() - start

    def check(work: Callable[[str], object], unit: str) -> None:
        quarter, whole = (unit * (length // len(unit)) for length in (LENGTH // 4, LENGTH))
        bound = MOST * max(cpu_seconds(work, quarter), NOISE)
        # A pause of the collector or a cold cache may hit one measurement, hardly three.
        assert any(cpu_seconds(work, whole) <= bound for _ in range(3))

    return check
