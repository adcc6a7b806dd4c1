"""A recipe as overrides of verl's configuration: each with the recipe's field that it comes from and its reason.

Every field of a recipe is in one of four lists: translated here, read by our own modules inside verl (CARRIED), of no
meaning there (IGNORED), or without a counterpart (ONLY_LOCAL): then only its default may stand there. No verl is needed
to make or show them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vtriune.recipe import Recipe
from vtriune.types import UserError

VERSION = "0.9"
MODULES = "vtriune.integrations.verl"

CARRIED: dict[str, str] = {
    "base": "paths of data are relative to it",
    "data.train": "dataset.py reads, checks and mixes them",
    "data.test": "dataset.py reads and checks them",
    "data.prompt_pool": "dataset.py adds the sentences",
    "reward.preset": "goes into each sample's reward",
    "reward.workers": "judge processes of each reward process, of which every node has one",
    "reward.cpu_limit": "reward.py",
    "reward.load": "reward.py",
    "reward.remotes": "reward.py",
    "reward.servers": "reward.py asks them",
    "reward.token_file": "reward.py",
    "reward.deadline": "reward.py",
    "reward.patience": "reward.py",
    "objective.advantage": "trainer.py computes it",
    "evaluation.samples_between": "trainer.py",
    "evaluation.responses_per_prompt": "trainer.py",
    "evaluation.prompts_per_chunk": "trainer.py",
    "tracking.with": "trainer.py opens them",
    "tracking.project": "trainer.py",
    "tracking.name": "trainer.py",
    "engine": "led here",
    "verl.overrides": "appended, the last word",
}
"""What our modules inside verl read from the recipe itself, and where."""

IGNORED: dict[str, str] = {
    "model.picture_cache": "verl runs vision in every forward pass",
    "rollout.cache_tokens": "the sampling engine has its own: actor_rollout_ref.rollout.gpu_memory_utilization",
}
"""What bounds the local engine's memory and changes no result, and why verl needs none of it."""

ONLY_LOCAL: dict[str, str] = {
    "model.plain": "verl has one way of computing",
    "update.max_skipped_in_a_row": "verl skips such steps without an end; they are counted in skipped.jsonl",
    "objective.dynamic_sampling": "verl asks further prompts without a limit of rounds",
    "checkpoint.keep_best": "verl keeps the latest only",
}
"""What verl has no counterpart for, and why or what to use. Refused unless it is the default."""


@dataclass(frozen=True, slots=True)
class Override:
    """One key of verl's configuration."""

    key: str
    value: Any
    """bool, int, float, str, None, or a list or mapping of these."""
    field: str
    """The recipe's field, as section.key; empty: the same in every run."""
    reason: str
    new: bool = False
    """Whether verl's configuration lacks the key, so that Hydra wants a plus sign."""

    @property
    def hydra(self) -> str:
        """As Hydra reads it.

        >>> Override("a.b", ["x'y", None, 1e-06, True], "", "").hydra
        "a.b=['x\\\\'y',null,1e-06,true]"
        """
        return f"{'+' if self.new else ''}{self.key}={_text(self.value)}"


def hydra_overrides(recipe: Recipe, folder: Path) -> list[Override]:
    """All of a recipe.

    Args:
        recipe: with engine verl.
        folder: the run folder, absolute.

    Raises:
        UserError: a field has no counterpart in verl; it names the field and the remedy.
    """
    leaves = dict(recipe_leaves(recipe))
    for name, why in ONLY_LOCAL.items():
        value, default = leaves[name]
        if value != default:
            raise UserError(f"{name}: has no counterpart in verl {VERSION} ({why}); leave it out or use engine=local")
    if isinstance(recipe.update.learning_rate, dict):
        raise UserError(
            f"update.learning_rate: one rate per part has no counterpart in verl {VERSION}; give one number, and "
            "freeze what is not trained"
        )
    return [*_fixed(folder), *_model(recipe), *_sizes(recipe), *_update(recipe), *_objective(recipe), *_run(recipe)]


def recipe_leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Every field that is no section: its path, value and default. An optional section that is absent is one leaf."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from recipe_leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{info.alias or name}", (value, info.get_default(call_default_factory=True))


ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"


def _fixed(folder: Path) -> Iterator[Override]:
    """What makes verl run our modules."""
    for key, value, reason in (
        ("data.custom_cls.path", f"pkg://{MODULES}.dataset", "our samples, mixed by us; pictures stay references"),
        ("data.custom_cls.name", "SampleRows", "the class in it"),
        ("data.train_files", "train", "which split a dataset is: the files are named by the recipe"),
        ("data.val_files", "test", "which split a dataset is"),
        ("data.shuffle", False, "the mixture decides the order"),
        ("data.dataloader_num_workers", 0, "rows are references: nothing to read ahead"),
        ("reward.reward_manager.source", "importlib", "our judge"),
        ("reward.reward_manager.module.path", f"pkg://{MODULES}.reward", "our judge"),
        ("reward.reward_manager.name", "JudgeRewardManager", "our judge"),
        (
            f"{MODEL}.external_lib",
            [f"{MODULES}.engine", f"{MODULES}.agent"],
            "imported in every process: they register",
        ),
        (f"{ROLLOUT}.agent.default_agent_loop", "vtriune", "no placeholder token is ever sampled (paper, section 4)"),
        ("trainer.v1.trainer_mode", "vtriune", "our figures per source, evaluation and run folder"),
        ("trainer.default_local_dir", str(folder / "checkpoints"), "checkpoints lie in the run folder"),
        ("trainer.project_name", "vtriune", "of trackers"),
        ("trainer.experiment_name", folder.name, "of trackers"),
        ("trainer.logger", [], "the run folder and `tracking` have the figures; verl's own: verl.overrides"),
        ("trainer.total_epochs", 1, "our order of rows is as long as the run"),
        ("trainer.val_before_train", True, "gains are shown against the model before training"),
        ("trainer.resume_mode", "auto", "from the last checkpoint in the run folder, if there is one"),
        ("algorithm.adv_estimator", "grpo", "the trainer puts our advantages in its place"),
        ("critic.enable", False, "no critic"),
        ("algorithm.use_kl_in_reward", False, "rewards are verdicts alone"),
        (f"{ACTOR}.strategy", "fsdp2", "the engine that freezing by part is written for"),
        (f"{ACTOR}.checkpoint.save_contents", ["model", "optimizer", "extra"], "all that resuming needs"),
        (f"{ROLLOUT}.mode", "async", "agent loops want it"),
        (f"{ROLLOUT}.calculate_log_probs", True, "they are stored and compared with the trainer's"),
        (f"{ROLLOUT}.top_p", 1.0, "answers come from the policy itself (5.1.2)"),
        (f"{ROLLOUT}.top_k", -1, "answers come from the policy itself"),
        (f"{ROLLOUT}.val_kwargs.top_p", 1.0, "held-out answers, too"),
        (f"{ROLLOUT}.val_kwargs.top_k", -1, "held-out answers, too"),
        (f"{ROLLOUT}.val_kwargs.do_sample", True, "a row asks for greedy decoding itself"),
        (f"{ACTOR}.use_dynamic_bsz", True, "micro-batches by tokens, as update.tokens_per_batch"),
    ):
        yield Override(key, value, "", reason)


def _model(recipe: Recipe) -> Iterator[Override]:
    model = recipe.model
    yield Override(f"{MODEL}.path", model.path, "model.path", "the same folder")
    device = "cpu" if model.device == "cpu" else "cuda"
    yield Override("trainer.device", device, "model.device", "auto is a GPU here")
    kind = {"float32": "fp32", "bfloat16": "bf16"}[model.dtype]
    fsdp = f"{ACTOR}.fsdp_config"
    yield Override(f"{fsdp}.model_dtype", "fp32", "model.dtype", "weights stay float32: bfloat16 rounds updates away")
    yield Override(f"{fsdp}.dtype", model.dtype, "model.dtype", "type of computation")
    mixed = {"param_dtype": kind, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    yield Override(f"{fsdp}.mixed_precision", mixed, "model.dtype", "gradients are summed in float32", new=True)
    yield Override(f"{ROLLOUT}.dtype", model.dtype, "model.dtype", "the sampling engine computes likewise")
    environment = {"VTRIUNE_FREEZE": ",".join(model.freeze)}
    if recipe.threads:
        environment["OMP_NUM_THREADS"] = str(recipe.threads)
    for name, value in environment.items():
        field = "model.freeze" if name == "VTRIUNE_FREEZE" else "threads"
        key = f"ray_kwargs.ray_init.runtime_env.env_vars.{name}"
        yield Override(key, value, field, "reaches every process", new=True)
    for bound in ("min_pixels", "max_pixels"):
        if (pixels := getattr(model, bound)) is not None:
            key = f"data.mm_processor_kwargs.{bound}"
            yield Override(key, pixels, f"model.{bound}", "of the image processor", new=True)
    if model.lora is not None:
        target = "all-linear" if model.lora.target == "all" else model.lora.target
        yield Override(f"{MODEL}.lora_rank", model.lora.rank, "model.lora.rank", "adapters")
        yield Override(f"{MODEL}.lora_alpha", model.lora.alpha, "model.lora.alpha", "scaled by alpha / rank")
        yield Override(f"{MODEL}.target_modules", target, "model.lora.target", "engine.py leaves out frozen parts")
        reason = "the sampling engine is given plain weights, whichever it is and whatever parts have adapters"
        yield Override(f"{MODEL}.lora.merge", True, "model.lora.rank", reason)


def _sizes(recipe: Recipe) -> Iterator[Override]:
    rollout, update, verl = recipe.rollout, recipe.update, recipe.verl
    prompts = rollout.prompts_per_step
    yield Override("trainer.nnodes", verl.nodes, "verl.nodes", "machines")
    yield Override("trainer.n_gpus_per_node", verl.gpus_per_node, "verl.gpus_per_node", "GPUs of each")
    yield Override("reward.num_workers", verl.nodes, "verl.nodes", "one reward process per node")
    tensor = f"{ROLLOUT}.tensor_model_parallel_size"
    yield Override(tensor, verl.tensor_parallel, "verl.tensor_parallel", "GPUs per copy of the model while sampling")
    yield Override(f"{ROLLOUT}.name", verl.rollout, "verl.rollout", "who samples")
    yield Override("data.max_prompt_length", verl.max_prompt_tokens, "verl.max_prompt_tokens", "longer ones fail")
    yield Override("data.train_batch_size", prompts, "rollout.prompts_per_step", "prompts of a step")
    yield Override(f"{ROLLOUT}.n", rollout.responses_per_prompt, "rollout.responses_per_prompt", "G")
    yield Override("data.max_response_length", rollout.max_new_tokens, "rollout.max_new_tokens", "then cut")
    for key in ("temperature", "val_kwargs.temperature"):
        yield Override(f"{ROLLOUT}.{key}", rollout.temperature, "rollout.temperature", "of training and tests")
    mini = update.prompts_per_update or prompts
    reason = "in prompts; equal to a step's is on-policy"
    yield Override(f"{ACTOR}.ppo_mini_batch_size", mini, "update.prompts_per_update", reason)
    tokens = f"{ACTOR}.ppo_max_token_len_per_gpu"
    reason = "here each answer counts with its prompt; one answer must fit"
    longest = verl.max_prompt_tokens + rollout.max_new_tokens
    yield Override(tokens, max(update.tokens_per_batch, longest), "update.tokens_per_batch", reason)
    checkpointing = f"{MODEL}.enable_gradient_checkpointing"
    yield Override(checkpointing, update.gradient_checkpointing, "update.gradient_checkpointing", "memory against time")


def _update(recipe: Recipe) -> Iterator[Override]:
    update, optim = recipe.update, f"{ACTOR}.optim"
    yield Override(f"{optim}.lr", update.learning_rate, "update.learning_rate", "of AdamW")
    yield Override(f"{optim}.lr_warmup_steps_ratio", update.warmup_ratio, "update.warmup_ratio", "share of all steps")
    yield Override(f"{optim}.lr_scheduler_type", "constant", "update.warmup_ratio", "after the warm-up")
    yield Override(f"{optim}.weight_decay", update.weight_decay, "update.weight_decay", "of AdamW")
    yield Override(f"{optim}.betas", list(update.betas), "update.betas", "of AdamW")
    yield Override(f"{optim}.clip_grad", update.max_grad_norm, "update.max_grad_norm", "total norm")
    yield Override(f"{ACTOR}.clip_ratio_low", update.epsilon_low, "update.epsilon_low", "eq. 1")
    yield Override(f"{ACTOR}.clip_ratio_high", update.epsilon_high, "update.epsilon_high", "eq. 1, clip-higher")


def _objective(recipe: Recipe) -> Iterator[Override]:
    objective = recipe.objective
    loss = {"clip": "vanilla", "gspo": "gspo", "cispo": "cispo"}[objective.loss]
    yield Override(f"{ACTOR}.policy_loss.loss_mode", loss, "objective.loss", "verl's name of it")
    # verl always has a dual clip (3.0); ratios don't reach this.
    clip, reason = objective.dual_clip or 1e9, "so large a limit is none"
    yield Override(f"{ACTOR}.clip_ratio_c", clip, "objective.dual_clip", "c" if objective.dual_clip else reason)
    mode = {"tokens": "token-mean", "answers": "seq-mean-token-mean"}.get(
        str(objective.normaliser), "seq-mean-token-sum-norm"
    )
    yield Override(f"{ACTOR}.loss_agg_mode", mode, "objective.normaliser", "what the sum over tokens is divided by")
    if not isinstance(objective.normaliser, str):
        key = f"{ACTOR}.loss_scale_factor"
        yield Override(key, objective.normaliser, "objective.normaliser", "the constant")
    kl = objective.kl_coefficient
    reason = "a reference model is loaded only if there is one"
    yield Override(f"{ACTOR}.use_kl_loss", kl > 0, "objective.kl_coefficient", reason)
    yield Override(f"{ACTOR}.kl_loss_coef", kl, "objective.kl_coefficient", "its weight")
    yield Override(f"{ACTOR}.kl_loss_type", "low_var_kl", "objective.kl_coefficient", "k3, as in the local engine")
    entropy = objective.entropy_coefficient
    yield Override(f"{ACTOR}.entropy_coeff", entropy, "objective.entropy_coefficient", "taken off the loss")
    weigh = objective.truncated_is
    key = "algorithm.rollout_correction"
    reason = "null: pi_old is recomputed by the trainer and the sampler's log-probs are only compared with it"
    yield Override(f"{key}.rollout_is", "token" if weigh else None, "objective.truncated_is", reason)
    if weigh:
        yield Override(f"{key}.rollout_is_threshold", weigh, "objective.truncated_is", "most that a token may weigh")


def _run(recipe: Recipe) -> Iterator[Override]:
    steps, checkpoint = recipe.steps, recipe.checkpoint
    yield Override("trainer.total_training_steps", steps, "steps", "training steps")
    for key in ("data.seed", f"{ROLLOUT}.seed", f"{ACTOR}.data_loader_seed", f"{ACTOR}.fsdp_config.seed"):
        yield Override(key, recipe.seed, "seed", "the agent loop seeds each answer, too")
    every = recipe.evaluation.every or steps
    yield Override("trainer.test_freq", every, "evaluation.every", "there is always one at the end")
    yield Override("trainer.save_freq", checkpoint.every, "checkpoint.every", "there is always one at the end")
    yield Override("trainer.max_actor_ckpt_to_keep", checkpoint.keep, "checkpoint.keep", "the latest")


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(one) for one in value) + "]"
    # Hydra ends a quoted text at the next quote; backslashes matter to it only before a quote, the last one too.
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value)).replace("'", r"\'")
    return f"'{text}'"
