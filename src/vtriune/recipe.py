"""The typed recipe: one YAML file that says all of a run. Components own their sections; cross-field rules are here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vtriune.data.sources import SourceConfig, mixture_weights
from vtriune.grpo.objective import ObjectiveConfig
from vtriune.integrations.verl.config import VerlConfig
from vtriune.local.model import ModelConfig
from vtriune.local.parts import PARTS
from vtriune.local.rollout import RolloutConfig
from vtriune.local.update import UpdateConfig
from vtriune.types import Preset, UserError


class DataConfig(BaseModel):
    """What is asked."""

    model_config = ConfigDict(extra="forbid")

    train: list[SourceConfig] = Field(description="Training sources, mixed by their weights.", min_length=1)
    test: list[SourceConfig] = Field(description="Held-out sources.", min_length=1)
    prompt_pool: bool = Field(
        True, description="Add one of 10 x 10 instruction pairs to math-verified prompts; tests always get the first."
    )


class RewardConfig(BaseModel):
    """How answers are judged."""

    model_config = ConfigDict(extra="forbid")

    preset: Preset = Field("modern", description="Definition of the rewards: paper, official_code or modern.")
    workers: int = Field(2, ge=1, description="Judge processes.")
    cpu_limit: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="Seconds of CPU time per answer; beyond it the answer scores 0."
    )
    load: list[str] = Field([], description="Verifiers of your own, as module:function (docs/own_verifier.md).")
    remotes: dict[str, str] = Field({}, description="Names and URLs of services that the verifier `remote` may ask.")
    servers: list[str] = Field(
        [], description="URLs of reward servers (`vtriune serve`); empty: judge on this machine, with the keys above."
    )
    token_file: Path | None = Field(None, description="File with the token that the servers want.")
    deadline: float = Field(
        600, gt=0, allow_inf_nan=False, description="Seconds that servers have for a group, all repetitions included."
    )
    patience: float = Field(
        150,
        gt=0,
        allow_inf_nan=False,
        description="Seconds to wait for one reply before another server is asked; more than the servers' --deadline.",
    )

    @model_validator(mode="after")
    def _here_or_there(self) -> Self:
        for key in ("workers", "cpu_limit", "load", "remotes"):
            # What is only the default may stand there: a run keeps its recipe with every key.
            if self.servers and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"reward.{key}: the servers judge; leave it out and start them with it (vtriune serve)"
                )
        if self.token_file and not self.servers:
            raise ValueError("reward.token_file: is for reward.servers; add them or leave it out")
        return self


class EvaluationConfig(BaseModel):
    """Held-out evaluation: before training, every so many steps and after it; greedy and sampled."""

    model_config = ConfigDict(extra="forbid")

    every: int | None = Field(None, ge=1, description="Steps between evaluations; null: only before and after.")
    samples_between: int | None = Field(
        None, ge=1, description="Prompts per source of the evaluations in between; null: all of them."
    )
    responses_per_prompt: int = Field(8, ge=1, description="Answers sampled per prompt, beside the greedy one.")
    prompts_per_chunk: int = Field(128, ge=1, description="Prompts evaluated at a time; bounds memory.")


class CheckpointConfig(BaseModel):
    """When the run can be resumed from."""

    model_config = ConfigDict(extra="forbid")

    every: int = Field(50, ge=1, description="Steps between checkpoints; there is always one at the end.")
    keep: int = Field(2, ge=1, description="How many of the latest are kept.")
    keep_best: bool = Field(
        False,
        description="Keep that of the best evaluation, too: the highest mean over tasks of sampled held-out scores. "
        "Two evaluations are compared on the prompts that both asked.",
    )


class Recipe(BaseModel):
    """All of a run. Relative paths start from `base`."""

    model_config = ConfigDict(extra="forbid")

    base: Path = Field(description="Folder that relative paths start from; default: the folder of the recipe.")
    seed: int = Field(0, ge=0, description="Of mixing, prompt pool and sampling.")
    steps: int = Field(ge=1, description="Training steps: each samples one batch of prompts and learns from it.")
    threads: int | None = Field(None, ge=1, description="CPU threads of the engine; null: torch decides.")
    engine: Literal["local", "verl"] = Field(
        "local", description="local: one process, one device; verl: distributed, needs the extra `verl`."
    )
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    update: UpdateConfig = UpdateConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    verl: VerlConfig = Field(VerlConfig(), description="Of engine verl only.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        path = (self.base / Path(self.model.path).expanduser()).resolve()
        self.model = self.model.model_copy(update={"path": str(path)})
        if self.reward.token_file:
            token_file = (self.base / self.reward.token_file.expanduser()).resolve()
            self.reward = self.reward.model_copy(update={"token_file": token_file})
        rates, frozen = self.update.learning_rate, self.model.freeze
        if isinstance(rates, dict):
            for part in PARTS:
                if part in rates and part in frozen:
                    raise ValueError(
                        f"update.learning_rate: {part} has a rate but is frozen; take it out of model.freeze or here"
                    )
                if part not in rates and part not in frozen:
                    raise ValueError(
                        f"update.learning_rate: {part} is trained but has no rate; give it one, or freeze it"
                    )
        per_update = self.update.prompts_per_update
        if per_update is not None and per_update > self.rollout.prompts_per_step:
            raise ValueError(
                f"update.prompts_per_update: {per_update} is more than a step samples; "
                f"lower it to rollout.prompts_per_step ({self.rollout.prompts_per_step}) or leave it out"
            )
        limits = {"epsilon_low", "epsilon_high"}
        if self.objective.loss == "gspo" and not limits <= self.update.model_fields_set:
            raise ValueError(
                "objective.loss: gspo clips ratios of whole answers, which hardly move, so limits for tokens are never "
                "met; set update.epsilon_low and update.epsilon_high (3e-4 and 4e-4 in its paper)"
            )
        least, most = self.model.min_pixels, self.model.max_pixels
        if least is not None and most is not None and least > most:
            raise ValueError(f"model.min_pixels: {least} is more than model.max_pixels ({most}); lower it")
        try:
            mixture_weights(self.data.train)
        except UserError as error:
            raise ValueError(f"data.train: {error}") from error
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides, whose values are YAML.

    Raises:
        UserError: the file is missing or no YAML; a key is unknown or its value invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); give the path of a recipe") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, an endless number
        raise UserError(f"{path}: is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys; see recipes/ for examples")
    for override in overrides:
        _override(fields, override)
    base = fields.get("base", ".")
    if isinstance(base, str):
        fields["base"] = str((path.parent / Path(base).expanduser()).resolve())
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {_explain(problem)}" for problem in error.errors())) from error


def _override(fields: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not all(name.split(".")):
        raise UserError(f'"{override}": write overrides as section.key=value, e.g. rollout.temperature=0.9')
    *sections, key = name.split(".")
    for section in sections:
        if fields.get(section) is None:  # missing, or without any key
            fields[section] = {}
        fields = fields[section]
        if not isinstance(fields, dict):
            raise UserError(f'"{override}": {section} is no section; lists are changed in the file')
    try:
        fields[key] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f'"{override}": the value is not YAML: {error}') from error


def _explain(problem: Any) -> str:
    # Beside keys and positions, pydantic names the alternative of a union that it tried, e.g. `dict[str,float]`.
    parts = [str(part) for part in problem["loc"]]
    where = ".".join(part for part in parts if part != "constrained-float" and "[" not in part)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: is missing; add it"
    if problem["type"] == "model_type":
        return f"{where}: is a section of keys, not {problem['input']!r}; write keys below it, or leave it out"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{where}: {problem['msg']}, not {problem['input']!r}"


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """Keys of the section at `location`, by walking the models as pydantic did."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = getattr(annotation, "__args__", (annotation,))
            model = next(kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
