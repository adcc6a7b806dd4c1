from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.integrations.verl.support.runs import MODEL
from transformers import AutoModelForImageTextToText

from vtriune.integrations.verl.checkpoints import (
    NEWEST,
    check_shards,
    export,
    find_checkpoint,
    merge_adapters,
    read_weights,
)
from vtriune.local.lora import LoraConfig
from vtriune.types import UserError


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """After steps 5 and 10, of which verl keeps the second, and one of step 15 that was being written."""
    for step in (10, 15):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    (tmp_path / "global_step_5").mkdir()  # verl deletes what is in it
    (tmp_path / NEWEST).write_text("10")
    return tmp_path


def test_the_newest_checkpoint_is_the_last_one_that_is_whole(checkpoints: Path) -> None:
    assert find_checkpoint(checkpoints).name == "global_step_10"
    assert find_checkpoint(checkpoints, 10).name == "global_step_10"


@pytest.mark.parametrize("step", [5, 15, 1])
def test_a_checkpoint_that_is_not_there_is_an_error_that_names_the_others(checkpoints: Path, step: int) -> None:
    with pytest.raises(UserError, match=f"holds no global_step_{step}; there are global_step_10$"):
        find_checkpoint(checkpoints, step)


def test_a_run_without_a_checkpoint_can_not_be_resumed_and_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="holds no checkpoint, so this run can't be resumed or exported; start it again"
    ):
        find_checkpoint(tmp_path)


def test_a_damaged_note_of_the_newest_checkpoint_is_an_error_with_a_remedy(checkpoints: Path) -> None:
    (checkpoints / NEWEST).write_text("")
    with pytest.raises(UserError, match=f"{NEWEST}: holds no number; write that of the newest"):
        find_checkpoint(checkpoints)


def test_ranks_go_on_from_as_many_shards_only_of_which_none_is_missing(checkpoints: Path) -> None:
    checkpoint = checkpoints / "global_step_10"
    (checkpoint / "actor" / "fsdp_config.json").write_text('{"world_size": 2}')
    with pytest.raises(
        UserError, match=r"was written by 2 GPUs, but verl.nodes x verl.gpus_per_node is 8; give as many"
    ):
        check_shards(checkpoint, 8)
    for kind in ("model", "optim", "extra_state"):
        for rank in range(2):
            with pytest.raises(UserError, match=rf"lacks {kind}_world_size_2_rank_{rank}\.pt; bring it back, or write"):
                check_shards(checkpoint, 2)
            (checkpoint / "actor" / f"{kind}_world_size_2_rank_{rank}.pt").touch()
    check_shards(checkpoint, 2)


def test_the_exported_model_stops_where_the_trained_one_did(checkpoints: Path, tmp_path: Path) -> None:
    actor = checkpoints / "global_step_10" / "actor"
    shutil.copytree(MODEL, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (actor / "huggingface" / "generation_config.json").write_text(
        '{"eos_token_id": [5, 7], "do_sample": true, "top_k": 3}'
    )
    (actor / "fsdp_config.json").write_text('{"world_size": 1}')
    weights = AutoModelForImageTextToText.from_pretrained(MODEL).state_dict()
    torch.save(weights, actor / "model_world_size_1_rank_0.pt")
    export(None, actor.parent, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [5, 7]
    assert model.generation_config.top_k == 3
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_a_missing_shard_is_named_and_nothing_is_written(checkpoints: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(checkpoints)
    (checkpoint / "actor" / "fsdp_config.json").write_text('{"world_size": 2}')
    torch.save({}, checkpoint / "actor" / "model_world_size_2_rank_0.pt")
    with pytest.raises(UserError, match=r"missing or damaged .*model_world_size_2_rank_1\.pt"):
        export(None, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_but_tensors_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "fsdp_config.json").write_text('{"world_size": 1}')
    torch.save({"a": Path("/")}, tmp_path / "model_world_size_1_rank_0.pt")  # a pickle that would run code
    with pytest.raises(UserError, match="missing or damaged"):
        read_weights(tmp_path)


def test_adapters_are_added_to_the_weight_that_they_lie_beside() -> None:
    held = {
        "base_model.model.q.base_layer.weight": torch.eye(2),
        "base_model.model.q.base_layer.bias": torch.ones(2),
        "base_model.model.q.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "base_model.model.q.lora_B.default.weight": torch.tensor([[1.0], [3.0]]),
        "base_model.model.norm.weight": torch.ones(2),
    }
    merged = merge_adapters(held, LoraConfig(rank=1, alpha=2))
    assert merged.keys() == {"q.weight", "q.bias", "norm.weight"}
    assert merged["q.weight"].tolist() == [[3.0, 4.0], [6.0, 13.0]]
