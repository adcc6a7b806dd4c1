"""The currency of the project: what is asked, what was answered, what the answer was worth.

Every room speaks these types; this module imports nothing of the project and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Split = Literal["train", "test"]
"""`train` follows schedules and the prompt pool; `test` uses fixed thresholds and fixed prompts."""

Preset = Literal["paper", "official_code", "modern"]
"""Which definition of a reward holds: the paper's, the released code's, or ours where we know better."""


class UserError(Exception):
    """Something only the user can mend; the message names the place and the remedy, no traceback needed."""


class ImageRef(Protocol):
    """A picture that has not been decoded: cheap to keep, to copy and to send to another process."""

    @property
    def where(self) -> str:
        """File, row and position of the picture, for messages and for the run's rollout log."""

    def load(self) -> Image:
        """Decode the picture to RGB. Raises UserError (naming `where`) if it is missing or corrupt."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Width and height in pixels of a picture as stored, and as the model's processor resized it."""

    original: tuple[int, int]
    resized: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation; `content` holds one `<image>` mark for every picture it shows."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """How this very sample is rewarded: it travels with the row (`reward_model` of the released schema)."""

    verifier: str
    """Name in the verifier registry, e.g. `mathverify`."""
    gold: str
    """The reference answer as text (`ground_truth`, or `answer` where that is missing)."""
    accuracy_weight: float = 1.0
    """a_acc of eq. 8 (`accuracy_ratio`)."""
    format_weight: float = 0.0
    """a_fmt of eq. 8 (`format_ratio`)."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The verifier's own parameters (`verifier_parm`), JSON values only, null leaves dropped."""
    preset: Preset = "modern"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is asked, and how the answer is rewarded. Pictures stay references."""

    id: str
    """Unique within a run: `<file name>#<row>`."""
    source: str
    """`data_source`: the unit of mixing, of monitoring and of per-source settings."""
    task: str
    """`ability`: math, puzzle, science, chart, detection, grounding, counting, ocr, ..."""
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]
    reward: RewardSpec


class FinishReason(StrEnum):
    """How an answer ended."""

    STOP = "stop"
    """The model ended its answer itself."""
    LENGTH = "length"
    """The answer was cut at the token limit (counted as truncated)."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer."""

    token_ids: np.ndarray
    """(T,) int64, the end token included if it was sampled; no image or video placeholder among them."""
    logprobs: np.ndarray
    """(T,) float32, log-probability of each token under the policy that sampled it."""
    text: str
    finish: FinishReason
    entropy: float
    """Mean entropy in nats of the distributions that the tokens were drawn from."""
    spurious_tokens: int = 0
    """Placeholder tokens that had to be removed from this answer (0 when our own sampler made it)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands when an answer is judged. `step` counts from 0; schedules see step / total_steps."""

    step: int
    total_steps: int
    split: Split


class Status(StrEnum):
    """Whether there is a verdict."""

    SCORED = "scored"
    """The model's answer was judged; the reward is a number, 0 included."""
    UNSCORABLE = "unscorable"
    """This sample can't be judged: gold does not parse, a parameter is invalid."""
    FAILED = "failed"
    """Our side broke: a crash, a lost connection, a deadline of the service."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A value, or the reason why there is none. Only `scored` verdicts enter a group's mean."""

    status: Status
    reward: float | None = None
    """R of eq. 8; None unless scored."""
    accuracy: float | None = None
    """R_acc; None unless scored."""
    format: float | None = None
    """R_fmt; None unless scored."""
    correct: bool | None = None
    """By the verifier's own rule of correctness, which is stricter or looser than accuracy == 1."""
    report: Mapping[str, float] = field(default_factory=dict)
    """What the verifier measured beside the reward, e.g. `iou_50`, `map`."""
    reason: str = ""
    """Why there is no value, or why a scored 0 is one (`cpu limit`, `no answer found`, ...)."""


@dataclass(frozen=True, slots=True)
class Group:
    """A sample with its G answers, all to the same prompt."""

    sample: Sample
    prompt: str
    """The prompt as the model saw it, special tokens and one mark per picture included."""
    prompt_ids: np.ndarray
    """(P,) int64, picture placeholders expanded."""
    image_sizes: tuple[ImageSize, ...]
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """A group with its verdicts and advantages: what the engine learns from and what the monitor reports."""

    group: Group
    verdicts: tuple[Verdict, ...]
    advantages: np.ndarray
    """(G,) float64; 0 where the verdict is not `scored`, which the loss leaves out altogether."""
