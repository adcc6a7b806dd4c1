"""How one answer is asked for: never with a placeholder token, seeded by the recipe, greedy where the row says so.

Importing it registers the loop under AGENT; verl does so in every process through `model.external_lib`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transfer_queue
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import apply_greedy_sampling_params
from verl.utils.tokenizer import get_processor_token_id

from vtriune.data.seeds import stable_hash
from vtriune.integrations.verl.reasons import reason_of
from vtriune.integrations.verl.settings import BAN, settings_of
from vtriune.session import EVALUATION_SEED_STEP
from vtriune.types import UserError

AGENT = "vtriune"
FAILURES = "vtriune_failures"
"""Partition of verl's queue: for each answer that broke a key with the tags `sample` and `reason`, for the trainer."""


@register(AGENT)
class PlaceholderFreeAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc]
    """One prompt, one answer without image or video placeholders (paper, section 4, Fig. 8)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seed = settings_of(self.data_config).recipe.seed
        found = (get_processor_token_id(self.processor, kind) for kind in ("image", "video"))
        self._placeholders = [token for token in found if token is not None]
        self._image_grid: Any = None

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See verl. In `extra_fields`: `image_sizes`, [[original, resized], ...], and `spurious_tokens`, a count.

        Raises:
            UserError: a picture can't be read, the prompt is longer than verl.max_prompt_tokens, or the answer holds
                placeholders only.
        """
        try:
            return await self._answer(sampling_params, **kwargs)
        except Exception as error:  # whatever it is, verl only logs it and goes on without the answer
            tag = {"sample": kwargs["extra_info"]["id"], "reason": reason_of(error)}
            key = f"{kwargs['uid']}_{kwargs['session_id']}"
            await transfer_queue.async_kv_put(key=key, partition_id=FAILURES, tag=tag)
            raise

    async def _answer(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        row, name = kwargs["extra_info"], self.rollout_config.name
        asked = dict(sampling_params)
        # sglang takes token ids as text, and seeds a whole engine only.
        asked["logit_bias"] = {str(one) if name == "sglang" else one: BAN for one in self._placeholders}
        if name != "sglang":
            step = EVALUATION_SEED_STEP if row["split"] == "test" else int(kwargs["global_steps"])
            asked["seed"] = stable_hash(self._seed, step, row["id"], int(kwargs["session_id"])) % 2**31
        if row["decoding"] == "greedy":
            apply_greedy_sampling_params(asked)
        output: AgentLoopOutput = await super().run(asked, **kwargs)
        removed = self._remove_placeholders(output)
        pictures = (output.multi_modal_data or {}).get("images") or []
        output.extra_fields |= {"spurious_tokens": removed, "image_sizes": self._sizes(pictures)}
        return output

    async def ct_build_initial_tokens(self, messages: Any, **kwargs: Any) -> list[int]:
        """See verl; what the processor made of the pictures is remembered."""
        try:
            ids: list[int] = await super().ct_build_initial_tokens(messages, **kwargs)
        except ValueError as error:  # so verl refuses a long prompt with pictures, and names its own field
            if "prompt_length" not in str(error):
                raise
            raise self._too_long(next(iter(re.findall(r"\d+", str(error))), "too many")) from error
        self._image_grid = (kwargs.get("mm_inputs_out") or {}).get("image_grid_thw")
        return ids

    def _cap_text_prompt_length(self, prompt_ids: list[int]) -> list[int]:
        """verl cuts off the beginning of a long prompt; here it is an error."""
        if len(prompt_ids) > self.rollout_config.prompt_length:
            raise self._too_long(len(prompt_ids))
        return prompt_ids

    def _too_long(self, tokens: int | str) -> UserError:
        limit = self.rollout_config.prompt_length
        return UserError(
            f"the prompt has {tokens} tokens, those of its pictures included; verl.max_prompt_tokens is {limit}: raise "
            "it, lower model.max_pixels, or remove the row"
        )

    def _remove_placeholders(self, output: AgentLoopOutput) -> int:
        keep = [token not in self._placeholders for token in output.response_ids]
        if all(keep):
            return 0
        if not any(keep):
            raise UserError("the answer holds placeholder tokens only")
        for name in ("response_ids", "response_mask", "response_logprobs"):
            values = getattr(output, name)
            if values is not None:
                setattr(output, name, [value for value, kept in zip(values, keep, strict=True) if kept])
        return len(keep) - sum(keep)

    def _sizes(self, pictures: list[Any]) -> list[list[list[int]]]:
        if not pictures:
            return []
        patch = self.processor.image_processor.patch_size
        grids = torch.as_tensor(self._image_grid).tolist()
        return [
            [list(picture.size), [width * patch, height * patch]]
            for picture, (_, height, width) in zip(pictures, grids, strict=True)
        ]
