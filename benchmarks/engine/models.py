"""Random Qwen2.5-VL models of two sizes, written as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtriune.playground.base import SPECIAL, build_tokenizer

NEVER = "<|image_pad|>"
"""The end token here. Both samplers suppress it, so every answer has its full length on both sides."""

TINY: dict[str, Any] = {
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 4,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [1],
    },
}
LARGE: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
"""The sizes of Qwen2.5-VL-3B."""


def reduced(sizes: dict[str, Any]) -> dict[str, Any]:
    """The same built narrower and shallower, so that a CPU can run the code of the large model's path."""
    text = sizes["text_config"] | {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    vision = sizes["vision_config"] | {
        "depth": 2,
        "hidden_size": 160,
        "intermediate_size": 320,
        "num_heads": 2,
        "out_hidden_size": 256,
        "fullatt_block_indexes": [1],
    }
    return {"text_config": text, "vision_config": vision}


def write_model(folder: Path, sizes: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    """A transformers folder with random weights; a larger vocabulary than the tokenizer's is padding."""
    tokenizer = build_tokenizer(0)
    tokenizer.eos_token = NEVER
    token = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    ids = {"bos_token_id": token["<|endoftext|>"], "pad_token_id": token["<|endoftext|>"], "eos_token_id": token[NEVER]}
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": len(tokenizer), "tie_word_embeddings": True, **ids, **sizes["text_config"]},
        vision_config={
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            **sizes["vision_config"],
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token[NEVER]
    model.generation_config.pad_token_id = token["<|endoftext|>"]
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 28**2, "longest_edge": 4096 * 28**2}).save_pretrained(folder)
