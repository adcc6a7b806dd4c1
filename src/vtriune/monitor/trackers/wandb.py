"""Figures to Weights & Biases (wandb 0.31). Settings are wandb's own: WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY, ..."""

from __future__ import annotations

from collections.abc import Mapping

import wandb

from vtriune.monitor.runs import RowSplit
from vtriune.monitor.trackers.base import TrackedRun, tags
from vtriune.types import UserError

STEP = "training_step"
"""The figure that charts have as their x axis. wandb's own step must rise, and a resumed run repeats some steps."""


class Wandb:
    """One run of wandb, its files in the run folder; a resumed run goes on with it. Steps that are repeated after a
    checkpoint are shown twice, with equal figures.
    """

    def __init__(self, run: TrackedRun) -> None:
        # wandb would ask for a key in the terminal, where nobody expects it.
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise UserError("wandb has no key: run `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.recipe),
            # The terminal shows bars: a log of them is of no use to anybody.
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric=STEP)

    def write(self, step: int, split: RowSplit, figures: Mapping[str, float]) -> None:
        """Hand the figures of a step to wandb, which sends them when it can."""
        self._run.log({**tags(split, figures), STEP: step})

    def close(self, *, finished: bool) -> None:
        """Wait until all is sent, or written where wandb is offline."""
        self._run.finish(exit_code=0 if finished else 1)


open_tracker = Wandb
