"""Tiny random models of every family that the engine takes, samples for them, and the plain twin of its log-probs.

The weights are larger than at the start of a training, so that every token's distribution depends on all that comes
before it: with the usual small ones a wrong position or a wrong mask would move log-probs by less than rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtriune.data.images import FilePicture
from vtriune.local.engine import LocalEngine
from vtriune.local.model import Encoded, ModelConfig, VisionLanguageModel
from vtriune.local.parts import Part
from vtriune.local.rollout import RolloutConfig
from vtriune.local.update import Learner, UpdateConfig
from vtriune.playground.base import SPECIAL, build_model, build_tokenizer
from vtriune.types import Message, RewardSpec, Sample

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen2_vl")
ENDS = tuple(range(300, 360))
"""Ordinary tokens that end an answer here, beside `<|im_end|>`: a random model finds one of many soon enough."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))


def common_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    token = special_ids(tokenizer)
    return {
        "image_token_id": token["<|image_pad|>"],
        "video_token_id": token["<|video_pad|>"],
        "vision_start_token_id": token["<|vision_start|>"],
        "vision_end_token_id": token["<|vision_end|>"],
    }


def text_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    token = special_ids(tokenizer)
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": token["<|endoftext|>"],
        "eos_token_id": token["<|im_end|>"],
        "pad_token_id": token["<|endoftext|>"],
    }


def build_qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {"head_dim": 16, "rope_parameters": rope, "max_position_embeddings": 512}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    fields = common_fields(tokenizer) | {"text_config": text_fields(tokenizer) | text, "vision_config": vision}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**fields))


def build_qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2]}
    text = {"rope_parameters": rope, "max_position_embeddings": 512}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    fields = common_fields(tokenizer) | {"text_config": text_fields(tokenizer) | text, "vision_config": vision}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(**fields))


BUILDERS: dict[str, Callable[[PreTrainedTokenizerFast], Any]] = {
    "qwen2_5_vl": build_model,
    "qwen3_vl": build_qwen3_vl,
    "qwen2_vl": build_qwen2_vl,
}
PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16, "qwen2_vl": 14}


def enlarge(model: nn.Module) -> None:
    """Random weights as a trained model's: biases and gains differ from 0 and 1, distributions are far from flat."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.data.normal_(std=2.0 / math.sqrt(parameter.shape[-1]))
        else:
            parameter.data.normal_(std=1.0 / math.sqrt(parameter[0].numel()))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A transformers folder per family, as a user would have it."""
    tokenizer = build_tokenizer(0)
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        model = BUILDERS[family](tokenizer)
        enlarge(model)
        model.generation_config.eos_token_id = [special_ids(tokenizer)["<|im_end|>"], *ENDS]
        model.generation_config.pad_token_id = special_ids(tokenizer)["<|endoftext|>"]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        side = 2 * PATCH[family]
        size = {"shortest_edge": side**2, "longest_edge": 64 * side**2}
        Qwen2VLImageProcessorPil(patch_size=PATCH[family], size=size).save_pretrained(folder)
        found[family] = folder
    return found


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    """Each family's folder in turn: what a test claims of it holds for all."""
    return folders[request.param]


@pytest.fixture(scope="session")
def load() -> Callable[..., VisionLanguageModel]:
    """A freshly loaded model that a test may change; nothing is frozen unless asked for."""

    def from_folder(folder: Path, freeze: Sequence[Part] = (), **fields: Any) -> VisionLanguageModel:
        config = {"path": str(folder), "device": "cpu", "freeze": list(freeze)} | fields
        return VisionLanguageModel(ModelConfig.model_validate(config))

    return from_folder


@pytest.fixture(scope="session")
def vlm(folder: Path, load: Callable[..., VisionLanguageModel]) -> VisionLanguageModel:
    """A model that tests only read."""
    return load(folder)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Sample]:
    """A sample with noisy pictures of the given sizes, marks first."""
    folder = tmp_path_factory.mktemp("pictures")

    def make(name: str, text: str = "What is this?", *sizes: tuple[int, int]) -> Sample:
        images = []
        for k, (width, height) in enumerate(sizes):
            path = folder / f"{name}-{k}.png"
            noise = np.random.default_rng([width, height, k]).integers(0, 256, (height, width, 3), dtype=np.uint8)
            PIL.Image.fromarray(noise).save(path)
            images.append(FilePicture(path, f"{name} picture {k}"))
        message = Message("user", "<image>" * len(sizes) + text)
        return Sample(name, "noise", "math", (message,), tuple(images), RewardSpec("mathverify", "4"))

    return make


@pytest.fixture(scope="session")
def ragged(sample: Callable[..., Sample]) -> list[Sample]:
    """Prompts of different lengths: one picture, none, three of different sizes, one large picture."""
    return [
        sample("one", "What is the value of the expression?", (60, 60)),
        sample("text only", "Add 2 to 3."),
        sample("three", "Which differs?", (56, 84), (140, 60), (90, 90)),
        sample("large", "Read.", (230, 120)),
    ]


@pytest.fixture(scope="session")
def plain_distributions() -> Callable[..., Tensor]:
    """Plain twin: prompt and answer as one full sequence through the model, no cache and no padding. (T, V)."""

    def compute(vlm: VisionLanguageModel, prompt: Encoded, answer: np.ndarray, temperature: float = 1.0) -> Tensor:
        ids = torch.from_numpy(np.concatenate([prompt.ids, answer]))[None]
        positions, _ = vlm.model.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == vlm.model.config.image_token_id).long(),
            image_grid_thw=prompt.pictures.grid_thw,
        )
        logits = vlm.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions,
            pixel_values=prompt.pictures.pixel_values,
            image_grid_thw=prompt.pictures.grid_thw,
            use_cache=False,
        ).logits[0, len(prompt.ids) - 1 : -1]
        forbidden = torch.tensor([vlm.model.config.image_token_id, vlm.model.config.video_token_id])
        allowed = torch.zeros(logits.shape[-1]).index_fill(0, forbidden, -math.inf)
        return torch.log_softmax((logits + allowed) / temperature, -1)

    return compute


@pytest.fixture(scope="session")
def plain_logprobs(plain_distributions: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Plain twin of an answer's log-probs: (T,)."""

    def compute(vlm: VisionLanguageModel, prompt: Encoded, answer: np.ndarray, temperature: float = 1.0) -> Tensor:
        distributions = plain_distributions(vlm, prompt, answer, temperature)
        return distributions[torch.arange(len(answer)), torch.from_numpy(answer)]

    return compute


@pytest.fixture(scope="session")
def gradients() -> Callable[[VisionLanguageModel], dict[str, Tensor]]:
    """All gradients by parameter, which are then taken off the model."""

    def take(vlm: VisionLanguageModel) -> dict[str, Tensor]:
        found = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
        vlm.model.zero_grad(set_to_none=True)
        return found

    return take


@pytest.fixture(scope="session")
def watch() -> Callable[[VisionLanguageModel, Learner], list[dict[str, Tensor]]]:
    """A list that gets the gradients of every optimizer step, as the optimizer sees them."""

    def observe(vlm: VisionLanguageModel, learner: Learner) -> list[dict[str, Tensor]]:
        seen: list[dict[str, Tensor]] = []

        def note(*_: Any) -> None:
            seen.append({name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None})

        learner.optimizer.register_step_pre_hook(note)
        return seen

    return observe


@pytest.fixture(scope="session")
def engine() -> Callable[..., LocalEngine]:
    """A LocalEngine on a folder; settings go to the section that has them."""

    def make(
        folder: Path,
        seed: int = 0,
        freeze: Sequence[Part] = ("vision", "connector"),
        plain: bool = False,
        lora: dict[str, Any] | None = None,
        **fields: Any,
    ) -> LocalEngine:
        rollout = {"max_new_tokens": 6, "responses_per_prompt": 4, "cache_tokens": 1000}
        update: dict[str, Any] = {"learning_rate": 1e-3, "warmup_ratio": 0.0}
        for name, value in fields.items():
            (rollout if name in RolloutConfig.model_fields else update)[name] = value
        return LocalEngine(
            ModelConfig.model_validate(
                {"path": str(folder), "device": "cpu", "freeze": list(freeze), "plain": plain, "lora": lora}
            ),
            RolloutConfig.model_validate(rollout),
            UpdateConfig.model_validate(update),
            seed,
        )

    return make
