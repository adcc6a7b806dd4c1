"""What every verifier speaks: the context it judges in, its outcome, its protocol.

No verifier lives here; weighing (eq. 8) and time limits are the judge's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vtriune.types import ImageSize, Preset, Progress, Split
from vtriune.verifiers.schedule import threshold


class Unscorable(ValueError):  # noqa: N818 - it names a verdict, not a bug
    """Gold or parameters cannot be judged; the message says why. Never the fault of the model's answer."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a verdict depends on beside the answer, gold and parameters."""

    preset: Preset
    split: Split
    threshold: float | None = None
    """eps of eq. 5, as the schedule resolved it; None for a verifier that has none."""
    image_sizes: tuple[ImageSize, ...] = ()
    """One per picture of the sample, in order."""
    progress: Progress | None = None
    """Where training stands, for schedules; None where nothing is scheduled, as while gold is read."""
    response_tokens: int | None = None
    """Length of the answer in tokens, the end token included; None if whoever asks did not say."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one answer is worth, unweighted."""

    accuracy: float
    """R_acc, 0..1."""
    format: float
    """R_fmt, 0..1."""
    correct: bool
    """By the verifier's own rule."""
    report: Mapping[str, float] = field(default_factory=dict)
    """What was measured beside the reward, the same keys for every answer."""
    reason: str = ""
    """Why the accuracy is 0 (`no answer found`, ...); empty if there is nothing to explain."""


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Progressed = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _rising(steps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    if steps[0][0] != 0 or any(a >= b for (a, _), (b, _) in pairwise(steps)):
        raise ValueError("a schedule starts from progress 0 and rises: [[0, 0.85], [0.1, 0.95], [0.25, 0.99]]")
    return steps


Schedule = Annotated[tuple[tuple[Progressed, Share], ...], Field(min_length=1), AfterValidator(_rising)]
"""Steps [from_progress, eps]: eps holds from that share of training on, until the next step."""


class GatedParams(BaseModel):
    """Parameters of a verifier with an eps; `in_context_of` resolves them to `Context.threshold`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iou_threshold: Share | Schedule = ((0.0, 0.85), (0.10, 0.95), (0.25, 0.99))
    """eps of eq. 5 in training: fixed, or Dynamic IoU (3.4) as [[from_progress, eps], ...]."""
    eval_iou_threshold: Share = 0.5
    """eps on the test split: always fixed, so that its curve can be compared over time."""


def in_context_of(params: BaseModel, context: Context) -> Context:
    """The context that a verifier with `params` judges in: its own eps, resolved from its schedule.

    Raises:
        ValueError: `context.progress` is no point of a training run, or there is none and `params` need it.
    """
    if not isinstance(params, GatedParams):
        return context
    if context.progress is None:
        raise ValueError("a threshold needs the progress of training, and the context has none")
    eps = threshold(params.iou_threshold, context.progress, evaluation=params.eval_iou_threshold, preset=context.preset)
    # Not `replace`, which takes as long as the threshold.
    own = context.preset, context.split, eps, context.image_sizes, context.progress, context.response_tokens
    return Context(*own)


ParamsT = TypeVar("ParamsT", bound=BaseModel)
GoldT = TypeVar("GoldT")


class Verifier(Protocol[GoldT, ParamsT]):
    """Measures an answer against gold: pure, without time limits or signals of its own."""

    name: str
    """As rows call it, e.g. `detection`."""
    Params: type[ParamsT]
    """The verifier's own parameters (`verifier_parm`): frozen, hence hashable; unknown fields are refused."""

    def parse_gold(self, gold: str, params: ParamsT, context: Context) -> GoldT:
        """Read the reference answer. It may use the preset and the image sizes of `context`, nothing else of it.

        Raises:
            Unscorable: gold cannot be judged against.
        """

    def judge(self, response: str, gold: GoldT, params: ParamsT, context: Context) -> Outcome:
        """Measure one answer against gold as `parse_gold` returned it.

        Raises:
            Unscorable: the parameters do not fit the context (an image size is needed and missing, ...).
        """
