"""Adapters: they start as no change, they alone learn, peft reads them, and merged they are the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.local.test_engine import assert_equal_weights, one_step
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vtriune.local.checkpoint import write_checkpoint
from vtriune.local.engine import LocalEngine
from vtriune.local.export import export
from vtriune.local.logprobs import response_logprobs
from vtriune.local.model import ModelConfig, VisionLanguageModel
from vtriune.types import Sample, UserError

Engine = Callable[..., LocalEngine]
Load = Callable[..., VisionLanguageModel]
LORA = {"rank": 4, "alpha": 8}


def logprobs(vlm: VisionLanguageModel, samples: list[Sample]) -> Tensor:
    """Of some answers to each sample."""
    rng = np.random.default_rng(0)
    answers = [[rng.integers(0, 300, length) for length in (7, 3)] for _ in samples]
    with torch.no_grad():
        return response_logprobs(vlm, [vlm.encode(sample) for sample in samples], answers, 1.0)


def trained(engine: Engine, folder: Path, samples: list[Sample], steps: int = 3, **fields: Any) -> LocalEngine:
    """An engine whose adapters have learned something."""
    tiny = engine(folder, lora=fields.pop("lora", LORA), learning_rate=1e-2, **fields)
    for step in range(steps):
        one_step(tiny, samples, step)
    return tiny


def test_new_adapters_change_nothing(folder: Path, load: Load, ragged: list[Sample]) -> None:
    frozen = ["vision", "connector"]
    assert torch.equal(logprobs(load(folder, frozen, lora=LORA), ragged), logprobs(load(folder, frozen), ragged))


@pytest.mark.parametrize("freeze", [["vision", "connector"], []])
def test_adapters_alone_learn_and_only_in_parts_that_are_not_frozen(
    folder: Path, engine: Engine, load: Load, ragged: list[Sample], freeze: list[str]
) -> None:
    tiny = trained(engine, folder, ragged, freeze=freeze)
    base = dict(load(folder).model.named_parameters())
    adapted = set()
    for name, value in tiny.vlm.model.named_parameters():
        assert value.dtype == torch.float32
        if ".lora_" in name:
            assert value.requires_grad
            assert value.any(), name  # B is 0 at first
            adapted.add(tiny.vlm.places[name].part)
        else:
            assert not value.requires_grad
            assert torch.equal(value, base[name.replace(".base_layer.", ".")]), name
    assert adapted == {"vision", "connector", "llm"} - set(freeze)
    assert not any(module.training for module in tiny.vlm.model.modules())


def test_sampled_and_recomputed_log_probs_agree_and_figures_know_the_layers(
    folder: Path, engine: Engine, ragged: list[Sample]
) -> None:
    tiny = trained(engine, folder, ragged)
    _, figures = one_step(tiny, ragged, 3)
    assert figures["logprob_gap"] < 1e-5
    assert figures["grad_norm_llm"] == figures["grad_norm"] > 0
    layers = [value for name, value in figures.items() if name.startswith("layer_")]
    assert len(layers) == len(tiny.vlm.language_model.layers)
    assert min(layers) > 0
    assert sum(value**2 for value in layers) ** 0.5 == pytest.approx(figures["grad_norm"])  # nothing lies outside


def test_shared_prompts_give_the_log_probs_of_the_plain_way(
    folder: Path, engine: Engine, ragged: list[Sample], plain_logprobs: Callable[..., Tensor]
) -> None:
    vlm = trained(engine, folder, ragged, freeze=[]).vlm
    answer = np.arange(9)
    found = response_logprobs(vlm, [vlm.encode(sample) for sample in ragged], [[answer]] * len(ragged), 1.0)
    expected = torch.cat([plain_logprobs(vlm, vlm.encode(sample), answer) for sample in ragged])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_checkpoint_is_what_peft_writes_and_small(
    folder: Path, engine: Engine, load: Load, ragged: list[Sample], tmp_path: Path
) -> None:
    tiny = trained(engine, folder, ragged)
    tiny.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.pt",
    }
    again = load(folder, ["vision", "connector"])
    loaded = peft.PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), tmp_path)
    ours, theirs = load_file(tmp_path / "adapter_model.safetensors"), peft.get_peft_model_state_dict(loaded)
    assert {f"base_model.model.{name.removeprefix('base_model.model.')}" for name in theirs} == ours.keys()
    again.model = loaded.base_model.model.eval()
    again.language_model = again.model.model.language_model
    torch.testing.assert_close(logprobs(again, ragged), logprobs(tiny.vlm, ragged), atol=1e-6, rtol=0)


def test_going_on_from_adapters_equals_never_having_stopped_bit_for_bit(
    folder: Path, engine: Engine, ragged: list[Sample], tmp_path: Path
) -> None:
    straight = trained(engine, folder, ragged, steps=2)
    straight.save(tmp_path)
    resumed = engine(folder, seed=0, lora=LORA, learning_rate=1e-2)
    resumed.load(tmp_path)
    assert_equal_weights(resumed, straight)
    for step in range(2, 4):
        expected, figures = one_step(straight, ragged, step)
        found, resumed_figures = one_step(resumed, ragged, step)
        assert resumed_figures == figures
        for group, other in zip(found, expected, strict=True):
            for one, original in zip(group.rollouts, other.rollouts, strict=True):
                assert one.token_ids.tobytes() == original.token_ids.tobytes()
                assert one.logprobs.tobytes() == original.logprobs.tobytes()
    assert_equal_weights(resumed, straight)


@pytest.mark.parametrize("freeze", [["vision", "connector"], []])
def test_the_exported_model_is_ordinary_and_has_the_log_probs_of_base_and_adapters(
    folder: Path, engine: Engine, load: Load, ragged: list[Sample], tmp_path: Path, freeze: list[str]
) -> None:
    tiny = trained(engine, folder, ragged, freeze=freeze)
    write_checkpoint(tmp_path / "checkpoints", 3, tiny.save, {}, keep=1)
    config = ModelConfig.model_validate({"path": str(folder), "device": "cpu", "freeze": freeze, "lora": LORA})
    export(config, tmp_path / "checkpoints" / "step-000003", tmp_path / "out" / "model")
    assert not any("adapter" in path.name or "optim" in path.name for path in (tmp_path / "out" / "model").iterdir())
    merged = load(tmp_path / "out" / "model")
    assert {*merged.model.state_dict()} == {*load(folder).model.state_dict()}
    expected = logprobs(tiny.vlm, ragged)
    torch.testing.assert_close(logprobs(merged, ragged), expected, atol=1e-5, rtol=0)
    assert (expected - logprobs(load(folder), ragged)).abs().max() > 0.01
    assert merged.eos_ids == tiny.vlm.eos_ids
    with pytest.raises(UserError, match="model: exists already; delete it, or give a new folder"):
        export(config, tmp_path / "checkpoints" / "step-000003", tmp_path / "out" / "model")


def test_a_checkpoint_without_adapters_is_exported_as_it_is(
    folders: dict[str, Path], engine: Engine, load: Load, ragged: list[Sample], tmp_path: Path
) -> None:
    tiny = engine(folders["qwen3_vl"])
    one_step(tiny, ragged, 0)
    write_checkpoint(tmp_path / "checkpoints", 1, tiny.save, {}, keep=1)
    config = ModelConfig(path=str(folders["qwen3_vl"]), device="cpu")
    export(config, tmp_path / "checkpoints" / "step-000001", tmp_path / "model")
    assert not {"state.json", "optimizer.pt"} & {path.name for path in (tmp_path / "model").iterdir()}
    assert torch.equal(logprobs(load(tmp_path / "model", ["vision", "connector"]), ragged), logprobs(tiny.vlm, ragged))


def test_only_the_layers_that_are_named_get_adapters(folder: Path, load: Load) -> None:
    vlm = load(folder, ["vision", "connector"], lora={"target": ["q_proj", "layers.1.mlp.up_proj"]})
    adapted = {name.partition(".lora_")[0] for name, _ in vlm.model.named_parameters() if ".lora_" in name}
    layers = range(len(vlm.language_model.layers))
    root = "model.language_model.layers"
    assert adapted == {f"{root}.{k}.self_attn.q_proj" for k in layers} | {f"{root}.1.mlp.up_proj"}


def test_a_target_that_is_no_layer_is_refused_with_those_that_are(folder: Path, load: Load) -> None:
    for absent in ("lm_head", "qkv", "proj"):  # the last two are the frozen vision tower's
        with pytest.raises(
            UserError, match=rf"model.lora.target: {absent} is no linear layer of the parts that are trained; .*up_proj"
        ):
            load(folder, ["vision", "connector"], lora={"target": ["q_proj", absent]})


@pytest.mark.parametrize("damage", ["cut off", "gone", "another rank", "a weight missing"])
def test_damaged_adapters_are_named_with_the_way_out(
    folders: dict[str, Path], engine: Engine, tmp_path: Path, damage: str
) -> None:
    folder = folders["qwen2_5_vl"]
    engine(folder, lora=LORA).save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    match damage:
        case "cut off":
            file.write_bytes(file.read_bytes()[:-100])
        case "gone":
            file.unlink()
        case "another rank":
            save_file({name: value[:1] for name, value in load_file(file).items()}, file)
        case "a weight missing":
            tensors = load_file(file)
            tensors.popitem()
            save_file(tensors, file)
    with pytest.raises(UserError, match=rf"{file}: damaged \(.+\); delete the folder {tmp_path} to resume from the"):
        engine(folder, lora=LORA).load(tmp_path)
    config = ModelConfig.model_validate({"path": str(folder), "device": "cpu", "lora": LORA})
    with pytest.raises(UserError, match=rf"{file}: damaged"):
        export(config, tmp_path, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
