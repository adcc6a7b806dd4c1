"""Parameters per part from a config.json, against transformers' models; what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

from vtriune.local.lora import LoraConfig, add_adapters
from vtriune.local.parts import PARTS, places
from vtriune.shapes import BUILT_IN, FAMILIES, read_shape
from vtriune.types import UserError

TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2]},
}
CONFIGS: dict[str, Any] = {
    "qwen2_vl": (
        Qwen2VLConfig,
        {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        {"depth": 3, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 64},
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A config.json of a family as transformers writes it."""

    def write(family: str, *, tied: bool = False, **changes: Any) -> Path:
        kind, vision = CONFIGS[family]
        text = TEXT | ({"head_dim": 24} if family == "qwen3_vl" else {}) | {"tie_word_embeddings": tied} | changes
        kind(text_config=text, vision_config=vision, tie_word_embeddings=tied).save_pretrained(tmp_path)
        return tmp_path / "config.json"

    return write


def model_of(config: Any) -> Any:
    """Of any size: without weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def counted(model: Any, *, only: str = "") -> dict[str, int]:
    found: Counter[str] = Counter()
    where = places(model)
    for name, parameter in model.named_parameters():
        if only in name:
            found[where[name].part] += parameter.numel()
    return {part: found[part] for part in PARTS}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_per_part_equal_those_of_transformers_model(write: Write, family: str, tied: bool) -> None:
    file = write(family, tied=tied)
    shape = read_shape(file)
    model = model_of(AutoConfig.from_pretrained(file.parent))
    assert shape.parameters == counted(model)
    layer = sum(one.numel() for one in model.model.language_model.layers[0].parameters())
    assert shape.layer == layer


@pytest.mark.parametrize(("name", "published"), [*zip(BUILT_IN, (8_292_166_656, 33_452_718_336), strict=True)])
def test_a_built_in_shape_is_transformers_model_and_has_as_many_parameters_as_its_card_says(
    name: str, published: int, tmp_path: Path
) -> None:
    shape = read_shape(name)
    file = Path(read_shape.__code__.co_filename).parent / "plans" / f"{name}.json"
    (tmp_path / "config.json").write_bytes(file.read_bytes())
    assert shape.parameters == counted(model_of(AutoConfig.from_pretrained(tmp_path)))
    assert sum(shape.parameters.values()) == published


@pytest.mark.parametrize("target", ["all", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("parts", [["llm"], ["vision", "connector", "llm"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_equal_those_that_peft_adds(write: Write, family: str, parts: list[Any], target: Any) -> None:
    file = write(family)
    model = model_of(AutoConfig.from_pretrained(file.parent))
    add_adapters(model, LoraConfig(rank=3, alpha=6, target=target), places(model), parts)
    assert read_shape(file).adapters(3, target, parts) == counted(model, only=".lora_")


def test_numbers_on_top_and_in_a_section_are_the_same(write: Write) -> None:
    nested = write("qwen2_5_vl")
    config = json.loads(nested.read_text())
    flat = nested.with_name("flat.json")
    flat.write_text(json.dumps(config.pop("text_config") | config))
    assert read_shape(flat) == read_shape(nested)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "model_type is None; qwen2_vl"),
        ('{"model_type": "llama"}', "model_type is 'llama'; qwen2_vl"),
        ('{"model_type": "qwen2_vl"}', "text_config.hidden_size is None, not a number above 0; correct it"),
        ('{"model_type": "qwen2_vl", "hidden_size": "8"}', "text_config.hidden_size is '8'"),
        ('{"model_type": "qwen2_vl", "text_config": []}', "text_config is no section"),
    ],
)
def test_a_config_that_says_too_little_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_shape(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)


def test_a_missing_config_is_told_with_the_names_that_are_built_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give a config.json, or one of qwen2.5-vl-7b, qwen2.5-vl-32b"):
        read_shape(tmp_path / "config.json")
