"""verl's checkpoints of a run: which there are, and one as an ordinary transformers folder. Needs no verl.

checkpoints/latest_checkpointed_iteration.txt      the newest that is complete
checkpoints/global_step_50/actor/                  fsdp_config.json, model_world_size_8_rank_0.pt and so on, and
checkpoints/global_step_50/actor/huggingface/      configuration, tokenizer and processor
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard  # makes torch.load know them
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from vtriune.local.export import copy_files, new_folder
from vtriune.local.lora import LoraConfig
from vtriune.types import UserError

NEWEST = "latest_checkpointed_iteration.txt"
ADAPTER = ".lora_{}.default.weight"
"""What peft adds to a layer's name, for the matrices A and B."""


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """`global_step_<n>` of a step, or the newest one.

    Raises:
        UserError: there is no such one, and it names those that there are; or the note of the newest is damaged.
    """
    newest = folder / NEWEST
    # What is newer than that file says was being written when the run was killed.
    try:
        last = int(newest.read_text()) if newest.is_file() else -1
    except ValueError as error:
        raise UserError(f"{newest}: holds no number; write that of the newest whole checkpoint into it") from error
    found = {int(path.parts[-2].rpartition("_")[2]): path.parent for path in folder.glob("global_step_*/actor")}
    found = {number: found[number] for number in sorted(found) if number <= last}
    if not found:
        raise UserError(
            f"{folder}: holds no checkpoint, so this run can't be resumed or exported; start it again with --replace"
        )
    if step is None:
        step = max(found)
    if step not in found:
        raise UserError(f"{folder}: holds no global_step_{step}; there are {', '.join(p.name for p in found.values())}")
    return found[step]


def check_shards(checkpoint: Path, ranks: int) -> None:
    """Raise UserError unless `ranks` ranks can go on from a checkpoint, before they are started."""
    actor = checkpoint / "actor"
    try:
        world = int(json.loads((actor / "fsdp_config.json").read_text())["world_size"])
    except (OSError, KeyError, ValueError) as error:
        raise damaged(actor, error) from error
    if world != ranks:
        raise UserError(
            f"{actor}: was written by {world} GPUs, but verl.nodes x verl.gpus_per_node is {ranks}; give as many as "
            "before"
        )
    kinds = ("model", "optim", "extra_state")
    names = [f"{kind}_world_size_{world}_rank_{rank}.pt" for kind in kinds for rank in range(world)]
    if missing := [name for name in names if not (actor / name).is_file()]:
        raise UserError(
            f"{actor}: lacks {missing[0]}; bring it back, or write the number of an older checkpoint into {NEWEST}"
        )


def export(lora: LoraConfig | None, checkpoint: Path, out: Path) -> None:
    """Write a checkpoint into the new folder `out`, which appears whole or not; adapters are merged, in float32.

    Raises:
        UserError: `out` exists or can't be written, or a file of the checkpoint is missing or damaged.
    """
    actor = checkpoint / "actor"
    with new_folder(out) as unfinished:
        weights = merge_adapters(read_weights(actor), lora)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(actor / "huggingface"))
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise damaged(actor, error) from error
        model.tie_weights()
        if (actor / "huggingface" / "generation_config.json").is_file():  # where answers end; else derived
            model.generation_config = GenerationConfig.from_pretrained(actor / "huggingface")
        copy_files(actor / "huggingface", unfinished, without=("*.safetensors", "*.safetensors.index.json"))
        model.save_pretrained(unfinished)


def read_weights(actor: Path) -> dict[str, Tensor]:
    """All weights by name, each put together from the shards of the ranks, as FSDP2 divides them.

    Raises:
        UserError: a file is missing or damaged.
    """
    logger = logging.getLogger("torch.distributed.device_mesh")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that there are no process groups: none are needed
    try:
        world = int(json.loads((actor / "fsdp_config.json").read_text())["world_size"])
        ranks: list[dict[str, Any]] = [
            torch.load(actor / f"model_world_size_{world}_rank_{rank}.pt", map_location="cpu", mmap=True)
            for rank in range(world)
        ]
        return {name: _whole([rank.pop(name) for rank in ranks]) for name in list(ranks[0])}
    except (OSError, KeyError, ValueError, RuntimeError, UnpicklingError) as error:
        raise damaged(actor, error) from error
    finally:
        logger.setLevel(level)


def _whole(shards: list[Any]) -> Tensor:
    first: Tensor = shards[0]
    if not isinstance(first, DTensor):
        return first
    # Where several groups of ranks hold the same shards, the first group has them all.
    group, placement = first.device_mesh.shape[-1], first.placements[-1]
    if not isinstance(placement, Shard):
        return first.to_local()
    whole = torch.cat([one.to_local() for one in shards[:group]], dim=placement.dim)
    if whole.shape != first.shape:
        raise ValueError(f"shards make {tuple(whole.shape)}, not {tuple(first.shape)}")
    return whole


def merge_adapters(weights: dict[str, Tensor], lora: LoraConfig | None) -> dict[str, Tensor]:
    """Weights of a model without adapters, W + alpha / rank * B A, by the names that it gives them."""
    if lora is None:
        return weights
    merged = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        whole, layer = weight, name.replace(".base_layer.weight", "")
        if (a := weights.get(layer + ADAPTER.format("A"))) is not None:
            b = weights[layer + ADAPTER.format("B")]
            whole = (weight.float() + lora.alpha / lora.rank * (b.float() @ a.float())).to(weight.dtype)
        merged[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = whole
    return merged


def damaged(actor: Path, error: Exception) -> UserError:
    """The error of a checkpoint that can't be read."""
    reason = " ".join((str(error) or repr(error)).split())[:200]
    return UserError(f"{actor}: a file is missing or damaged ({reason}); take another checkpoint with --step")
