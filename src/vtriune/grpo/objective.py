"""What is optimised: the recipe's section that chooses among the advantages and losses, and its composition."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from vtriune.grpo.advantages import Advantage
from vtriune.grpo.loss import Surrogate, cispo, clip_higher, gspo

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ObjectiveConfig(BaseModel):
    """What is optimised; the defaults are the paper's eq. 1 and 2. docs/algorithms.md names others."""

    model_config = ConfigDict(extra="forbid")

    advantage: Advantage = Field("grpo", description="How rewards become advantages: grpo, dr_grpo, rloo or gdpo.")
    loss: Literal["clip", "gspo", "cispo"] = Field(
        "clip", description="clip: ratios of tokens (eq. 1); gspo: of whole answers; cispo: clipped weights."
    )
    dual_clip: float | None = Field(
        None, gt=1, allow_inf_nan=False, description="c: least objective of a bad token is c A; of loss clip only."
    )
    normaliser: Literal["tokens", "answers"] | Positive = Field(
        "tokens",
        description="What the sum over tokens is divided by: all tokens; each answer's own length, then the number of "
        "answers; or a constant instead of the length, then the number of answers.",
    )
    kl_coefficient: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the divergence from the initial model, added to the loss.",
    )
    entropy_coefficient: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Weight of the distributions' entropy, taken off the loss."
    )
    truncated_is: float | None = Field(
        None,
        ge=1,
        allow_inf_nan=False,
        description="Most that pi_old / pi_sampler may weigh a token; null: the sampler's log-probs are pi_old.",
    )
    dynamic_sampling: int = Field(
        0, ge=0, description="Rounds of further prompts, at most, in place of groups that teach nothing."
    )

    @model_validator(mode="after")
    def _dual_clip_where_it_is_defined(self) -> Self:
        if self.dual_clip is not None and self.loss != "clip":
            raise ValueError(f"objective.dual_clip: is for loss clip, not {self.loss}; leave it out or set loss: clip")
        return self

    @property
    def learns_from_all(self) -> bool:
        """Do answers with an advantage of 0 have a gradient, too?"""
        return self.kl_coefficient > 0 or self.entropy_coefficient > 0

    def divisor(self, tokens: int, answers: int) -> float:
        """What a batch's sum is divided by.

        >>> [ObjectiveConfig(normaliser=n).divisor(1000, 8) for n in ("tokens", "answers", 2048)]
        [1000, 8, 16384.0]
        """
        if self.normaliser == "tokens":
            return tokens
        return answers if self.normaliser == "answers" else answers * self.normaliser

    def surrogate(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        answers: Tensor,
        *,
        epsilon_low: float,
        epsilon_high: float,
        weights: Tensor | None = None,
    ) -> Surrogate:
        """The chosen loss, whose arguments are those of `gspo`."""
        tokens = logprobs, old_logprobs, advantages
        if self.loss == "gspo":
            return gspo(*tokens, answers, epsilon_low=epsilon_low, epsilon_high=epsilon_high, weights=weights)
        if self.loss == "cispo":
            return cispo(*tokens, epsilon_low=epsilon_low, epsilon_high=epsilon_high, weights=weights)
        return clip_higher(
            *tokens, epsilon_low=epsilon_low, epsilon_high=epsilon_high, dual_clip=self.dual_clip, weights=weights
        )


PAPER = ObjectiveConfig()
"""Eq. 1 and 2."""
