"""One policy update: log-probs of a group's answers over their shared prompt, the loss, the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vtriune.grpo.loss import Surrogate, kl_k3, truncated_weights
from vtriune.grpo.objective import PAPER, ObjectiveConfig
from vtriune.local.logprobs import alike, logprobs_and_entropies, response_logprobs
from vtriune.local.model import Encoded, VisionLanguageModel
from vtriune.local.parts import Part, Place, gradient_figures, gradient_norms

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Item = TypeVar("Item")


class UpdateConfig(BaseModel):
    """The optimizer, and the limits of the objective's ratios (5.1.2)."""

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
    epsilon_low: float = Field(
        0.2, gt=0, le=1, description="Ratio clipped below at 1 - epsilon_low (eq. 1); GSPO's paper has 3e-4, CISPO's 1."
    )
    epsilon_high: float = Field(
        0.28, gt=0, description="Ratio clipped above at 1 + epsilon_high (eq. 1); GSPO's paper has 4e-4."
    )
    tokens_per_batch: int = Field(
        16_384,
        ge=1,
        description="Padded tokens (prompts once, all answers) run together; one prompt's answers are never split.",
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
    reference_logprobs: Sequence[np.ndarray] = ()
    """R arrays of (T_i,) float32 under the initial model; none where nothing is held to it."""
    sampler_weights: Sequence[np.ndarray] = ()
    """R arrays of (T_i,) float32, min(pi_old / pi_sampler, C); none where the sampler is taken at its word."""

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
    """Lessons with prompts of similar length together, each batch within the budget of padded tokens."""
    batch: list[Lesson] = []
    for lesson in sorted(lessons, key=lambda lesson: (len(lesson.prompt.ids), lesson.longest)):
        grown = [*batch, lesson]
        if batch and _padded(grown) > budget:
            yield batch
            batch = [lesson]
        else:
            batch = grown
    if batch:
        yield batch


def _padded(lessons: Sequence[Lesson]) -> int:
    """Tokens that `response_logprobs` runs, padding included."""
    lengths = [len(ids) for lesson in lessons for ids in lesson.token_ids]
    answers = sum(len(run) * max(lengths[row] for row in run) for run in alike(lengths))
    return len(lessons) * max(len(lesson.prompt.ids) for lesson in lessons) + answers


def split(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """As few runs of at most `most` items as possible, their sizes differing by at most one.

    >>> split("abcdefghi", 4)
    ['abc', 'def', 'ghi']
    """
    return evenly(items, -(-len(items) // most))


def evenly(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """`count` runs of items whose sizes differ by at most one.

    >>> evenly("abcde", 2)
    ['ab', 'cde']
    """
    return [items[a:b] for a, b in pairwise(len(items) * k // count for k in range(count + 1))]


class Learner:
    """The optimizer and its schedule. Steps are counted from outside, so nothing but AdamW's moments and
    `skipped_in_a_row` is state.

    The reference of a divergence is the model as it is given here, which is the recipe's, also when a run is resumed.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        config: UpdateConfig,
        temperature: float,
        objective: ObjectiveConfig = PAPER,
    ) -> None:
        self.vlm, self.config, self.temperature, self.objective = vlm, config, temperature, objective
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
        self._reference: list[Tensor] = []
        """The initial weights of what is trained, if the objective holds the policy to them."""
        if objective.kl_coefficient:
            self._reference = [one.detach().clone() for list_ in self.parameters.values() for one in list_]

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
            averaged over the optimizer steps taken; optimizer_steps taken, skipped_updates and staleness, the mean over
            chunks of the optimizer steps between the weights that sampled and those that learn. What the objective asks
            for is added: kl (k3), policy_entropy and sampler_weight (1 in groups that teach nothing), means over all
            tokens. Nothing at all without lessons.
        """
        self.skipped = []
        if not lessons:
            return {}
        lessons, prepared = self._prepare(lessons)
        chunks = split(lessons, self.config.prompts_per_update or len(lessons))
        steps: list[dict[str, float] | None] = []
        ages = []
        for chunk in chunks:
            ages.append(sum(one is not None for one in steps))
            steps.append(self._optimizer_step(chunk, step, total_steps))
            if steps[-1] is None:
                self.skipped_in_a_row += 1
            elif any(map(self._teaches, chunk)):
                self.skipped_in_a_row = 0
            if self.stuck:
                break
        figures = [one for one in steps if one is not None]
        result = {"optimizer_steps": float(len(figures)), "skipped_updates": float(len(steps) - len(figures))}
        result["staleness"] = float(np.mean(ages))
        if figures:
            result |= {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
            result |= {"logprob_gap": figures[0]["logprob_gap"]} | prepared
        return result

    def _prepare(self, lessons: Sequence[Lesson]) -> tuple[Sequence[Lesson], dict[str, float]]:
        """Lessons with what the objective needs from before the first optimizer step, and the figures of that."""
        if self._reference:
            with self._as_reference():
                lessons = [replace(one, reference_logprobs=found) for one, found in self._recomputed(lessons)]
        cap = self.objective.truncated_is
        if cap is None:
            return lessons, {}
        corrected = []
        for one, found in self._recomputed(lessons):
            weights = [
                truncated_weights(torch.from_numpy(old), torch.from_numpy(sampler), cap).numpy()
                for old, sampler in zip(found, one.old_logprobs, strict=True)
            ]
            corrected.append(replace(one, old_logprobs=found, sampler_weights=weights))
        gap = np.abs(_flat(one.old_logprobs for one in corrected) - _flat(one.old_logprobs for one in lessons)).max()
        weight = _flat(one.sampler_weights for one in corrected).mean(dtype=np.float64)
        return corrected, {"logprob_gap": float(gap), "sampler_weight": float(weight)}

    @torch.no_grad()
    def _recomputed(self, lessons: Sequence[Lesson]) -> list[tuple[Lesson, list[np.ndarray]]]:
        """Each lesson with its answers' log-probs at the present weights; with those it has if it teaches nothing."""
        found = {id(one): one.old_logprobs for one in lessons}
        for batch in micro_batches([one for one in lessons if self._teaches(one)], self.config.tokens_per_batch):
            prompts, answers = [one.prompt for one in batch], [one.token_ids for one in batch]
            flat = response_logprobs(self.vlm, prompts, answers, self.temperature).float().cpu().numpy()
            ends = np.cumsum([len(ids) for group in answers for ids in group])
            pieces = iter(np.split(flat, ends[:-1]))
            found |= {id(one): [next(pieces) for _ in one.token_ids] for one in batch}
        return [(one, found[id(one)]) for one in lessons]

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Inside, the model has its initial weights."""
        trained = [parameter for list_ in self.parameters.values() for parameter in list_]
        own = [parameter.data for parameter in trained]
        try:
            for parameter, initial in zip(trained, self._reference, strict=True):
                parameter.data = initial
            yield
        finally:
            for parameter, present in zip(trained, own, strict=True):
                parameter.data = present

    def _teaches(self, lesson: Lesson) -> bool:
        """Has it a gradient? Without spread its advantages are 0: its tokens count, its forward pass is saved."""
        return self.objective.learns_from_all or bool(lesson.advantages.any())

    def _loss(self, batch: Sequence[Lesson]) -> tuple[Surrogate, dict[str, float]]:
        """The objective's sums over a micro-batch, and those of its further figures over the tokens."""
        objective = self.objective
        logprobs, entropy = logprobs_and_entropies(
            self.vlm,
            [one.prompt for one in batch],
            [one.token_ids for one in batch],
            self.temperature,
            recompute=self.config.gradient_checkpointing,
            entropy=objective.entropy_coefficient > 0,
        )

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(logprobs)

        lengths = np.array([len(ids) for one in batch for ids in one.token_ids])
        shares = tensor(np.repeat(1 / lengths, lengths)) if objective.normaliser == "answers" else None
        weights = shares
        if objective.truncated_is is not None:
            trust = tensor(_flat(one.sampler_weights for one in batch))
            weights = trust if shares is None else trust * shares
        surrogate = objective.surrogate(
            logprobs,
            tensor(_flat(one.old_logprobs for one in batch)),
            tensor(np.repeat(np.concatenate([one.advantages for one in batch]), lengths)),
            torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(logprobs.device),
            epsilon_low=self.config.epsilon_low,
            epsilon_high=self.config.epsilon_high,
            weights=weights,
        )
        loss, sums = surrogate.loss, {"clip_fraction": surrogate.clipped.item()}
        terms = {}
        if self._reference:
            kl = kl_k3(logprobs, tensor(_flat(one.reference_logprobs for one in batch)))
            terms["kl"] = objective.kl_coefficient, kl
        if entropy is not None:
            terms["policy_entropy"] = -objective.entropy_coefficient, entropy
        for name, (coefficient, term) in terms.items():
            loss = loss + coefficient * (term if shares is None else term * shares).sum()
            sums[name] = term.sum().item()
        return replace(surrogate, loss=loss), sums

    def _optimizer_step(self, lessons: Sequence[Lesson], step: int, total_steps: int) -> dict[str, float] | None:
        """One optimizer step and its figures; None if it had to be skipped."""
        tokens = sum(lesson.tokens for lesson in lessons)
        divisor = self.objective.divisor(tokens, sum(len(lesson.token_ids) for lesson in lessons))
        loss, gap = 0.0, 0.0
        means = {"clip_fraction": 0.0}
        learning = [lesson for lesson in lessons if self._teaches(lesson)]
        for batch in micro_batches(learning, self.config.tokens_per_batch):
            surrogate, sums = self._loss(batch)
            (surrogate.loss / divisor).backward()  # type: ignore[no-untyped-call]
            loss += surrogate.loss.item() / divisor
            gap = max(gap, surrogate.ratio_gap.item())
            means |= {name: means.get(name, 0.0) + total / tokens for name, total in sums.items()}
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
            **means,
            "logprob_gap": gap,
            **norms,
            **{f"learning_rate_{group['part']}": group["lr"] for group in self.optimizer.param_groups},
        }


def _flat(groups: Iterable[Sequence[np.ndarray]]) -> np.ndarray:
    """All tokens' values one after the other."""
    return np.concatenate([one for group in groups for one in group])
