"""What may not change log-probs: computing layers again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vtriune.local.logprobs import ALIKE, FEWEST, alike, response_logprobs
from vtriune.local.model import VisionLanguageModel
from vtriune.types import Sample


def test_layers_computed_again_in_the_backward_pass_give_the_same_gradients_and_keep_less(
    vlm: VisionLanguageModel, ragged: list[Sample], gradients: Callable[[VisionLanguageModel], dict[str, Tensor]]
) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    answers = [[np.arange(k, k + 9), np.arange(50, 54)] for k in range(len(prompts))]
    found, kept = [], []
    for recompute in (False, True):
        held = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logprobs = response_logprobs(vlm, prompts, answers, 1.0, recompute=recompute)
        kept.append(held)
        (logprobs**2).sum().backward()  # type: ignore[no-untyped-call]
        found.append((logprobs.detach(), gradients(vlm)))
    (plain, plain_gradients), (again, again_gradients) = found
    assert torch.equal(again, plain)
    assert again_gradients.keys() == plain_gradients.keys()
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(again_gradients[name], gradient, atol=1e-6, rtol=1e-5)
    assert kept[1] < kept[0] * 0.6  # the vision tower keeps all it did


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_log_probs_do_not_depend_on_what_is_batched(
    vlm: VisionLanguageModel, ragged: list[Sample], order: tuple[int, ...]
) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    answers = [[np.arange(k, k + 3 * k + 1), np.arange(9)] for k in range(len(prompts))]
    with torch.no_grad():
        alone = [response_logprobs(vlm, [prompts[k]], [answers[k]], 1.0) for k in order]
        together = response_logprobs(vlm, [prompts[k] for k in order], [answers[k] for k in order], 1.0)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@given(st.lists(st.integers(1, 60), max_size=60))
def test_answers_run_together_are_alike_or_few(lengths: list[int]) -> None:
    runs = list(alike(lengths))
    assert sorted(row for run in runs for row in run) == list(range(len(lengths)))
    for run, following in pairwise(runs):
        assert len(run) >= FEWEST
        # Whoever comes next differs too much from the longest of this run.
        assert lengths[following[0]] < ALIKE * lengths[run[0]]
    for run in runs:
        assert all(lengths[row] >= ALIKE * lengths[run[0]] for row in run[FEWEST:])
