"""What the pool is asked: a call's items, each distinct answer among them, and their verdicts as they come in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from vtriune.reward.blocking import OnVerdict
from vtriune.reward.judge import JudgeItem
from vtriune.types import Verdict


class Submission:
    """The items of one call of `judge`, and their verdicts as they come in."""

    def __init__(self, size: int, on_verdict: OnVerdict | None, future: asyncio.Future[list[Verdict]]) -> None:
        self.future = future
        self.waiting: deque[Task] = deque()
        self._on_verdict = on_verdict
        self._verdicts: list[Verdict | None] = [None] * size
        self._missing = size
        if not size:
            future.set_result([])

    def settle(self, positions: Iterable[int], verdict: Verdict) -> None:
        """Note a verdict; the last one completes the future."""
        if self.future.done():  # cancelled
            return
        for position in positions:
            self._verdicts[position] = verdict
            self._missing -= 1
            if self._on_verdict:
                self._on_verdict(position, verdict)
        if not self._missing:
            self.future.set_result(cast(list[Verdict], self._verdicts))


@dataclass(slots=True, eq=False)
class Task:
    """One distinct answer of a submission, and where its verdict belongs."""

    submission: Submission
    item: JudgeItem
    data: bytes
    """The item as it travels."""
    positions: list[int] = field(default_factory=list)
    crashes: int = 0

    def same_sample(self, other: Task) -> bool:
        """Do both answer the same sample? Then they share its gold."""
        return (self.item.spec, self.item.image_sizes) == (other.item.spec, other.item.image_sizes)
