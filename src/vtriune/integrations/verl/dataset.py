"""The rows that verl asks: our samples in our order, with pictures as references until an agent loop needs them.

Reading and checking is session.load_data's; here rows only get the shape that verl wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, Literal

import orjson
import torch
from torch.utils.data import Dataset

from vtriune.data.mixture import Draw
from vtriune.data.prompts import with_prompt_pool
from vtriune.integrations.verl.settings import read_recipe, settings_of
from vtriune.local.model import IMAGE_MARK
from vtriune.session import RunData, load_data, open_judge
from vtriune.types import RewardSpec, Sample, Split

Decoding = Literal["sampled", "greedy"]


@cache
def read_data(recipe_json: str) -> RunData:
    """The data of a recipe, read once in a process: verl makes a dataset for each split.

    Raises:
        UserError: what is wrong with the first source that can't be used.
    """
    recipe = read_recipe(recipe_json)
    with open_judge(recipe.reward) as judge:
        return load_data(recipe, judge)


class SampleRows(Dataset[dict[str, Any]]):
    """All draws of a training run in their order (`data.train_files: train`), or the held-out samples (`test`).

    A training row is a function of its number, so verl resumes by skipping: row i belongs to step
    i // prompts_per_step.
    """

    def __init__(
        self, data_files: str, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        self.settings = settings_of(config)
        self.data = read_data(config["vtriune"]["recipe"])
        self.split: Split = "train" if data_files == "train" else "test"
        recipe = self.settings.recipe
        self._draws: list[Draw] = []
        if self.split == "train":
            self._draws = self.data.mixture.next_batch(recipe.steps * recipe.rollout.prompts_per_step)

    def __len__(self) -> int:
        return len(self._draws) if self.split == "train" else len(self.data.test)

    def sample(self, index: int) -> Sample:
        """What row `index` asks, instructions of the prompt pool included."""
        if self.split == "test":
            return self.data.test[index]
        draw, recipe = self._draws[index], self.settings.recipe
        return with_prompt_pool(draw.sample, draw.epoch, recipe.seed) if recipe.data.prompt_pool else draw.sample

    def __getitem__(self, index: int) -> dict[str, Any]:
        return as_row(self.sample(index), index, self.split, "sampled")

    @classmethod
    async def process_multi_modal_info(
        cls, messages: Sequence[Mapping[str, Any]], image_patch_size: int, config: Any
    ) -> tuple[list[Any] | None, None, None]:
        """The decoded pictures of a prompt (or None), no videos, no audio: verl's agent loop calls it.

        Raises:
            UserError: a picture is missing or damaged.
        """
        references = [
            part["image"]
            for message in messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "image"
        ]
        if not references:
            return None, None, None
        loop = asyncio.get_running_loop()  # which many prompts share: decoding must not hold it up
        return await loop.run_in_executor(None, lambda: [one.load() for one in references]), None, None


def as_row(
    sample: Sample, index: int, split: Split, decoding: Decoding, responses: int | None = None
) -> dict[str, Any]:
    """A row as verl's agent loops and reward manager are given it.

    Args:
        sample: what is asked.
        index: number of the row in its dataset.
        split: decides thresholds, and that tests are never learned from.
        decoding: `greedy` overrides the temperature.
        responses: how many answers; None: as verl's configuration says.
    """
    references = iter(sample.images)
    row = {
        "raw_prompt": [{"role": turn.role, "content": _content(turn.content, references)} for turn in sample.messages],
        "data_source": sample.source,
        "reward_model": {"ground_truth": sample.reward.gold, "spec": encode_spec(sample.reward)},
        "extra_info": {"split": split, "index": index, "id": sample.id, "decoding": decoding},
        "index": index,
        # Without a tensor verl's batch would be empty.
        "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
    }
    return row if responses is None else row | {"__rollout_n__": responses}


def encode_spec(spec: RewardSpec) -> str:
    """How a row is rewarded, as JSON."""
    return orjson.dumps(asdict(spec) | {"parameters": dict(spec.parameters)}).decode()


def decode_spec(text: str) -> RewardSpec:
    """The inverse of `encode_spec`."""
    return RewardSpec(**orjson.loads(text))


def _content(text: str, references: Any) -> str | list[dict[str, Any]]:
    """Text with `<image>` marks as the parts that chat templates expect; text alone stays text."""
    if IMAGE_MARK not in text:
        return text
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        if number:
            parts.append({"type": "image", "image": next(references)})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
