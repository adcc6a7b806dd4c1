"""The released reward server's protocol, so that the released training script and client use ours unchanged.

How its payload reads as an item, and how a verdict reads as its answer. Rewards are the judge's.

Source: github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server and verl/workers/reward_manager.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from vtriune.reward.api import Count, Name
from vtriune.reward.judge import MAX_PARAMETERS, JudgeItem
from vtriune.types import ImageSize, Preset, Progress, RewardSpec, UserError, Verdict
from vtriune.verifiers.released_detection import RELEASED_FIGURES, DetRewardRatio

GREETING = {"message": "Reward Judge Server"}
"""What `GET /` answers; the released client looks for it."""

DEFAULT_FORMAT_RATIO = 0.1

SILENT_ZERO = {"rewards": dict.fromkeys(("format_reward", "accuracy_reward", "reflection_reward", "final_reward"), 0.0)}
"""What the released server answers when anything at all goes wrong."""

_CONTEXT = ("is_training", "step", "total_steps", "image_grid_thw", "image_path", "verifier_style")
"""Keys of reward_verifier_parm that are no parameters of the verifier."""

_DETECTION = ("det_verifier_normalized", "det_reward_ratio")
"""Keys that every row of the released data has, whatever its verifier."""

_MARK = "released."
"""What the detection verifier reports for the released server's answer has a name that begins so."""

MAX_DEPTH = 16
"""Objects within objects in reward_verifier_parm."""


MAX_VALUES = 4096
"""Values in a payload, those of fields that are passed over included."""


class Payload(BaseModel):
    """One answer to be judged, field for field as the released client sends it."""

    model_config = ConfigDict(strict=True)

    response: str
    prompt: str
    answer: str | None = None
    solution: str
    data_source: Name
    reward_verifier: Name
    reward_verifier_parm: Annotated[str, Field(max_length=MAX_PARAMETERS)]
    format_ratio: FiniteFloat | None = None
    accuracy_ratio: FiniteFloat | None = None
    response_tokens: Count | None = Field(
        None, description="Length of the answer in tokens. The released client doesn't send it; ours to add."
    )


class Answer(BaseModel):
    """`final_reward` and its parts; for detection with all that the released server tells of the boxes."""

    rewards: dict[str, float]


def read(payload: Payload, preset: Preset) -> JudgeItem:
    """The payload as an item.

    Raises:
        UserError: reward_verifier_parm can't be made sense of, where the released server answers a silent 0.
    """
    try:
        parm = orjson.loads(payload.reward_verifier_parm)
    except orjson.JSONDecodeError as error:
        raise UserError(f"reward_verifier_parm: is not JSON ({error})") from error
    if not isinstance(parm, dict):
        raise UserError("reward_verifier_parm: is no JSON object")
    step: Any = parm.get("step")
    total_steps: Any = parm.get("total_steps")
    training = parm.get("is_training")
    if not (_is_whole(step) and _is_whole(total_steps)) or total_steps == 0:
        raise UserError(
            f"reward_verifier_parm: step and total_steps must be whole numbers, not {step!r}, {total_steps!r}"
        )
    if not isinstance(training, bool):
        raise UserError(f"reward_verifier_parm: is_training must be true or false, not {training!r}")
    foreign = _CONTEXT if payload.reward_verifier == "detection" else _CONTEXT + _DETECTION
    parameters = _without_nulls({key: value for key, value in parm.items() if key not in foreign})
    # What mathematics comes with a picture does not need its size, which the released server looks at for boxes only.
    sizes = () if payload.reward_verifier == "mathverify" else _sizes(parm.get("image_grid_thw"))
    if preset == "official_code" and payload.reward_verifier == "detection":
        parameters = _as_released(parameters, step / total_steps)
        progress = Progress(0, 1, "train")  # the threshold is settled
    else:
        # The released trainer counts steps from 1.
        progress = Progress(max(step - 1, 0), total_steps, "train" if training else "test")
    spec = RewardSpec(
        payload.reward_verifier,
        payload.solution,
        1.0 if payload.accuracy_ratio is None else payload.accuracy_ratio,
        DEFAULT_FORMAT_RATIO if payload.format_ratio is None else payload.format_ratio,
        parameters,
        preset,
    )
    return JudgeItem(payload.response, spec, progress, sizes, payload.response_tokens, payload.data_source)


def write(item: JudgeItem, verdict: Verdict) -> dict[str, Any]:
    """A scored verdict as the released server answers it; of other presets with their own report.

    >>> from vtriune.types import Status
    >>> item = JudgeItem("", RewardSpec("mathverify", "4", preset="official_code"), Progress(0, 1, "test"))
    >>> verdict = Verdict(Status.SCORED, reward=0.5, accuracy=1.0, format=0.0, correct=True)
    >>> write(item, verdict)
    {'rewards': {'format_reward': 0.0, 'accuracy_reward': 1.0, 'reflection_reward': 0.0, 'final_reward': 0.5}}
    """
    rewards: dict[str, Any] = {
        "format_reward": verdict.format,
        "accuracy_reward": verdict.accuracy,
        "reflection_reward": 0.0,
        "final_reward": verdict.reward,
    }
    if item.spec.preset != "official_code":
        figures = verdict.report
    elif item.spec.verifier == "detection":
        # An answer that exhausts its verifier has no report, and the released trainer averages what it is told.
        told = {name.removeprefix(_MARK): value for name, value in verdict.report.items() if name.startswith(_MARK)}
        figures = told or dict.fromkeys(RELEASED_FIGURES, 0.0)
    else:
        figures = {}
    return {"rewards": rewards | {f"{name}_reward": value for name, value in figures.items()}}


def _as_released(parameters: dict[str, Any], done: float) -> dict[str, Any]:
    """Detection's parameters with what the released server makes of them: its threshold and its weights.

    Its threshold goes by the progress of training for every answer, test or not; a weight outside 0..1 counts as 0, and
    one that it does not know not at all.
    """
    eps = 0.85 if done <= 0.1 else 0.95 if done <= 0.25 else 0.99
    parameters = {"iou_threshold": eps} | parameters | {"released_report": True}
    parameters["eval_iou_threshold"] = parameters["iou_threshold"]
    ratio = parameters.get("det_reward_ratio")
    if isinstance(ratio, dict):
        parameters["det_reward_ratio"] = {
            key: 0.0 if _is_number(value) and not 0 <= value <= 1 else value
            for key, value in ratio.items()
            if key in DetRewardRatio.model_fields
        }
    return parameters


def _sizes(grids: Any) -> tuple[ImageSize, ...]:
    """Sizes of pictures from [[t, height, width], ...] in pixels."""
    if grids is None:
        return ()
    sizes = []
    for grid in grids if isinstance(grids, list) else [None]:
        if not (isinstance(grid, list) and len(grid) == 3 and all(_is_whole(side) for side in grid)):
            raise UserError("reward_verifier_parm: image_grid_thw must be a list of [t, height, width] in pixels")
        size = grid[2], grid[1]
        if min(size) <= 0:
            raise UserError(f"reward_verifier_parm: image_grid_thw has a picture without an area: {grid}")
        sizes.append(ImageSize(size, size))
    return tuple(sizes)


def _without_nulls(value: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """Drop null leaves, and objects of nothing but nulls: Parquet has no other way to leave a leaf out."""
    if depth > MAX_DEPTH:
        raise UserError(f"reward_verifier_parm: is nested deeper than {MAX_DEPTH} objects")
    kept = {name: _without_nulls(one, depth + 1) if isinstance(one, dict) else one for name, one in value.items()}
    return {name: one for name, one in kept.items() if one is not None and (one != {} or value[name] == {})}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
