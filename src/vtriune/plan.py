"""What a recipe needs, on paper, and what won't fit: problems with their remedies, notes.

Without torch, as the formulas (plan_formulas.py). plan_page.py prints it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vtriune.plan_formulas import GIB, USABLE, Load, Machines, Paper
from vtriune.shapes import BUILT_IN, Shape, read_shape
from vtriune.types import UserError

if TYPE_CHECKING:  # the recipe's sections stand beside the engine, which imports torch
    from vtriune.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known on paper. Bytes, unless said otherwise."""

    engine: str
    model: str
    parameters: dict[str, int]
    trained: dict[str, int]
    """Per part; with LoRA its adapters."""
    training: dict[str, float]
    training_total: float
    sampling: dict[str, float]
    sampling_total: float
    limit: float
    """What a GPU may hold."""
    kv_bytes_per_token: float
    """On one GPU."""
    kv_tokens: int
    """That fit, per sampling engine."""
    split: dict[str, float]
    host: dict[str, float]
    """On each node."""
    rewards: dict[str, float]
    problems: list[str] = field(default_factory=list)
    """What won't work, each with its remedy."""
    notes: list[str] = field(default_factory=list)
    """What may make it otherwise than planned."""

    @property
    def fits(self) -> bool:
        """Nothing is known that won't work."""
        return not self.problems


def make_plan(recipe: Recipe, shape: Shape, machines: Machines, load: Load, model: str = "") -> Plan:
    """The plan of a recipe: of FSDP2 and a sampling engine with engine verl or several GPUs, else of the local engine.

    Raises:
        UserError: the GPUs can't be divided so.
    """
    _check(shape, machines)
    paper = Paper(recipe, shape, machines, load)
    local = paper.local
    training = paper.local_training() if local else paper.training()
    kv = paper.local_kv() if local else paper.kv()
    room, sampling = paper.local_sampling() if local else paper.sampling()
    plan = Plan(
        engine="local" if local else "cluster",
        model=model,
        parameters=shape.parameters,
        trained=paper.trained,
        training=training.parts,
        training_total=training.total,
        sampling=sampling.parts,
        sampling_total=sampling.total,
        limit=machines.memory * GIB * USABLE,
        kv_bytes_per_token=kv,
        kv_tokens=int(room // kv) if room > 0 else 0,
        split={},
        host=paper.host(),
        rewards=paper.rewards(),
    )
    plan.split.update(paper.split(plan.kv_tokens))
    plan.problems.extend(_problems(paper, plan))
    plan.notes.extend(_notes(paper))
    return plan


def find_shape(folder: str, config: str | None) -> tuple[str, Shape]:
    """What the model is called, and its shape: of `config` if given, else of the model's folder.

    Where that folder is missing, its name may be that of a built-in shape, e.g. models/Qwen2.5-VL-7B-Instruct.

    Raises:
        UserError: neither is there, or it can't be read.
    """
    if config is not None:
        return config, read_shape(config)
    file = Path(folder) / "config.json"
    if file.is_file():
        return folder, read_shape(file)
    for name in BUILT_IN:
        if Path(folder).name.lower().startswith(name):
            return f"{name} (its public numbers; {folder} is missing)", read_shape(name)
    raise UserError(
        f"model.path: {folder} has no config.json; put the model there, or give --model-config FILE or one of "
        f"{', '.join(BUILT_IN)}"
    )


def machines_of(
    recipe: Recipe, memory: float, *, share: float, gpus: int | None, nodes: int | None, tensor_parallel: int | None
) -> Machines:
    """The GPUs that a recipe asks for, `memory` GiB each; what is given goes before what it says."""
    verl = recipe.verl
    own = verl.nodes * verl.gpus_per_node if recipe.engine == "verl" else 1
    if nodes is None and recipe.engine == "verl" and gpus in (None, own):
        nodes = verl.nodes
    return Machines(gpus or own, memory, nodes, tensor_parallel or verl.tensor_parallel, share)


def _check(shape: Shape, machines: Machines) -> None:
    gpus, share = machines.gpus, machines.tensor_parallel
    if gpus % share:
        raise UserError(f"--tensor-parallel: {gpus} GPUs can't be divided into groups of {share}; take a divisor")
    if shape.heads % share:
        raise UserError(f"--tensor-parallel: {shape.heads} attention heads can't be divided by {share}; take a divisor")
    if gpus % machines.hosts:
        raise UserError(f"--nodes: {gpus} GPUs can't be divided among {machines.hosts} nodes; take a divisor")


def _problems(paper: Paper, plan: Plan) -> list[str]:
    """What won't work, each with its remedy."""
    recipe, machines, shape = paper.recipe, paper.machines, paper.shape
    local = paper.local
    found = []
    if plan.training_total > plan.limit:
        found.append(
            f"training needs {plan.training_total / GIB:.1f} GiB on a GPU, {plan.limit / GIB:.1f} may be filled: "
            + _training_remedy(paper, plan.limit)
        )
    if local and plan.sampling_total > plan.limit:
        found.append(
            f"sampling needs {plan.sampling_total / GIB:.1f} GiB, {plan.limit / GIB:.1f} may be filled: "
            "lower rollout.cache_tokens"
        )
    if not local:
        one = paper.prompt + paper.answer
        if plan.kv_tokens < one:
            found.append(
                f"a sampling engine has room for {plan.kv_tokens} tokens, one answer with its prompt has up to {one}: "
                "raise verl.tensor_parallel or --sampling-share (actor_rollout_ref.rollout.gpu_memory_utilization)"
            )
        elif plan.sampling_total > machines.memory * GIB * 0.95:
            found.append(
                f"sampling and the shards of training beside it need {plan.sampling_total / GIB:.1f} of "
                f"{machines.memory:.1f} GiB: lower --sampling-share, or have weights and optimizer moved to the host "
                "while answers are sampled (verl.overrides: actor_rollout_ref.actor.fsdp_config.param_offload=true and "
                "optimizer_offload=true)"
            )
        if paper.per_update * paper.group % machines.gpus:
            found.append(
                f"{paper.per_update} prompts x {paper.group} answers of an optimizer step can't be divided among "
                f"{machines.gpus} GPUs: change rollout.prompts_per_step, update.prompts_per_update or --gpus"
            )
        if paper.prompt > recipe.verl.max_prompt_tokens:
            found.append(
                f"a prompt is taken to have {paper.prompt} tokens (--text-tokens and --picture-tokens), but "
                f"verl.max_prompt_tokens is {recipe.verl.max_prompt_tokens}: give its real ones, or raise it"
            )
    if recipe.rollout.prompts_per_step % paper.per_update and not local:
        found.append(
            f"rollout.prompts_per_step ({recipe.rollout.prompts_per_step}) is no multiple of update.prompts_per_update "
            f"({paper.per_update}): make it one"
        )
    if paper.prompt + paper.answer > shape.context:
        found.append(
            f"prompt and answer have up to {paper.prompt + paper.answer} tokens, the model's context has "
            f"{shape.context}: lower rollout.max_new_tokens or model.max_pixels"
        )
    return found


def _notes(paper: Paper) -> list[str]:
    """What may make it otherwise than planned."""
    recipe, shape, found = paper.recipe, paper.shape, []
    if recipe.model.max_pixels is None:
        found.append(
            "model.max_pixels is not set: the processor's own limit holds, up to 16384 tokens a picture in "
            "Qwen2.5-VL; set it so that no prompt is longer than planned here"
        )
    else:
        most = recipe.model.max_pixels // (shape.patch * shape.merge) ** 2
        if most > paper.load.picture_tokens:
            found.append(
                f"model.max_pixels allows {most} tokens a picture, planned are {paper.load.picture_tokens} a prompt: "
                "lower it, or plan with --picture-tokens"
            )
    return found


def _training_remedy(paper: Paper, limit: float) -> str:
    """The least change that fits."""
    local = paper.local

    def fits(changed: Paper) -> bool:
        return (changed.local_training() if local else changed.training()).total <= limit

    least = paper.prompt + paper.answer * paper.group if local else paper.most
    checkpointed, small = replace(paper, recompute=True), replace(paper, budget=least)
    ways: list[tuple[str, Callable[[], bool]]] = [
        ("set update.gradient_checkpointing: true", lambda: not paper.checkpointing and fits(checkpointed)),
        (f"lower update.tokens_per_batch to {least}", lambda: paper.tokens > least and fits(small)),
        (
            f"set update.gradient_checkpointing: true and update.tokens_per_batch: {least}",
            lambda: fits(replace(checkpointed, budget=least)),
        ),
    ]
    for remedy, works in ways:
        if works():
            return remedy
    if not local:
        for gpus in (paper.machines.gpus * 2**k for k in range(1, 8)):
            machines = replace(paper.machines, gpus=gpus, nodes=None)
            if fits(replace(checkpointed, budget=least, machines=machines)):
                return (
                    f"with gradient checkpointing and update.tokens_per_batch: {least} it fits on {gpus} GPUs; or "
                    "train adapters (model.lora)"
                )
    return "train adapters (model.lora), take a smaller model or GPUs with more memory"
