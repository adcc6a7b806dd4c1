"""The policy update against plain twins: shared prompts, micro-batches, eq. 1, freezing and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vtriune.local import logprobs as logprobs_module
from vtriune.local.decoder import Prefix, run_prompts
from vtriune.local.logprobs import alike, response_logprobs
from vtriune.local.model import Encoded, VisionLanguageModel
from vtriune.local.parts import Part
from vtriune.local.update import Learner, Lesson, UpdateConfig, micro_batches, split
from vtriune.types import Sample

Load = Callable[..., VisionLanguageModel]
Plain = Callable[..., Tensor]
Gradients = Callable[[VisionLanguageModel], dict[str, Tensor]]
Watch = Callable[[VisionLanguageModel, Learner], list[dict[str, Tensor]]]


def answers_of(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Random answers of ordinary tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 560, length) for length in lengths]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Parameter by parameter, gradients of 0 and no gradient at all being the same."""
    for name in found.keys() | expected.keys():
        zero = torch.zeros_like(found[name] if name in found else expected[name])
        a, b = found.get(name, zero), expected.get(name, zero)
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sharing_a_prompt_gives_the_log_probs_and_gradients_of_full_sequences(
    vlm: VisionLanguageModel, ragged: list[Sample], plain_logprobs: Plain, gradients: Gradients, temperature: float
) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    answers = [answers_of([5, 1, 9]), answers_of([1], 1), answers_of([3, 12], 2), answers_of([4, 7], 3)]
    weights = torch.randn(42, generator=torch.Generator().manual_seed(0)) / 42

    expected = torch.cat(
        [
            plain_logprobs(vlm, prompt, answer, temperature)
            for prompt, group in zip(prompts, answers, strict=True)
            for answer in group
        ]
    )
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    expected_gradients = gradients(vlm)
    found = response_logprobs(vlm, prompts, answers, temperature)
    (found * weights).sum().backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_equal(gradients(vlm), expected_gradients, 1e-5)


@pytest.mark.parametrize("freeze", [[], ["llm"]])
def test_log_probs_in_chunks_are_those_of_all_at_once(
    folder: Path,
    load: Load,
    ragged: list[Sample],
    gradients: Gradients,
    monkeypatch: pytest.MonkeyPatch,
    freeze: list[Part],
) -> None:
    vlm = load(folder, freeze)
    prompts = [vlm.encode(sample) for sample in ragged]
    answers = [answers_of([5, 1, 9]), answers_of([1], 1), answers_of([3, 12], 2), answers_of([4, 7], 3)]
    weights = torch.randn(42, generator=torch.Generator().manual_seed(0)) / 42
    largest: list[int] = []
    vlm.model.lm_head.register_forward_hook(lambda _module, _args, logits: largest.append(logits.numel()))
    found = []
    for limit in (2**26, 5 * vlm.model.lm_head.out_features + 3):
        monkeypatch.setattr(logprobs_module, "LOGITS_PER_CHUNK", limit)
        largest.clear()
        logprobs = response_logprobs(vlm, prompts, answers, 0.7)
        (logprobs * weights).sum().backward()  # type: ignore[no-untyped-call]
        found.append((logprobs.detach(), gradients(vlm), max(largest) // vlm.model.lm_head.out_features))
    (plain, plain_gradients, all_at_once), (chunked, chunked_gradients, a_few) = found
    assert (all_at_once, a_few) == (42, 5)
    torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-6)
    assert chunked_gradients.keys() == plain_gradients.keys()
    assert_equal(chunked_gradients, plain_gradients, 1e-6)


def test_the_log_probs_of_a_text_only_batch_need_no_picture(
    vlm: VisionLanguageModel, sample: Callable[..., Sample], plain_logprobs: Plain
) -> None:
    prompts = [vlm.encode(sample("a", "Add 2 to 3.")), vlm.encode(sample("b", "Take 1 from 9, then add 4."))]
    answers = [answers_of([3, 1]), answers_of([6], 1)]
    expected = [
        plain_logprobs(vlm, prompts[0], answers[0][0]),
        plain_logprobs(vlm, prompts[0], answers[0][1]),
        plain_logprobs(vlm, prompts[1], answers[1][0]),
    ]
    found = response_logprobs(vlm, prompts, answers, 1.0)
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def test_a_batch_of_one_token_answers_needs_only_the_prompts(
    vlm: VisionLanguageModel, ragged: list[Sample], plain_logprobs: Plain
) -> None:
    prompts = [vlm.encode(sample) for sample in ragged]
    answers = [answers_of([1, 1], seed) for seed in range(len(prompts))]
    expected = [
        plain_logprobs(vlm, prompt, ids) for prompt, group in zip(prompts, answers, strict=True) for ids in group
    ]
    found = response_logprobs(vlm, prompts, answers, 1.0)
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def lessons_of(
    vlm: VisionLanguageModel,
    samples: Sequence[Sample],
    plain_logprobs: Plain,
    *,
    off_policy: float = 0.0,
    advantages: Sequence[Sequence[float]] = ((1.0, -0.5, -0.5), (-0.7, 0.2, 0.5), (0.0, 1.0, -1.0), (0.3, 0.3, -0.6)),
) -> list[Lesson]:
    """A group of three answers per sample; old log-probs are the policy's own, moved by up to `off_policy`."""
    rng = np.random.default_rng(7)
    lessons = []
    for k, (sample, group) in enumerate(zip(samples, advantages, strict=True)):
        prompt, ids = vlm.encode(sample), answers_of(rng.integers(1, 10, 3).tolist(), k)
        with torch.no_grad():
            own = [plain_logprobs(vlm, prompt, answer).numpy() for answer in ids]
        old = [lp + rng.uniform(-off_policy, off_policy, lp.shape).astype(np.float32) for lp in own]
        lessons.append(Lesson(prompt, ids, old, np.array(group)))
    return lessons


def equation_1(
    vlm: VisionLanguageModel, lessons: Sequence[Lesson], plain_logprobs: Plain, low: float = 0.2, high: float = 0.28
) -> tuple[Tensor, int]:
    """The loss written out token by token over the whole batch, and the number of clipped tokens."""
    objective, tokens, clipped = torch.zeros(()), 0, 0
    for lesson in lessons:
        for ids, old, advantage in zip(lesson.token_ids, lesson.old_logprobs, lesson.advantages, strict=True):
            for now, before in zip(plain_logprobs(vlm, lesson.prompt, ids), old, strict=True):
                ratio = torch.exp(now - float(before))
                limited = min(max(ratio.item(), 1 - low), 1 + high)
                if limited * advantage < ratio.item() * advantage:
                    objective, clipped = objective + limited * advantage, clipped + 1
                else:
                    objective = objective + ratio * advantage
                tokens += 1
    return -objective / tokens, clipped


def learner_on(vlm: VisionLanguageModel, **settings: Any) -> Learner:
    fields = {"learning_rate": 1e-3, "warmup_ratio": 0.0, "max_grad_norm": 1e9} | settings
    return Learner(vlm, UpdateConfig.model_validate(fields), temperature=1.0)


def test_the_update_is_eq_1_as_a_token_mean_over_the_whole_batch(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, gradients: Gradients, watch: Watch
) -> None:
    vlm = load(folder)
    lessons = lessons_of(vlm, ragged, plain_logprobs, off_policy=0.6)
    expected, clipped = equation_1(vlm, lessons, plain_logprobs)
    expected.backward()  # type: ignore[no-untyped-call]
    expected_gradients = gradients(vlm)
    tokens = sum(lesson.tokens for lesson in lessons)
    assert 0 < clipped < tokens  # else this test would see only one branch of eq. 1

    with torch.no_grad():
        gaps = [
            np.abs(plain_logprobs(vlm, lesson.prompt, ids).numpy() - old).max()
            for lesson in lessons
            for ids, old in zip(lesson.token_ids, lesson.old_logprobs, strict=True)
        ]

    learner = learner_on(vlm, tokens_per_batch=150)
    seen = watch(vlm, learner)
    figures = learner.update(lessons, 0, 10)

    assert figures["logprob_gap"] == pytest.approx(max(gaps), abs=1e-5)
    assert figures["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert figures["clip_fraction"] == pytest.approx(clipped / tokens)
    (found,) = seen
    assert_equal(found, expected_gradients, 1e-5)


def test_loss_and_gradients_do_not_depend_on_the_micro_batches(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    seen, figures = [], []
    for budget in (1, 150, 100_000):
        vlm = load(folder)
        learner = learner_on(vlm, tokens_per_batch=budget)
        step = watch(vlm, learner)
        figures.append(learner.update(lessons_of(vlm, ragged, plain_logprobs, off_policy=0.6), 0, 10))
        assert figures[-1].pop("logprob_gap") == pytest.approx(0.6, abs=0.1)  # a largest rounding error, not a sum
        seen.append(step[0])
    for other, gradient in zip(figures[:-1], seen[:-1], strict=True):
        assert other == pytest.approx(figures[-1], rel=1e-6, abs=1e-6)
        assert_equal(gradient, seen[-1], 1e-6)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 20), min_size=1, max_size=4)), max_size=12),
    budget=st.integers(1, 300),
)
def test_micro_batches_hold_every_lesson_once_and_keep_to_the_budget_or_to_one_lesson(
    shapes: list[tuple[int, list[int]]], budget: int
) -> None:
    lessons = []
    for prompt, lengths in shapes:
        encoded = Encoded("", np.zeros(prompt, dtype=np.int64))
        ids = [np.zeros(length, dtype=np.int64) for length in lengths]
        lessons.append(Lesson(encoded, ids, [], np.zeros(len(ids))))
    batches = list(micro_batches(lessons, budget))
    assert sorted(id(one) for batch in batches for one in batch) == sorted(id(one) for one in lessons)
    for batch in batches:
        prompts = len(batch) * max(len(one.prompt.ids) for one in batch)
        lengths = [len(ids) for one in batch for ids in one.token_ids]
        answers = sum(len(run) * max(lengths[row] for row in run) for run in alike(lengths))
        assert len(batch) == 1 or prompts + answers <= budget


def test_groups_without_spread_are_not_run_but_their_tokens_count(
    folder: Path,
    load: Load,
    ragged: list[Sample],
    plain_logprobs: Plain,
    gradients: Gradients,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = load(folder)
    advantages = ((1.0, -0.5, -0.5), (0.0, 0.0, 0.0), (0.0, 1.0, -1.0), (0.0, 0.0, 0.0))
    lessons = lessons_of(vlm, ragged, plain_logprobs, advantages=advantages)
    expected, _ = equation_1(vlm, lessons, plain_logprobs)
    expected.backward()  # type: ignore[no-untyped-call]
    expected_gradients = gradients(vlm)
    calls: list[int] = []

    def counted(vlm: VisionLanguageModel, prompts: Sequence[Encoded], **options: Any) -> Prefix:
        calls.append(len(prompts))
        return run_prompts(vlm, prompts, **options)

    monkeypatch.setattr(logprobs_module, "run_prompts", counted)

    learner = learner_on(vlm)
    seen = watch(vlm, learner)
    figures = learner.update(lessons, 0, 10)

    assert sum(calls) == 2
    assert figures["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert_equal(seen[0], expected_gradients, 1e-5)


def test_a_batch_without_any_spread_changes_nothing(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain
) -> None:
    vlm = load(folder)
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    figures = learner_on(vlm).update(
        lessons_of(vlm, ragged[:2], plain_logprobs, advantages=((0.0, 0.0, 0.0),) * 2), 0, 10
    )
    assert figures["grad_norm"] == figures["loss"] == 0.0
    assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())


def test_a_step_without_any_lesson_has_no_figures_and_changes_nothing(vlm: VisionLanguageModel) -> None:
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    assert learner_on(vlm).update([], 0, 10) == {}
    assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())


def test_off_policy_takes_several_optimizer_steps_and_leaves_the_trust_region_in_the_end(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    vlm = load(folder)
    learner = learner_on(vlm, prompts_per_update=1, learning_rate=3e-3)
    seen = watch(vlm, learner)
    lessons = lessons_of(vlm, ragged, plain_logprobs)

    first = learner.update(lessons, 0, 10)
    assert len(seen) == first["optimizer_steps"] == len(lessons)
    assert first["skipped_updates"] == 0
    assert first["staleness"] == (len(lessons) - 1) / 2  # 0 steps old at the first chunk, len - 1 at the last
    assert first["logprob_gap"] < 1e-5  # of the first optimizer step, where the policy is still the sampling one
    again = learner.update(lessons, 1, 10)
    assert again["clip_fraction"] > 0
    assert again["logprob_gap"] > 0.28


def test_every_off_policy_step_follows_eq_1_of_its_own_prompts_at_the_weights_of_that_moment(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, gradients: Gradients, watch: Watch
) -> None:
    vlm, twin = load(folder), load(folder)
    lessons = lessons_of(vlm, ragged, plain_logprobs)
    learner = learner_on(vlm, prompts_per_update=2)
    seen = watch(vlm, learner)
    learner.update(lessons, 0, 10)

    learner_on(twin).update(lessons[:2], 0, 10)
    loss, _ = equation_1(twin, lessons[2:], plain_logprobs)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_equal(seen[1], gradients(twin), 1e-5)


@given(prompts=st.integers(1, 200), most=st.integers(1, 70))
def test_optimizer_steps_see_nearly_equal_numbers_of_prompts_in_the_order_given(prompts: int, most: int) -> None:
    chunks = split(range(prompts), most)
    assert [k for chunk in chunks for k in chunk] == list(range(prompts))
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(chunks) == math.ceil(prompts / most)


def test_four_prompts_of_at_most_three_are_two_steps(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    vlm = load(folder)
    learner = learner_on(vlm, prompts_per_update=3)
    seen = watch(vlm, learner)
    assert learner.update(lessons_of(vlm, ragged, plain_logprobs), 0, 10)["optimizer_steps"] == len(seen) == 2


@pytest.mark.parametrize("poison", ["advantage", "weight"])
def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch, poison: str
) -> None:
    vlm = load(folder)
    lessons = lessons_of(vlm, ragged, plain_logprobs)
    learner = learner_on(vlm, prompts_per_update=2)
    learner.update(lessons, 0, 10)
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    seen = watch(vlm, learner)
    if poison == "advantage":
        lessons[0].advantages[0] = np.inf
    else:
        next(one for one in vlm.model.parameters() if one.ndim > 1).register_hook(lambda g: torch.full_like(g, np.nan))

    figures = learner.update(lessons, 1, 10)

    assert all(np.isfinite(figure) for figure in figures.values())
    if poison == "advantage":  # only the first of the two
        assert len(seen) == figures["optimizer_steps"] == figures["skipped_updates"] == 1
        assert figures["staleness"] == 0  # a step that is not taken makes nothing older
        assert figures["grad_norm"] > 0
        assert all(value.isfinite().all() for value in vlm.model.state_dict().values())
    else:
        assert figures == {"optimizer_steps": 0, "skipped_updates": 2, "staleness": 0}
        assert all(torch.equal(value, before[name]) for name, value in vlm.model.state_dict().items())
    assert all(parameter.grad is None for parameter in vlm.model.parameters())


def test_frozen_parts_stay_bit_identical_and_the_others_learn(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain
) -> None:
    vlm = load(folder, freeze=["vision", "connector"])
    before = {name: value.clone() for name, value in vlm.model.named_parameters()}
    figures = learner_on(vlm, weight_decay=0.1).update(lessons_of(vlm, ragged, plain_logprobs), 0, 10)
    changed = {name for name, value in vlm.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if vlm.places[name].part == "llm"}
    assert "grad_norm_llm" in figures
    assert "grad_norm_vision" not in figures


def test_each_part_has_its_own_learning_rate_and_gradient_norm(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    vlm = load(folder)
    rates = {"vision": 0.0, "connector": 1e-4, "llm": 1e-3}
    learner = learner_on(vlm, learning_rate=rates, weight_decay=0.0)
    seen = watch(vlm, learner)
    before = {name: value.detach().clone() for name, value in vlm.model.named_parameters()}
    figures = learner.update(lessons_of(vlm, ragged, plain_logprobs), 0, 10)

    total = 0.0
    for part, rate in rates.items():
        moved = [
            (v - before[n]).abs().max().item() for n, v in vlm.model.named_parameters() if vlm.places[n].part == part
        ]
        # AdamW's first step moves every weight by the learning rate.
        assert max(moved) == pytest.approx(rate, rel=1e-2)
        assert figures[f"learning_rate_{part}"] == rate
        squares = sum(float((g.double() ** 2).sum()) for n, g in seen[0].items() if vlm.places[n].part == part)
        assert figures[f"grad_norm_{part}"] == pytest.approx(squares**0.5, rel=1e-5)
        total += squares
    assert figures["grad_norm"] == pytest.approx(total**0.5, rel=1e-5)


def test_gradients_are_clipped_to_the_total_norm_over_all_parts(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    seen, norms = [], []
    for limit in (1e9, 0.01):
        vlm = load(folder)
        learner = learner_on(vlm, max_grad_norm=limit)
        steps = watch(vlm, learner)
        norms.append(learner.update(lessons_of(vlm, ragged, plain_logprobs), 0, 10)["grad_norm"])
        seen.append(steps[0])
    free, clipped = seen
    assert norms[0] == norms[1] > 0.01
    assert_equal(clipped, {name: gradient * (0.01 / norms[0]) for name, gradient in free.items()}, 1e-7)


def test_the_rate_warms_up_linearly_over_its_share_of_all_steps_and_then_stays(vlm: VisionLanguageModel) -> None:
    learner = learner_on(vlm, learning_rate=2e-6, warmup_ratio=0.05)
    rates = [learner.learning_rate("llm", step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4e-6, 0.8e-6, 1.2e-6, 1.6e-6, 2e-6])
    assert set(rates[5:]) == {2e-6}
    assert learner_on(vlm, learning_rate=2e-6, warmup_ratio=0.0).learning_rate("llm", 0, 100) == 2e-6
    assert learner.learning_rate("llm", 0, 3) == 2e-6  # 5 % of three steps are none


def test_a_step_that_teaches_nothing_is_no_sign_of_health(
    folder: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain
) -> None:
    learner = learner_on(load(folder))
    learner.skipped_in_a_row = 3
    for advantages, left in (((0.0, 0.0, 0.0), 3), ((1.0, 0.0, -1.0), 0)):
        learner.update(lessons_of(learner.vlm, ragged[:1], plain_logprobs, advantages=(advantages,)), 0, 10)
        assert learner.skipped_in_a_row == left
