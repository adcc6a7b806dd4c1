"""One policy update: log-probs of a group's answers over their shared prompt, the loss, the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vtriune.grpo.loss import clip_higher
from vtriune.local.logprobs import response_logprobs
from vtriune.local.model import Encoded, VisionLanguageModel
from vtriune.local.parts import Part, Place, gradient_figures, gradient_norms

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Item = TypeVar("Item")


class UpdateConfig(BaseModel):
    """The optimizer and the objective (5.1.2)."""

    model_config = ConfigDict(extra="forbid")

    learning_rate: Rate | dict[Part, Rate] = Field(
        1e-6, description="One rate, or one per part, e.g. {llm: 1e-6, connector: 1e-7}."
    )
    warmup_ratio: float = Field(0.05, ge=0, le=1, description="Share of all steps with a rising rate; constant after.")
    weight_decay: Rate = Field(0.01, description="Of AdamW.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this total norm.")
    prompts_per_update: int | None = Field(
        None, ge=1, description="Most prompts of one optimizer step; null: all of a step's prompts at once (on-policy)."
    )
    epsilon_low: float = Field(0.2, gt=0, lt=1, description="Ratio clipped below at 1 - epsilon_low (eq. 1).")
    epsilon_high: float = Field(0.28, gt=0, description="Ratio clipped above at 1 + epsilon_high (eq. 1).")
    tokens_per_batch: int = Field(
        16_384, ge=1, description="Padded tokens (prompts once, all answers) that are run together; bounds memory."
    )
    max_skipped_in_a_row: int = Field(
        5, ge=1, description="Training stops after so many optimizer steps in a row whose gradient was not finite."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute each layer's inside again in the backward pass: less memory, a third more time."
    )


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the update learns from one group: only answers with a verdict are in it."""

    prompt: Encoded
    token_ids: list[np.ndarray]
    """R arrays of (T_i,) int64."""
    old_logprobs: list[np.ndarray]
    """R arrays of (T_i,) float32."""
    advantages: np.ndarray
    """(R,)"""
    sample: str = ""
    """Its id."""

    @property
    def tokens(self) -> int:
        """Number of response tokens: what the loss is divided by."""
        return sum(len(ids) for ids in self.token_ids)

    @property
    def longest(self) -> int:
        """Length of the longest answer."""
        return max(len(ids) for ids in self.token_ids)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An optimizer step that was not taken."""

    samples: tuple[str, ...]
    """Ids of those that it would have learned from."""
    reason: str


def micro_batches(lessons: Sequence[Lesson], budget: int) -> Iterator[list[Lesson]]:
    """Lessons of similar length together, each batch within the budget of padded tokens."""
    batch: list[Lesson] = []
    for lesson in sorted(lessons, key=lambda lesson: (lesson.longest, len(lesson.prompt.ids))):
        grown = [*batch, lesson]
        prompt = max(len(one.prompt.ids) for one in grown)
        rows = sum(len(one.token_ids) for one in grown)
        if batch and len(grown) * prompt + rows * lesson.longest > budget:
            yield batch
            batch = [lesson]
        else:
            batch = grown
    if batch:
        yield batch


def split(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """As few runs of at most `most` items as possible, their sizes differing by at most one.

    >>> split("abcdefghi", 4)
    ['abc', 'def', 'ghi']
    """
    count = -(-len(items) // most)
    return [items[a:b] for a, b in pairwise(len(items) * k // count for k in range(count + 1))]


class Learner:
    """The optimizer and its schedule. Steps are counted from outside, so nothing but AdamW's moments and
    `skipped_in_a_row` is state.
    """

    def __init__(self, vlm: VisionLanguageModel, config: UpdateConfig, temperature: float) -> None:
        self.vlm, self.config, self.temperature = vlm, config, temperature
        self.skipped: list[Skipped] = []
        """What the last update skipped."""
        self.skipped_in_a_row = 0
        """Optimizer steps skipped since the last one taken, over all updates."""
        self.placed: dict[Place, list[Tensor]] = {}
        self.parameters: dict[Part, list[Tensor]] = {}
        for name, parameter in vlm.model.named_parameters():
            if parameter.requires_grad:
                place = vlm.places[name]
                self.placed.setdefault(place, []).append(parameter)
                self.parameters.setdefault(place.part, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": list_, "part": part} for part, list_ in self.parameters.items()],
            betas=config.betas,
            weight_decay=config.weight_decay,
        )

    def learning_rate(self, part: Part, step: int, total_steps: int) -> float:
        """Linear warm-up over `warmup_ratio` of all steps, then constant."""
        base = self.config.learning_rate
        rate = base.get(part, 0.0) if isinstance(base, dict) else base
        return rate * min(1.0, (step + 1) / max(1.0, self.config.warmup_ratio * total_steps))

    @property
    def stuck(self) -> bool:
        """Whether the last update ended with more skipped steps in a row than are allowed."""
        return bool(self.skipped) and self.skipped_in_a_row >= self.config.max_skipped_in_a_row

    def update(self, lessons: Sequence[Lesson], step: int, total_steps: int) -> dict[str, float]:
        """All optimizer steps of one rollout batch, on nearly equal chunks of the lessons in the order given.

        A step whose loss or gradient is not finite is skipped: it would make every weight NaN. Once too many in a row
        were, the others are not tried (`stuck`).

        Returns:
            loss, clip_fraction, logprob_gap (largest difference between sampled and recomputed log-probs at the
            first optimizer step), grad_norm, grad_norm_<part>, layer_<nn>/grad_norm_<part>, learning_rate_<part>,
            averaged over the optimizer steps taken; optimizer_steps taken and skipped_updates. Nothing at all
            without lessons.
        """
        self.skipped = []
        if not lessons:
            return {}
        chunks = split(lessons, self.config.prompts_per_update or len(lessons))
        steps = []
        for chunk in chunks:
            steps.append(self._optimizer_step(chunk, step, total_steps))
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if steps[-1] is None else 0
            if self.stuck:
                break
        figures = [one for one in steps if one is not None]
        result = {"optimizer_steps": float(len(figures)), "skipped_updates": float(len(steps) - len(figures))}
        if figures:
            result |= {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
            result["logprob_gap"] = figures[0]["logprob_gap"]
        return result

    def _optimizer_step(self, lessons: Sequence[Lesson], step: int, total_steps: int) -> dict[str, float] | None:
        """One optimizer step and its figures; None if it had to be skipped."""
        tokens = sum(lesson.tokens for lesson in lessons)
        loss, clipped, gap = 0.0, 0.0, 0.0
        # A group without spread has advantages of 0, hence no gradient: its tokens count, its forward pass is saved.
        learning = [lesson for lesson in lessons if lesson.advantages.any()]
        for batch in micro_batches(learning, self.config.tokens_per_batch):
            logprobs = response_logprobs(
                self.vlm,
                [one.prompt for one in batch],
                [one.token_ids for one in batch],
                self.temperature,
                recompute=self.config.gradient_checkpointing,
            )
            old = torch.from_numpy(np.concatenate([lp for one in batch for lp in one.old_logprobs]))
            lengths = [len(ids) for one in batch for ids in one.token_ids]
            weights = np.repeat(np.concatenate([one.advantages for one in batch]), lengths)
            surrogate = clip_higher(
                logprobs,
                old.to(logprobs),
                torch.from_numpy(weights).to(logprobs),
                epsilon_low=self.config.epsilon_low,
                epsilon_high=self.config.epsilon_high,
            )
            (surrogate.loss / tokens).backward()  # type: ignore[no-untyped-call]
            loss += surrogate.loss.item() / tokens
            clipped += surrogate.clipped.item() / tokens
            gap = max(gap, surrogate.ratio_gap.item())
        norms = gradient_figures(gradient_norms(self.placed))
        total = norms["grad_norm"]
        if not (math.isfinite(total) and math.isfinite(loss)):
            self.skipped.append(
                Skipped(tuple(one.sample for one in learning), f"loss {loss:.4g}, norm of the gradient {total:.4g}")
            )
            self.optimizer.zero_grad(set_to_none=True)
            return None
        if total > self.config.max_grad_norm:
            for parameter in (one for list_ in self.parameters.values() for one in list_):
                if parameter.grad is not None:
                    parameter.grad.mul_(self.config.max_grad_norm / total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(group["part"], step, total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": loss,
            "clip_fraction": clipped,
            "logprob_gap": gap,
            **norms,
            **{f"learning_rate_{group['part']}": group["lr"] for group in self.optimizer.param_groups},
        }
