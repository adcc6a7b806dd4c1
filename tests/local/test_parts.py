"""Which parameters are vision tower, connector and language model, in all image-text models that transformers names so,
and the norms of their gradients.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2Config, Qwen2ForCausalLM

from vtriune.local.model import VisionLanguageModel
from vtriune.local.parts import PARTS, Place, gradient_figures, gradient_norms, places
from vtriune.types import UserError

SMALL_TEXT = {"text_config": {"model_type": "llama", "pad_token_id": 0, "vocab_size": 500, "num_hidden_layers": 3}}


def skeleton(kind: str, **fields: Any) -> Any:
    """A model of a kind, without weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **fields))


@pytest.mark.parametrize(
    ("kind", "fields", "vision", "connector", "llm"),
    [
        ("qwen2_vl", {}, "model.visual", "model.visual.merger", "model.language_model"),
        ("qwen2_5_vl", {}, "model.visual", "model.visual.merger", "model.language_model"),
        ("qwen3_vl", {}, "model.visual", "model.visual.(merger|deepstack_merger_list)", "model.language_model"),
        ("qwen3_5", {}, "model.visual", "model.visual.merger", "model.language_model"),
        ("glm4v", {}, "model.visual", "model.visual.merger", "model.language_model"),
        ("llava", {}, "model.vision_tower", "model.multi_modal_projector", "model.language_model"),
        (
            "llava_next",
            {},
            "model.vision_tower",
            "model.(multi_modal_projector|image_newline)",
            "model.language_model",
        ),
        ("llava_onevision", {}, "model.vision_tower", "model.(multi_modal_projector|image_newline)", "model.lang"),
        ("idefics2", {}, "model.vision_model", "model.connector", "model.text_model"),
        ("idefics3", SMALL_TEXT, "model.vision_model", "model.connector", "model.text_model"),
        ("smolvlm", SMALL_TEXT, "model.vision_model", "model.connector", "model.text_model"),
        ("internvl", {}, "model.vision_tower", "model.multi_modal_projector", "model.language_model"),
        ("paligemma", {}, "model.vision_tower", "model.multi_modal_projector", "model.language_model"),
        ("gemma3", {}, "model.vision_tower", "model.multi_modal_projector", "model.language_model"),
        ("mistral3", {}, "model.vision_tower", "model.multi_modal_projector", "model.language_model"),
        ("video_llama_3", {}, "model.vision_model", "model.projector", "model.language_model"),
        ("llama4", {}, "vision_model", "multi_modal_projector", "language_model"),
        ("deepseek_vl", {}, "model.vision_model", "model.aligner", "model.language_model"),
        ("blip-2", {}, "vision_model", "(qformer|query_tokens|language_projection)", "language_model"),
    ],
)
def test_the_parts_of_a_model_are_the_modules_that_its_class_has_for_them(
    kind: str, fields: dict[str, Any], vision: str, connector: str, llm: str
) -> None:
    model = skeleton(kind, **fields)
    found = places(model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, place in found.items():
        if re.match(connector, name):
            expected = "connector"
        elif re.match(vision, name):
            expected = "vision"
        else:
            assert re.match(f"{llm}|lm_head", name)
            expected = "llm"
        assert place.part == expected, name
    assert {place.part for place in found.values()} == set(PARTS)


@pytest.mark.parametrize(
    ("kind", "fields", "vision", "llm"),
    [
        ("qwen2_5_vl", {"vision_config": {"depth": 5}, "text_config": {"num_hidden_layers": 3}}, 5, 3),
        ("qwen3_vl", {"vision_config": {"depth": 5}, "text_config": {"num_hidden_layers": 3}}, 5, 3),
        ("llava", {"vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 4}}, 4, 32),
        ("smolvlm", SMALL_TEXT | {"vision_config": {"num_hidden_layers": 2}}, 2, 3),
    ],
)
def test_layers_are_counted_in_the_language_model_and_in_the_vision_tower(
    kind: str, fields: dict[str, Any], vision: int, llm: int
) -> None:
    found = places(skeleton(kind, **fields))
    for part, count in (("vision", vision), ("llm", llm)):
        layers = {place.layer for place in found.values() if place.part == part}
        assert layers - {None} == set(range(count))
        assert None in layers
    assert {place.layer for place in found.values() if place.part == "connector"} == {None}
    assert all(f".{place.layer}." in name for name, place in found.items() if place.layer is not None)


def test_a_model_without_parts_is_refused_with_the_names_that_it_has() -> None:
    with torch.device("meta"):
        text = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=1))
    with pytest.raises(
        UserError,
        match=r"holds a Qwen2ForCausalLM, of which it isn't known which part is model.embed_tokens, model.layers, "
        r"model.norm; its modules are model.embed_tokens, model.layers, model.norm, lm_head. Take another model",
    ):
        places(text)


def test_a_model_that_lacks_a_part_is_refused_with_the_names_that_it_has() -> None:
    model = nn.ModuleDict({"vision_tower": nn.Linear(2, 2), "language_model": nn.Linear(2, 2)})
    with pytest.raises(
        UserError, match="holds a ModuleDict, of which it has no connector part; its modules are vision_tower, language"
    ):
        places(model)


def test_a_module_of_unknown_purpose_is_refused_rather_than_trained_as_something() -> None:
    model = skeleton("llava")
    model.model.depth_tower = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"which part is model\.depth_tower; its modules are model\.vision_tower, mod"):
        places(model)


def test_gradient_norms_of_layers_and_parts_are_those_of_their_parameters(
    load: Callable[..., VisionLanguageModel], folder: Path
) -> None:
    own = load(folder)
    generator = torch.Generator().manual_seed(0)
    parameters: dict[Place, list[torch.Tensor]] = {}
    for k, (name, parameter) in enumerate(own.model.named_parameters()):
        parameters.setdefault(own.places[name], []).append(parameter)
        if k % 7:  # the others have no gradient at all
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    figures = gradient_figures(gradient_norms(parameters))

    def norm(chosen: Collection[Place]) -> float:
        named = [(own.places[name], p.grad) for name, p in own.model.named_parameters() if p.grad is not None]
        return math.sqrt(sum(float((grad.double() ** 2).sum()) for place, grad in named if place in chosen))

    expected = {"grad_norm": norm(parameters)}
    expected |= {f"grad_norm_{part}": norm([place for place in parameters if place.part == part]) for part in PARTS}
    expected |= {
        f"layer_{place.layer:02d}/grad_norm_{place.part}": norm([place])
        for place in parameters
        if place.layer is not None
    }
    assert figures == pytest.approx(expected)
    assert len(figures) >= 1 + 3 + 4


def test_a_gradient_that_is_not_finite_makes_its_layer_its_part_and_the_total_not_finite() -> None:
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    weights[0].grad, weights[1].grad = torch.tensor([1.0, math.nan]), torch.ones(2)
    norms = gradient_norms({Place("llm", 0): weights[:1], Place("vision", 0): weights[1:]})
    figures = gradient_figures(norms)
    finite = {name for name, value in figures.items() if math.isfinite(value)}
    assert finite == {"grad_norm_vision", "layer_00/grad_norm_vision"}
