"""The reference path against the plain twin of the tests, which shares no code with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vtriune.local import plain
from vtriune.local.logprobs import response_logprobs
from vtriune.local.model import VisionLanguageModel
from vtriune.types import Sample


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_gradients_are_those_of_the_twin(
    folder: Path,
    load: Callable[..., VisionLanguageModel],
    ragged: list[Sample],
    plain_logprobs: Callable[..., Tensor],
    gradients: Callable[[VisionLanguageModel], dict[str, Tensor]],
    temperature: float,
) -> None:
    vlm = load(folder, plain=True)
    prompts, answer = [vlm.encode(sample) for sample in ragged], np.arange(7) + 40
    found = response_logprobs(vlm, prompts, [[answer]] * len(prompts), temperature)
    found.sum().backward()  # type: ignore[no-untyped-call]
    found_gradients = gradients(vlm)
    expected = torch.cat([plain_logprobs(vlm, prompt, answer, temperature) for prompt in prompts])
    expected.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    for name, gradient in gradients(vlm).items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-5, rtol=1e-5)


def test_the_next_tokens_distribution_is_a_distribution_without_placeholders(
    vlm: VisionLanguageModel, ragged: list[Sample]
) -> None:
    distribution = plain.next_distribution(vlm, vlm.encode(ragged[0]), np.arange(3), 1.0).exp()
    assert distribution.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert not distribution[0, list(vlm.placeholder_ids)].any()
