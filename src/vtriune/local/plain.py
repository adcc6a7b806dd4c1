"""The reference: transformers' own forward pass over prompt + answer, one answer at a time. Nothing is shared, padded,
cached or chunked. `model.plain` selects it; tests and benchmarks compare the fast way with it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vtriune.local.model import Encoded, VisionLanguageModel


def hidden_states(vlm: VisionLanguageModel, prompt: Encoded, answer: np.ndarray) -> Tensor:
    """(T + 1, H): of the prompt's last token and of each token of an answer of T."""
    ids = torch.from_numpy(np.concatenate([prompt.ids, answer]))[None]
    positions, _ = vlm.model.model.get_rope_index(
        ids, mm_token_type_ids=(ids == vlm.placeholder_ids[0]).long(), image_grid_thw=prompt.pictures.grid_thw
    )
    pictures = {"pixel_values": prompt.pictures.pixel_values, "image_grid_thw": prompt.pictures.grid_thw}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
    inputs |= {name: value for name, value in pictures.items() if value is not None}
    with vlm.autocast():
        found: Tensor = vlm.model.model(
            **{name: value.to(vlm.device) for name, value in inputs.items()}, use_cache=False
        ).last_hidden_state[0, len(prompt.ids) - 1 :]
    return found


def distributions(vlm: VisionLanguageModel, prompt: Encoded, answer: np.ndarray, temperature: float) -> Tensor:
    """(T, V) log-probabilities that an answer's tokens were drawn by, with gradient."""
    with vlm.autocast():
        return torch.log_softmax(vlm.logits(hidden_states(vlm, prompt, answer)[:-1], temperature), -1)


def logprobs(vlm: VisionLanguageModel, prompt: Encoded, answer: np.ndarray, temperature: float) -> Tensor:
    """(T,) log pi of an answer's tokens, with gradient."""
    tokens = torch.from_numpy(answer).to(vlm.device)
    return distributions(vlm, prompt, answer, temperature).gather(-1, tokens[:, None])[:, 0]


def next_distribution(vlm: VisionLanguageModel, prompt: Encoded, answer: np.ndarray, temperature: float) -> Tensor:
    """(1, V) log-probabilities of the token that follows."""
    with vlm.autocast():
        return torch.log_softmax(vlm.logits(hidden_states(vlm, prompt, answer)[-1:], temperature), -1)
