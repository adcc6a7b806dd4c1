"""Sampling: each prompt is prefilled once, its KV cache is shared out to its G answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import DynamicCache

from vtriune.local.model import Encoded, VisionLanguageModel
from vtriune.types import FinishReason, Rollout

DROP_FINISHED = 0.3
"""Finished rows leave the batch once they are this share of it: leaving copies the cache."""


class RolloutConfig(BaseModel):
    """How answers are sampled (5.1.2)."""

    model_config = ConfigDict(extra="forbid")

    prompts_per_step: int = Field(1024, ge=1, description="Prompts of one training step.")
    responses_per_prompt: int = Field(8, ge=2, description="G: answers per prompt.")
    max_new_tokens: int = Field(2048, ge=1, description="Longer answers are cut and count as truncated.")
    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Of training rollouts and of sampled evaluation."
    )
    prompts_per_batch: int = Field(64, ge=1, description="Prompts that are sampled together; bounds memory.")


def uniforms(seed: int, step: int, sample_id: str, count: int, length: int) -> np.ndarray:
    """(count, length) numbers in [0, 1) that decide the tokens of a sample's answers at a step.

    They depend on nothing else, so that an answer doesn't depend on what it is batched with, and resuming
    needs no generator state.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{sample_id}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((count, length))


def generate(
    vlm: VisionLanguageModel,
    prompts: Sequence[Encoded],
    draws: np.ndarray | None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> list[list[Rollout]]:
    """G answers to each of P prompts.

    Args:
        vlm: the policy.
        prompts: P encoded samples.
        draws: (P, G, max_new_tokens) uniforms in [0, 1); None for one greedy answer per prompt.
        max_new_tokens: limit per answer.
        temperature: of the distribution that is sampled and whose log-probs are recorded.

    Returns:
        P lists of G rollouts. No placeholder token is among them: their probability is zero.
    """
    group = 1 if draws is None else draws.shape[1]
    inputs, next_position = vlm.prompt_inputs(prompts)
    cache = DynamicCache(config=vlm.model.config)
    with torch.no_grad(), vlm.autocast():
        hidden = vlm.model.model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        cache.batch_repeat_interleave(group)
        hidden = hidden.repeat_interleave(group, 0)
        mask = inputs["attention_mask"].repeat_interleave(group, 0)
        position = next_position.repeat_interleave(group, 0)
        rows = len(prompts) * group
        numbers = None if draws is None else torch.from_numpy(draws.reshape(rows, -1)).to(vlm.device)

        tokens = torch.zeros((rows, max_new_tokens), dtype=torch.long, device=vlm.device)
        logprobs = torch.zeros((rows, max_new_tokens), device=vlm.device)
        entropies = torch.zeros((rows, max_new_tokens), device=vlm.device)
        lengths = torch.full((rows,), max_new_tokens, device=vlm.device)
        stopped = torch.zeros(rows, dtype=torch.bool, device=vlm.device)
        eos = torch.tensor(vlm.eos_ids, device=vlm.device)
        alive = torch.arange(rows, device=vlm.device)  # rows that are still in the batch
        for step in range(max_new_tokens):
            distribution = torch.log_softmax(vlm.logits(hidden, temperature), -1)
            probabilities = distribution.exp()
            token = distribution.argmax(-1) if numbers is None else _inverse_cdf(probabilities, numbers[alive, step])
            tokens[alive, step] = token
            logprobs[alive, step] = distribution.gather(-1, token[:, None])[:, 0]
            entropies[alive, step] = -(probabilities * distribution.clamp_min(-1e4)).sum(-1)
            ended = torch.isin(token, eos) & ~stopped[alive]
            lengths[alive[ended]] = step + 1
            stopped[alive[ended]] = True
            finished = stopped[alive]
            if bool(finished.all()) or step + 1 == max_new_tokens:
                break
            if finished.float().mean() > DROP_FINISHED:
                keep = (~finished).nonzero()[:, 0]
                cache.batch_select_indices(keep)
                alive, token, mask, position = alive[keep], token[keep], mask[keep], position[keep]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            hidden = vlm.model.model.language_model(
                inputs_embeds=vlm.model.get_input_embeddings()(token[:, None]),
                attention_mask=mask,
                position_ids=(position + step).expand(3, -1)[..., None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
    rollouts = [
        _rollout(vlm, ids[:n], lps[:n], ents[:n], bool(stop))
        for ids, lps, ents, n, stop in zip(
            tokens.cpu().numpy(),
            logprobs.cpu().numpy(),
            entropies.cpu().numpy(),
            lengths.tolist(),
            stopped.tolist(),
            strict=True,
        )
    ]
    return [rollouts[k : k + group] for k in range(0, rows, group)]


def _inverse_cdf(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """(B, V), (B,) -> (B,) tokens. In float64: a vocabulary of 150,000 sums to 1 +- 1e-3 in float32.

    The running sum is flat over tokens of probability zero and the target stays below its end, so that none of
    them can be hit.
    """
    cdf = probabilities.double().cumsum(-1)
    target = numbers.clamp_max(1 - 1e-12)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True)[:, 0]


def _rollout(
    vlm: VisionLanguageModel, ids: np.ndarray, logprobs: np.ndarray, entropies: np.ndarray, stopped: bool
) -> Rollout:
    return Rollout(
        token_ids=ids.copy(),
        logprobs=logprobs.copy(),
        text=vlm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        finish=FinishReason.STOP if stopped else FinishReason.LENGTH,
        entropy=float(entropies.mean()),
    )


def remove_placeholders(rollout: Rollout, placeholder_ids: Sequence[int]) -> Rollout:
    """The rollout without image and video placeholder tokens, counted in `spurious_tokens` (section 4, Fig. 8).

    Our own sampler can't produce them; answers of another sampler may hold some, and the model would then look
    for features of pictures that don't exist.
    """
    keep = ~np.isin(rollout.token_ids, placeholder_ids)
    if keep.all():
        return rollout
    return Rollout(
        rollout.token_ids[keep],
        rollout.logprobs[keep],
        rollout.text,
        rollout.finish,
        rollout.entropy,
        rollout.spurious_tokens + int((~keep).sum()),
    )
