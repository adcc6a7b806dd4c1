"""Our judge as a reward function of TRL, and our figures per source in its log. Imports no TRL: it calls us.

Source: TRL 1.16.0, trl/trainer/grpo_trainer.py, `GRPOTrainer._calculate_rewards`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from vtriune.grpo.advantages import advantages
from vtriune.monitor.metrics import source_metrics
from vtriune.reward.blocking import BlockingJudge
from vtriune.reward.label import Label, read_label
from vtriune.types import FinishReason, Group, JudgedGroup, Rollout, Sample, Verdict

UNKNOWN = ("entropy", "spurious_tokens")
"""Figures of ours that TRL doesn't let a reward function see."""


class JudgeReward:
    """`GRPOTrainer(reward_funcs=JudgeReward(...))`. The data set has a column `reward_label` (`label.write_label`).

    Answers without a verdict are None, which TRL leaves out of the group's mean and learns nothing from. Figures of
    each source go into TRL's log as `<source>/<figure>`, means over the calls between two lines of it; status and
    reason of each answer go into its table of completions.

    Args:
        judge: reward servers (`RewardClient`) or embedded workers (`JudgePool`); the caller closes it.
        end_tokens: an answer that ends with none of these was cut at the token limit.
    """

    def __init__(self, judge: BlockingJudge[Any], end_tokens: Collection[int]) -> None:
        self._judge = judge
        self._end_tokens = frozenset(end_tokens)
        self.__name__ = "vtriune"  # what TRL calls it in its log

    async def __call__(
        self,
        *,
        completions: Sequence[str | list[dict[str, str]]],
        completion_ids: Sequence[Sequence[int]],
        reward_label: Sequence[str],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        log_extra: Callable[[str, list[Any]], None],
        **_: object,
    ) -> list[float | None]:
        """Rewards in order.

        Raises:
            UserError: a row has no label that can be read.
        """
        step, total = trainer_state.global_step, trainer_state.max_steps
        texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
        labels = [read_label(one) for one in reward_label]
        rows = list(zip(labels, texts, completion_ids, strict=True))
        items = [label.item(text, step, total, len(ids)) for label, text, ids in rows]
        verdicts = await asyncio.wrap_future(self._judge.submit(items))
        judged = [(*row, verdict) for row, verdict in zip(rows, verdicts, strict=True)]
        groups = [
            self._group([judged[n] for n in numbers])
            for _, numbers in groupby(range(len(judged)), lambda n: reward_label[n])
        ]
        for name, value in source_metrics(groups).items():
            if name.rpartition("/")[2] not in UNKNOWN:
                log_metric(name, value)
        log_extra("status", [str(verdict.status) for verdict in verdicts])
        log_extra("reason", [verdict.reason for verdict in verdicts])
        return [verdict.reward for verdict in verdicts]

    def _group(self, judged: Sequence[tuple[Label, str, Sequence[int], Verdict]]) -> JudgedGroup:
        """Answers to one prompt as our metrics have them, without what they can't know."""
        label, _, _, _ = judged[0]
        spec = label.item("", None, 1).spec
        rollouts = tuple(
            Rollout(
                np.asarray(ids, dtype=np.int64),
                np.full(len(ids), np.nan, dtype=np.float32),
                text,
                FinishReason.STOP if len(ids) and ids[-1] in self._end_tokens else FinishReason.LENGTH,
                entropy=float("nan"),
            )
            for _, text, ids, _ in judged
        )
        verdicts = tuple(verdict for *_, verdict in judged)
        sample = Sample(label.id, label.source, "", (), (), spec)
        group = Group(sample, "", np.zeros(0, dtype=np.int64), (), rollouts)
        return JudgedGroup(group, verdicts, advantages([verdict.reward for verdict in verdicts]))
