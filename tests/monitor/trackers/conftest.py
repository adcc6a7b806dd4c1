"""What the tests of trackers share: the run that they show."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vtriune.monitor.trackers.base import TrackedRun

RECIPE = {"steps": 4, "model": {"path": "base", "dtype": "float32"}, "data": {"train": [{"path": "a", "weight": 2.0}]}}


@pytest.fixture
def tracked(tmp_path: Path) -> Callable[..., TrackedRun]:
    """A run as `open_trackers` tells of it; `resumed_at` as if it went on from there."""

    def make(resumed_at: int | None = None) -> TrackedRun:
        (tmp_path / "demo").mkdir(exist_ok=True)
        return TrackedRun(tmp_path / "demo", "0123456789ab", "test-project", "demo", RECIPE, resumed_at)

    return make
