"""Starts a run on verl: our overrides on verl's configuration, our modules in its processes, verl's own `run_ppo`.

It is what `vtriune train RECIPE engine=verl` calls.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
import torch
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text
from verl.trainer import main_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device, get_device_name
from verl.workers.rollout.base import _ROLLOUT_REGISTRY

from vtriune.integrations.verl.checkpoints import check_shards, find_checkpoint
from vtriune.integrations.verl.dataset import read_data
from vtriune.integrations.verl.overrides import Override, hydra_overrides
from vtriune.integrations.verl.reasons import cause_of, reason_of
from vtriune.integrations.verl.settings import KEY, Settings
from vtriune.local.model import check_folder
from vtriune.monitor.files import is_locked
from vtriune.monitor.rollouts import read_evaluation
from vtriune.monitor.runs import latest_rows, read_run_file, rollout_file
from vtriune.monitor.store import check_vacant
from vtriune.monitor.table import before_after_table, plain
from vtriune.monitor.trackers.base import check_installed
from vtriune.recipe import Recipe
from vtriune.session import STOP_FILE, Interrupted, polite_interrupt
from vtriune.types import UserError


class TaskRunner(main_ppo.TaskRunnerV1.__ray_metadata__.modified_class):  # type: ignore[misc]
    """verl's, with our trainer registered in its process."""

    def run(self, config: DictConfig) -> None:
        """Raises RuntimeError if verl would use another trainer."""
        from verl.trainer.ppo.v1 import get_trainer_cls  # noqa: PLC0415

        from vtriune.integrations.verl.trainer import TRAINER, SourceTrainer  # noqa: PLC0415 - registers it

        if config.trainer.v1.trainer_mode != TRAINER or get_trainer_cls(TRAINER) is not SourceTrainer:
            raise RuntimeError(f"verl would use the trainer {config.trainer.v1.trainer_mode}, which is not ours")
        super().run(config)


def train(recipe: Recipe, folder: Path, console: Console, *, resume: bool = False, replace: bool = False) -> None:
    """Run a recipe on verl from start to end, or go on from the last checkpoint in `folder`.

    Raises:
        UserError: the recipe can't be translated, verl refuses the configuration, model, data, folder or machine can't
            be used; or the run broke down, of which the worker's traceback is printed before.
        Interrupted: Ctrl-C; the run can be resumed.
        KeyboardInterrupt: a second Ctrl-C, or one before the run has started.
    """
    if resume:
        checkpoint = find_checkpoint(folder / "checkpoints")
        if read_run_file(folder).state == "finished" and checkpoint.name == f"global_step_{recipe.steps}":
            _tell(recipe, folder, console)
            return
        check_shards(checkpoint, recipe.verl.nodes * recipe.verl.gpus_per_node)
    elif not replace:
        check_vacant(folder)
    check_installed(recipe.tracking)
    check_folder(recipe.model.path)
    settings = Settings(recipe, folder.resolve(), replace and not resume)
    config = compose_config(settings)
    if not resume:
        with open_dict(config):
            config.trainer.resume_mode = "disable"  # checkpoints of an earlier run may lie there until it is replaced
    check_machines(recipe, config.ray_kwargs.ray_init.get("address"))
    with console.status("Reading and checking the data"):
        read_data(config.data[KEY]["recipe"])  # the TaskRunner does so again, but only after Ray has started
    stop = folder / STOP_FILE

    def ask_to_stop() -> None:
        if not is_locked(folder):  # nothing has begun that could be lost
            raise KeyboardInterrupt
        stop.touch()

    stop.unlink(missing_ok=True)
    try:
        with polite_interrupt(console, ask_to_stop):
            main_ppo.run_ppo(config, task_runner_class=ray.remote(TaskRunner))
    except ray.exceptions.RayError as error:  # before the others: it is also of its cause's type
        if isinstance(cause_of(error), UserError):
            raise UserError(reason_of(error)) from error
        for line in Text.from_ansi(str(error)).plain.splitlines():
            console.print(plain(line), soft_wrap=True)
        again = f"; go on from its last checkpoint: vtriune train --resume {folder}" if folder.exists() else ""
        raise UserError(f"the run broke down: {reason_of(error)} (its traceback stands above){again}") from error
    except (ConnectionError, ValueError) as error:
        if ray.is_initialized():  # then it isn't that Ray could not be reached
            raise
        said = " ".join(str(error).split())
        raise UserError(
            f"RAY_ADDRESS: Ray can't be used ({said}); start it (docs/cluster.md), unset it for this machine alone, or "
            "correct verl.overrides"
        ) from error
    finally:
        ray.shutdown()
        stop.unlink(missing_ok=True)
    if read_run_file(folder).state == "stopped":
        done = next(row["step"] for row in latest_rows(folder, "train"))
        raise Interrupted(f"Stopped after step {done}. Go on: vtriune train --resume {folder}")
    _tell(recipe, folder, console)


def _tell(recipe: Recipe, folder: Path, console: Console) -> None:
    """What a finished run reached."""
    before, after = (read_evaluation(rollout_file(folder, "eval", done)) for done in (0, recipe.steps))
    console.print(before_after_table(before, after))
    console.print(plain(f"{recipe.steps} steps. Look closer: vtriune runs show {folder}"), soft_wrap=True)


def check_machines(recipe: Recipe, address: str | None) -> None:
    """Tell what this machine lacks, before Ray is started on it. Of another cluster's machines Ray tells it.

    Raises:
        UserError: the sampling engine is unknown or not installed, or this machine is alone and has fewer GPUs than are
            asked for.
    """
    verl = recipe.verl
    if verl.rollout not in (known := sorted(name for name, mode in _ROLLOUT_REGISTRY if mode == "async")):
        raise UserError(f"verl.rollout: verl has no sampling engine {verl.rollout}; take one of {', '.join(known)}")
    if verl.rollout in ("vllm", "sglang") and find_spec(verl.rollout) is None:
        raise UserError(
            f"verl.rollout: {verl.rollout} is not installed here; pip install 'verl[{verl.rollout}]==0.9.1'"
        )
    if recipe.model.device == "cpu" and get_device_name() != "cpu":
        raise UserError("model.device: verl has no CPU platform of its own; use engine=local, or a machine with GPUs")
    if recipe.model.device == "cpu" or address or os.environ.get("RAY_ADDRESS"):
        return
    cluster = "start Ray on the machines that have them and set RAY_ADDRESS=auto (docs/cluster.md)"
    if verl.nodes > 1:
        raise UserError(f"verl.nodes: {verl.nodes} machines are asked for, but no cluster is named; {cluster}")
    if (found := torch.cuda.device_count()) < verl.gpus_per_node:
        raise UserError(
            f"verl.gpus_per_node: {verl.gpus_per_node} GPUs are asked for, but torch sees {found} on this machine; "
            + (f"lower it, or {cluster}" if found else cluster)
        )


def compose_config(settings: Settings) -> DictConfig:
    """verl's configuration with our overrides, then the user's, checked by verl.

    Raises:
        UserError: a key is unknown to verl, a value is refused, or the user's overrides undo what ours need.
    """
    recipe = settings.recipe
    ours = hydra_overrides(recipe, settings.folder)
    texts = [one.hydra for one in ours]
    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides=[*texts, *recipe.verl.overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"verl.overrides: {' '.join(str(error).split())}") from error
    _check_ours(config, ours)
    with open_dict(config):
        config.data[KEY] = settings.encode()
    try:
        auto_set_device(config)
        with redirect_stdout(io.StringIO()):  # it says that all is well
            validate_config(
                config=config,
                use_reference_policy=need_reference_policy(config),
                use_critic=need_critic(config),
            )
    except (AssertionError, ValueError, HydraException) as error:
        raise UserError(f"verl refuses this recipe: {' '.join(str(error).split())}") from error
    gpus, share = config.trainer.nnodes * config.trainer.n_gpus_per_node, recipe.verl.tensor_parallel
    if gpus % share:
        raise UserError(f"verl.tensor_parallel: {gpus} GPUs can't be divided into groups of {share}; take a divisor")
    actor = config.actor_rollout_ref.actor
    ranks = max(1, gpus // actor.fsdp_config.ulysses_sequence_parallel_size)
    answers = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    if answers % ranks:  # verl finds out only once it has sampled
        raise UserError(
            f"update.prompts_per_update: the {answers} answers of an optimizer step ({actor.ppo_mini_batch_size} "
            f"prompts x rollout.responses_per_prompt) can't be divided among {ranks} GPUs; change one of them"
        )
    return config


def _check_ours(config: DictConfig, ours: list[Override]) -> None:
    """What is the same in every run makes verl use our modules: the user's overrides may add to it, not undo it."""
    free = {
        "trainer.logger",
        "trainer.project_name",
        "trainer.experiment_name",
        "actor_rollout_ref.actor.checkpoint.save_contents",
        "actor_rollout_ref.actor.use_dynamic_bsz",
    }
    for one in ours:
        if one.field or one.key in free:
            continue
        found: Any = OmegaConf.select(config, one.key)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        if found != one.value:
            raise UserError(f"verl.overrides: {one.key} must stay {one.value!r} ({one.reason}); leave it out")
