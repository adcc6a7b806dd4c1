"""Verdicts inside verl's reward loop: each of its processes holds a judge, embedded or a client of reward servers.

verl wants a number for every answer. What has no verdict gets 0 there, and its status says so; the trainer leaves these
answers out of the group's mean and of the loss (trainer.py), so that the 0 is never learned from.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from vtriune.integrations.verl.dataset import decode_spec
from vtriune.integrations.verl.settings import settings_of
from vtriune.reward.judge import JudgeItem
from vtriune.session import open_judge
from vtriune.types import ImageSize, Progress, Split, Status, Verdict


class JudgeRewardManager(RewardManagerBase):  # type: ignore[misc]
    """Judges one answer at a time, many at once; `reward.reward_manager.name` in verl's configuration."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        recipe = settings_of(config.data).recipe
        self._total_steps = recipe.steps
        self._judge = open_judge(recipe.reward)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The verdict of the one answer in `data` (verl's DataProto): `reward_score` and `reward_extra_info`.

        `reward_extra_info` has the same keys for every row: the fields of `types.Verdict`, `report` as JSON text.
        """
        row = data[-1:][0]
        ids = row.batch["responses"]
        length = int(row.batch["attention_mask"][-ids.shape[-1] :].sum())
        about, asked = row.non_tensor_batch["extra_info"], int(row.non_tensor_batch["global_steps"])
        answer = row.non_tensor_batch["tool_extra_fields"]
        item = JudgeItem(
            self.tokenizer.decode(ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False),
            decode_spec(row.non_tensor_batch["reward_model"]["spec"]),
            progress_of(asked, self._total_steps, about["split"]),
            image_sizes(answer["image_sizes"]),
            length,
            str(row.non_tensor_batch["data_source"]),
        )
        verdict = (await asyncio.wrap_future(self._judge.submit([item])))[0]
        score = verdict.reward if verdict.reward is not None else 0.0
        return {"reward_score": score, "reward_extra_info": encode_verdict(verdict)}


def progress_of(global_steps: int, total_steps: int, split: Split) -> Progress:
    """verl counts the training step under way from 1, and evaluates after `global_steps` of them."""
    return Progress(global_steps if split == "test" else global_steps - 1, total_steps, split)


def image_sizes(sizes: list[list[list[int]]]) -> tuple[ImageSize, ...]:
    """As the agent loop noted them."""
    return tuple(ImageSize((a[0], a[1]), (b[0], b[1])) for a, b in sizes)


def encode_verdict(verdict: Verdict) -> dict[str, Any]:
    """As plain values."""
    return {
        "status": str(verdict.status),
        "reward": verdict.reward,
        "accuracy": verdict.accuracy,
        "format": verdict.format,
        "correct": verdict.correct,
        "report": orjson.dumps(dict(verdict.report)).decode(),
        "reason": verdict.reason,
    }


def decode_verdict(fields: dict[str, Any]) -> Verdict:
    """The inverse of `encode_verdict`."""
    return Verdict(**fields | {"status": Status(fields["status"]), "report": orjson.loads(fields["report"])})
