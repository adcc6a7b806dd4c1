"""The formulas: each against what it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.engine.models import TINY, write_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from vtriune.local import logprobs as local_logprobs
from vtriune.local import rollout as local_rollout
from vtriune.local.decoder import run_prompts
from vtriune.local.model import Encoded, ModelConfig, VisionLanguageModel
from vtriune.local.update import Learner, Lesson, UpdateConfig
from vtriune.plan import make_plan
from vtriune.plan_formulas import LOGITS_AT_A_TIME, PREFILL_TOKENS, Load, Machines, saved_per_token
from vtriune.recipe import Recipe
from vtriune.shapes import FAMILIES, read_shape
from vtriune.types import Message, RewardSpec, Sample

GROUP, ANSWER = 8, 24
TEXT = TINY["text_config"] | {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
}
SIZES = {"text_config": TEXT, "vision_config": TINY["vision_config"] | {"out_hidden_size": 64}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2.5-VL."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, SIZES, torch.float32, "cpu")
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Callable[..., Recipe]:
    """A small recipe; changes by section."""

    def make(**sections: dict[str, Any]) -> Recipe:
        fields: dict[str, Any] = {
            "base": "/",
            "steps": 2,
            "model": {"path": str(folder), "device": "cpu", "max_pixels": 100_000},
            "data": {"train": [{"path": "train"}], "test": [{"path": "test"}]},
            "rollout": {"prompts_per_step": 16, "responses_per_prompt": GROUP, "max_new_tokens": ANSWER},
        }
        for name, changes in sections.items():
            fields[name] = fields.get(name, {}) | changes
        return Recipe.model_validate(fields)

    return make


def encoded(vlm: VisionLanguageModel) -> Encoded:
    text = "What is the value of the expression " * 12
    return vlm.encode(Sample("row", "text", "math", (Message("user", text),), (), RewardSpec("mathverify", "4")))


class Saved:
    """Bytes of the storages that autograd keeps, each counted once; parameters are left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.known = {one.untyped_storage().data_ptr() for one in model.parameters()}
        self.held: list[torch.Tensor] = []
        """So that no storage is freed and its place used again."""
        self.bytes = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.held.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def back(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.mark.parametrize("kind", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_layer_keeps_of_a_token_is_what_autograd_keeps(family: str, kind: str, tmp_path: Path) -> None:
    text = TEXT | {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16}
    config = AutoConfig.for_model(family, text_config=text)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        layer = AutoModelForImageTextToText.from_config(config).model.language_model.layers[0]
    layer = layer.to_empty(device="cpu").to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    kept = []
    for tokens in (64, 128):
        hidden = torch.zeros(1, tokens, 64, requires_grad=True, dtype=next(layer.parameters()).dtype)
        rotary = torch.zeros(1, tokens, 16), torch.zeros(1, tokens, 16)
        rotary = rotary if family == "qwen3_vl" else (rotary[0].expand(3, 1, -1, -1), rotary[1].expand(3, 1, -1, -1))
        saved = Saved(layer)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"), saved_tensors_hooks(saved, back):
            layer(hidden, attention_mask=None, position_embeddings=tuple(one.to(hidden.dtype) for one in rotary))
        kept.append(saved.bytes)
    rotary_bytes = 2 * 16 * (2 if kind == "bfloat16" else 4)  # shared by all layers
    assert (kept[1] - kept[0]) / 64 - rotary_bytes == saved_per_token(read_shape(tmp_path / "config.json"), kind)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_local_engine_keeps_of_a_micro_batch_is_planned_to_5_percent(
    folder: Path, recipe: Callable[..., Recipe], dtype: str
) -> None:
    vlm = VisionLanguageModel(ModelConfig(path=str(folder), device="cpu", dtype=dtype))
    prompt = encoded(vlm)
    answers = [[np.full(ANSWER, 5 + k) for k in range(GROUP)]] * 2
    saved = Saved(vlm.model)
    with saved_tensors_hooks(saved, back):
        local_logprobs.response_logprobs(vlm, [prompt] * 2, answers, 1.0)
    tokens = 2 * (len(prompt.ids) + GROUP * ANSWER)
    asked = recipe(model={"dtype": dtype}, update={"tokens_per_batch": tokens})
    plan = make_plan(asked, read_shape(folder / "config.json"), Machines(), Load(len(prompt.ids), 0))
    kept_of_logits = 4 * 2 * GROUP * ANSWER * vlm.model.lm_head.out_features
    assert saved.bytes - kept_of_logits == pytest.approx(
        plan.training["activations"] + plan.training["weights in bfloat16"], rel=0.05
    )


def test_weights_gradients_and_adamw_are_those_of_a_real_step(folder: Path, recipe: Callable[..., Recipe]) -> None:
    vlm = VisionLanguageModel(ModelConfig(path=str(folder), device="cpu"))
    learner = Learner(vlm, UpdateConfig(), 1.0)
    gradients = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(sum(p.grad.nbytes for p in vlm.model.parameters() if p.grad is not None))
    )
    ids = [np.arange(5, 5 + ANSWER)] * 2
    old = [np.full(ANSWER, -6.0, dtype=np.float32)] * 2
    learner.update([Lesson(encoded(vlm), ids, old, np.array([-1.0, 1.0]))], 0, 2)
    plan = make_plan(recipe(), read_shape(folder / "config.json"), Machines(), Load())
    states = [state for of_one in learner.optimizer.state.values() for state in of_one.values() if state.ndim]
    assert plan.training["weights (float32)"] == sum(one.nbytes for one in vlm.model.parameters())
    assert [plan.training["gradients (float32)"]] == gradients
    assert plan.training["AdamW"] == sum(state.nbytes for state in states)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_of_a_token_are_those_that_the_engines_keep(
    folder: Path, recipe: Callable[..., Recipe], dtype: str
) -> None:
    vlm = VisionLanguageModel(ModelConfig(path=str(folder), device="cpu", dtype=dtype))
    prompt = encoded(vlm)
    with torch.no_grad(), vlm.autocast():
        prefix = run_prompts(vlm, [prompt])
    shape = read_shape(folder / "config.json")
    plan = make_plan(recipe(model={"dtype": dtype}), shape, Machines(), Load())
    kept = sum(one.nbytes for one in (*prefix.keys, *prefix.values))
    assert plan.kv_bytes_per_token * len(prompt.ids) == kept


def test_keys_and_values_beyond_one_gpu_are_those_of_transformers_cache_in_bfloat16(
    folder: Path, recipe: Callable[..., Recipe]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    cache = DynamicCache()
    model(input_ids=torch.arange(5, 25)[None], past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = read_shape(folder / "config.json")
    whole, halved = (make_plan(recipe(), shape, Machines(4, 8, tensor_parallel=t), Load()) for t in (1, 2))
    assert whole.kv_bytes_per_token * 20 == kept
    assert halved.kv_bytes_per_token == whole.kv_bytes_per_token / 2


def test_constants_are_the_engines() -> None:
    assert LOGITS_AT_A_TIME == local_logprobs.LOGITS_PER_CHUNK
    assert PREFILL_TOKENS == local_rollout.PREFILL
