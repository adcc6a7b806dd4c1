"""Sampling against plain twins and against transformers' own generate; placeholders; independence of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vtriune.local import rollout as rollout_module
from vtriune.local.decoder import Prefix, run_prompts, run_tokens
from vtriune.local.engine import LocalEngine
from vtriune.local.model import Encoded, VisionLanguageModel
from vtriune.local.rollout import _inverse_cdf, generate, remove_placeholders, uniforms
from vtriune.types import FinishReason, Rollout, Sample

Load = Callable[..., VisionLanguageModel]
Plain = Callable[..., Tensor]


def draws_of(samples: Sequence[Sample], group: int, length: int, step: int = 0) -> np.ndarray:
    return np.stack([uniforms(0, step, sample.id, group, length) for sample in samples])


def generated(
    vlm: VisionLanguageModel,
    prompts: Sequence[Encoded],
    draws: np.ndarray | None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    budget: int = 10_000,
) -> list[list[Rollout]]:
    """`generate`, in the order of the prompts."""
    group = 1 if draws is None else draws.shape[1]
    given = None if draws is None else draws.__getitem__
    found = dict(
        generate(
            vlm, prompts, given, group=group, max_new_tokens=max_new_tokens, temperature=temperature, budget=budget
        )
    )
    return [found[number] for number in range(len(prompts))]


def assert_same(found: Rollout, expected: Rollout) -> None:
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    assert (found.text, found.finish) == (expected.text, expected.finish)
    assert found.entropy == pytest.approx(expected.entropy, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_log_probs_and_entropies_are_those_of_full_sequences(
    vlm: VisionLanguageModel, ragged: list[Sample], plain_distributions: Plain, temperature: float
) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    groups = generated(vlm, prompts, draws_of(ragged, 4, 10), max_new_tokens=10, temperature=temperature)
    assert [len(group) for group in groups] == [4] * len(ragged)
    for prompt, group in zip(prompts, groups, strict=True):
        for one in group:
            with torch.no_grad():
                plain = plain_distributions(vlm, prompt, one.token_ids, temperature).double()
            expected = plain[torch.arange(len(plain)), torch.from_numpy(one.token_ids)]
            np.testing.assert_allclose(one.logprobs, expected, atol=1e-5, rtol=0)
            possible = plain.clamp_min(-1e9)
            assert one.entropy == pytest.approx(-(possible.exp() * possible).sum(-1).mean().item(), abs=1e-5)
            assert one.logprobs.dtype == np.float32
            assert one.token_ids.dtype == np.int64


def test_an_answer_stops_at_its_first_end_token_or_is_cut_at_the_limit(
    vlm: VisionLanguageModel, ragged: list[Sample]
) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    groups = generated(vlm, prompts, draws_of(ragged, 8, 7), max_new_tokens=7)
    answers = [one for group in groups for one in group]
    assert {one.finish for one in answers} == set(FinishReason)
    for one in answers:
        ends = np.isin(one.token_ids, vlm.eos_ids)
        assert not ends[:-1].any()
        assert (one.finish is FinishReason.STOP) == ends[-1]
        assert one.finish is FinishReason.STOP or len(one.token_ids) == 7
        assert one.text == vlm.tokenizer.decode(one.token_ids, skip_special_tokens=True)


def test_one_token_at_most_is_cut_unless_it_is_an_end(vlm: VisionLanguageModel, ragged: list[Sample]) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    for group in generated(vlm, prompts, draws_of(ragged, 6, 1), max_new_tokens=1):
        for one in group:
            assert len(one.token_ids) == 1
            assert (one.finish is FinishReason.STOP) == (one.token_ids[0] in vlm.eos_ids)


def test_greedy_answers_are_those_of_transformers(vlm: VisionLanguageModel, ragged: list[Sample]) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    found = generated(vlm, prompts, None, max_new_tokens=12)
    for prompt, (one,) in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt.ids)[None]
        pictures = {"pixel_values": prompt.pictures.pixel_values, "image_grid_thw": prompt.pictures.grid_thw}
        expected = vlm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == vlm.model.config.image_token_id).long(),
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=list(vlm.placeholder_ids),
            **(pictures if prompt.pictures.grid_thw is not None else {}),
        )
        assert one.token_ids.tolist() == expected[0, len(prompt.ids) :].tolist()


def test_an_answer_does_not_depend_on_what_it_is_batched_with(
    folder: Path, engine: Callable[..., LocalEngine], ragged: list[Sample]
) -> None:
    together, alone = engine(folder, cache_tokens=1000), engine(folder, cache_tokens=1)
    together.encode(ragged)
    alone.encode(ragged[::-1])
    for size in (5, None):
        expected = {group.sample.id: group for group in together.generate(ragged, 3, size)}
        found = {group.sample.id: group for group in alone.generate(ragged[::-1], 3, size)}
        assert found.keys() == expected.keys() == {sample.id for sample in ragged}
        for name, group in found.items():
            for one, other in zip(group.rollouts, expected[name].rollouts, strict=True):
                assert_same(one, other)


def many(ragged: Sequence[Sample], times: int) -> list[Sample]:
    return [replace(sample, id=f"{sample.id} {k}") for k in range(times) for sample in ragged]


@pytest.mark.parametrize("refill", [0.0, 0.5, 1.0])
def test_prompts_that_wait_take_the_places_of_those_that_are_finished_and_change_nothing(
    vlm: VisionLanguageModel, ragged: list[Sample], monkeypatch: pytest.MonkeyPatch, refill: float
) -> None:
    samples = many(ragged, 3)
    prompts, draws = [vlm.encode(sample) for sample in samples], draws_of(samples, 6, 12)
    monkeypatch.setattr(rollout_module, "REFILL", refill)
    at_once = generated(vlm, prompts, draws, max_new_tokens=12, budget=100_000)
    longest = max(len(prompt.ids) for prompt in prompts)
    prefilled: list[int] = []

    def noted(vlm: VisionLanguageModel, some: Sequence[Encoded]) -> Prefix:
        prefilled.append(len(some))
        return run_prompts(vlm, some)

    monkeypatch.setattr(rollout_module, "run_prompts", noted)
    in_turn = generated(vlm, prompts, draws, max_new_tokens=12, budget=4 * (longest + 6 * 12))
    assert prefilled[0] == 4 and sum(prefilled) == len(samples) and len(prefilled) > 2
    assert len({len(one.token_ids) for group in at_once for one in group}) > 3
    for group, others in zip(in_turn, at_once, strict=True):
        for one, other in zip(group, others, strict=True):
            assert_same(one, other)


def test_whoever_takes_a_group_can_compute_gradients_meanwhile(vlm: VisionLanguageModel, ragged: list[Sample]) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    groups = generate(vlm, prompts, lambda number: draws_of(ragged, 2, 6)[number], group=2, max_new_tokens=6)
    taken = 0
    for _ in groups:
        taken += 1
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled(vlm.device.type)
    assert taken == len(ragged)


def test_prefilling_in_pieces_and_drawing_row_by_row_change_nothing(
    vlm: VisionLanguageModel, ragged: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = many(ragged, 2)
    prompts, draws = [vlm.encode(sample) for sample in samples], draws_of(samples, 3, 8)
    expected = generated(vlm, prompts, draws, max_new_tokens=8)
    monkeypatch.setattr(rollout_module, "PREFILL", 2 * max(len(prompt.ids) for prompt in prompts))
    monkeypatch.setattr(rollout_module, "LOGITS_PER_CHUNK", 5 * vlm.model.lm_head.out_features)
    for group, others in zip(generated(vlm, prompts, draws, max_new_tokens=8), expected, strict=True):
        for one, other in zip(group, others, strict=True):
            assert_same(one, other)


def test_a_group_is_told_as_soon_as_its_last_answer_is_finished(
    vlm: VisionLanguageModel, ragged: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = many(ragged, 2)
    prompts, draws = [vlm.encode(sample) for sample in samples], draws_of(samples, 3, 12)
    steps = 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return run_tokens(*arguments)

    monkeypatch.setattr(rollout_module, "run_tokens", counted)
    for _, rollouts in generate(vlm, prompts, draws.__getitem__, group=3, max_new_tokens=12):
        assert steps == max(len(one.token_ids) for one in rollouts) - 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_plain_way_samples_the_same(
    folder: Path, load: Load, vlm: VisionLanguageModel, ragged: list[Sample], temperature: float
) -> None:
    plain = load(folder, plain=True)
    for draws in (draws_of(ragged, 3, 6), None):
        expected, found = (
            generated(model, [model.encode(one) for one in ragged], draws, max_new_tokens=6, temperature=temperature)
            for model in (plain, vlm)
        )
        for group, others in zip(found, expected, strict=True):
            for one, other in zip(group, others, strict=True):
                assert_same(one, other)


def test_placeholders_are_never_sampled_however_likely_the_model_finds_them(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain
) -> None:
    vlm = load(folder)
    bias = torch.zeros(vlm.model.lm_head.out_features)
    bias[list(vlm.placeholder_ids)] = 100.0
    bias[:5] = -1e9  # probability zero, like the placeholders' after they are masked
    vlm.model.lm_head.bias = nn.Parameter(bias)
    prompts = [vlm.encode(sample) for sample in ragged]
    draws = draws_of(ragged, 6, 8)
    draws[:, 0] = 0.0
    draws[:, 1] = np.nextafter(1.0, 0.0)  # the placeholders are the vocabulary's last tokens here
    for chosen in (draws, None):
        for prompt, group in zip(prompts, generated(vlm, prompts, chosen, max_new_tokens=8), strict=True):
            for one in group:
                assert not np.isin(one.token_ids, [*range(5), *vlm.placeholder_ids]).any()
                with torch.no_grad():
                    expected = plain_logprobs(vlm, prompt, one.token_ids)
                np.testing.assert_allclose(one.logprobs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_the_softmax_says(
    vlm: VisionLanguageModel, ragged: list[Sample], plain_distributions: Plain, temperature: float
) -> None:
    count = 3000
    for sample in ragged[:2]:
        prompt = vlm.encode(sample)
        (group,) = generated(vlm, [prompt], draws_of([sample], count, 1), max_new_tokens=1, temperature=temperature)
        observed = np.bincount([one.token_ids[0] for one in group], minlength=vlm.model.lm_head.out_features)
        with torch.no_grad():
            expected = plain_distributions(vlm, prompt, np.array([0]), temperature)[0].double().exp().numpy() * count
        assert observed[expected == 0].sum() == 0
        common = expected >= 5
        pooled = [np.append(counts[common], counts[~common].sum()) for counts in (observed, expected)]
        assert common.sum() > 5
        assert scipy.stats.chisquare(pooled[0], pooled[1] * count / pooled[1].sum()).pvalue > 1e-3


def test_a_large_vocabulary_is_sampled_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    probabilities = torch.softmax(torch.from_numpy(rng.normal(0, 1, (4, 150_000)).astype(np.float32)), -1)
    numbers = rng.random(4)
    found = _inverse_cdf(probabilities, torch.from_numpy(numbers)).tolist()
    cdf = probabilities.double().numpy().cumsum(-1)
    expected = [int(np.searchsorted(row, u * row[-1], side="right")) for row, u in zip(cdf, numbers, strict=True)]
    assert found == expected


def test_random_numbers_depend_on_seed_step_and_sample_and_on_nothing_else() -> None:
    first = uniforms(0, 1, "a#1", 3, 5)
    assert first.shape == (3, 5)
    assert ((first >= 0) & (first < 1)).all()
    np.testing.assert_array_equal(first, uniforms(0, 1, "a#1", 3, 5))
    for other in (uniforms(1, 1, "a#1", 3, 5), uniforms(0, 2, "a#1", 3, 5), uniforms(0, 1, "a#2", 3, 5)):
        assert not np.isclose(first, other).any()


@given(ids=st.lists(st.integers(0, 9), max_size=20), before=st.integers(0, 3))
def test_placeholders_of_another_sampler_are_removed_with_their_log_probs_and_counted(
    ids: list[int], before: int
) -> None:
    tokens = np.array(ids, dtype=np.int64)
    logprobs = -np.arange(len(ids), dtype=np.float32)
    found = remove_placeholders(Rollout(tokens, logprobs, "text", FinishReason.STOP, 0.5, before), (8, 9))
    kept = [k for k, token in enumerate(ids) if token not in (8, 9)]
    assert found.token_ids.tolist() == [ids[k] for k in kept]
    assert found.logprobs.tolist() == [float(-k) for k in kept]
    assert found.spurious_tokens == before + len(ids) - len(kept)
    assert (found.text, found.finish, found.entropy) == ("text", FinishReason.STOP, 0.5)
