"""Objectives through the learner, on tiny models: against plain twins, whatever the micro-batches, and their theory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vtriune.grpo.objective import ObjectiveConfig
from vtriune.local import logprobs as logprobs_module
from vtriune.local.engine import LocalEngine
from vtriune.local.logprobs import logprobs_and_entropies
from vtriune.local.model import ModelConfig, VisionLanguageModel
from vtriune.local.rollout import RolloutConfig
from vtriune.local.update import Learner, Lesson, UpdateConfig
from vtriune.types import Sample

Load = Callable[..., VisionLanguageModel]
Plain = Callable[..., Tensor]
Gradients = Callable[[VisionLanguageModel], dict[str, Tensor]]
Watch = Callable[[VisionLanguageModel, Learner], list[dict[str, Tensor]]]

ADVANTAGES = ((1.0, -0.5, -0.5), (0.0, 0.0, 0.0), (-0.7, 0.2, 0.5))
OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"dual_clip": 1.5},
    {"loss": "gspo", "normaliser": "answers"},
    {"loss": "cispo"},
    {"normaliser": 12},
    {"kl_coefficient": 0.3},
    {"entropy_coefficient": 0.3, "normaliser": "answers"},
    {"truncated_is": 1.2},
    {"loss": "gspo", "kl_coefficient": 0.1, "entropy_coefficient": 0.2, "truncated_is": 1.2, "normaliser": "answers"},
]


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Path:
    return folders["qwen2_5_vl"]


def learner_on(vlm: VisionLanguageModel, objective: dict[str, Any], **settings: Any) -> Learner:
    fields = {"learning_rate": 1e-3, "warmup_ratio": 0.0, "max_grad_norm": 1e9} | settings
    return Learner(vlm, UpdateConfig.model_validate(fields), 1.0, ObjectiveConfig.model_validate(objective))


def lessons_of(
    vlm: VisionLanguageModel,
    samples: Sequence[Sample],
    plain_logprobs: Plain,
    off_policy: float = 0.0,
    advantages: Sequence[Sequence[float]] = ADVANTAGES,
) -> list[Lesson]:
    """A group of three answers per sample; old log-probs are the policy's own, moved by up to `off_policy`."""
    rng = np.random.default_rng(7)
    lessons = []
    for sample, group in zip(samples[:3], advantages, strict=True):
        prompt = vlm.encode(sample)
        ids = [rng.integers(0, 560, length) for length in rng.integers(1, 10, 3)]
        with torch.no_grad():
            own = [plain_logprobs(vlm, prompt, answer).numpy() for answer in ids]
        old = [lp + rng.uniform(-off_policy, off_policy, lp.shape).astype(np.float32) for lp in own]
        lessons.append(Lesson(prompt, ids, old, np.array(group)))
    return lessons


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Parameter by parameter, gradients of 0 and no gradient at all being the same."""
    for name in found.keys() | expected.keys():
        zero = torch.zeros_like(found[name] if name in found else expected[name])
        a, b = found.get(name, zero), expected.get(name, zero)
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=lambda text: f"{name}: {text}")  # noqa: B023


def nudge(vlm: VisionLanguageModel) -> None:
    """Move every weight a little, as training does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))


def entropy_of(vlm: VisionLanguageModel, distributions: Tensor) -> Tensor:
    """torch's own, over what is possible: (T, V) -> (T,)."""
    possible = [k for k in range(distributions.shape[1]) if k not in vlm.placeholder_ids]
    categorical = torch.distributions.Categorical(logits=distributions[:, possible])
    entropy: Tensor = categorical.entropy()  # type: ignore[no-untyped-call]
    return entropy


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_no_objective_depends_on_the_micro_batches(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch, objective: dict[str, Any]
) -> None:
    seen, figures = [], []
    for budget in (1, 100_000):
        vlm = load(model)
        learner = learner_on(vlm, objective, tokens_per_batch=budget)
        lessons = lessons_of(vlm, ragged, plain_logprobs, off_policy=0.6)
        nudge(vlm)
        steps = watch(vlm, learner)
        figures.append(learner.update(lessons, 0, 10))
        seen.append(steps[0])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4, abs=1e-5)
    assert all(np.isfinite(figure) for figure in figures[0].values())
    assert_equal(seen[0], seen[1], 1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("plain", [False, True])
def test_entropies_and_their_gradients_are_those_of_full_sequences(
    model: Path,
    load: Load,
    ragged: list[Sample],
    plain_distributions: Plain,
    gradients: Gradients,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    plain: bool,
) -> None:
    vlm = load(model, plain=plain)
    prompts = [vlm.encode(sample) for sample in ragged]
    answers = [[np.arange(5), np.arange(1)], [np.arange(3)], [np.arange(7), np.arange(2)], [np.arange(4)]]
    whole = []
    for prompt, group in zip(prompts, answers, strict=True):
        for ids in group:
            whole.append(entropy_of(vlm, plain_distributions(vlm, prompt, ids, temperature)))
    expected = torch.cat(whole)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(0)) / len(expected)
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    expected_gradients = gradients(vlm)
    for limit in (2**26, 5 * vlm.model.lm_head.out_features):
        monkeypatch.setattr(logprobs_module, "LOGITS_PER_CHUNK", limit)
        _, entropy = logprobs_and_entropies(vlm, prompts, answers, temperature)
        assert entropy is not None
        torch.testing.assert_close(entropy, expected, atol=1e-5, rtol=1e-5)
        (entropy * weights).sum().backward()  # type: ignore[no-untyped-call]
        assert_equal(gradients(vlm), expected_gradients, 1e-5)


def test_on_policy_clip_and_gspo_and_cispo_have_one_gradient(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    seen = []
    for objective in ({}, {"loss": "gspo"}, {"loss": "cispo"}, {"dual_clip": 3.0}, {"truncated_is": 2.0}):
        vlm = load(model)
        learner = learner_on(vlm, objective)
        steps = watch(vlm, learner)
        figures = learner.update(lessons_of(vlm, ragged, plain_logprobs), 0, 10)
        assert figures["grad_norm"] > 0
        seen.append(steps[0])
    for other in seen[1:]:
        assert_equal(other, seen[0], 1e-5)


def test_a_constant_and_the_number_of_answers_normalise_as_dr_grpo_and_grpo_have_it(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, gradients: Gradients, watch: Watch
) -> None:
    for normaliser in ("answers", 12.0):
        vlm = load(model)
        lessons = lessons_of(vlm, ragged, plain_logprobs)
        loss = torch.zeros(())
        for lesson in lessons:
            for ids, advantage in zip(lesson.token_ids, lesson.advantages, strict=True):
                length = len(ids) if normaliser == "answers" else normaliser
                logprobs = plain_logprobs(vlm, lesson.prompt, ids)
                loss = loss - advantage * logprobs.sum() / length / (3 * len(lessons))
        loss.backward()  # type: ignore[no-untyped-call]
        expected = gradients(vlm)
        learner = learner_on(vlm, {"normaliser": normaliser})
        seen = watch(vlm, learner)
        learner.update(lessons, 0, 10)
        assert_equal(seen[0], expected, 1e-5)


def test_the_divergence_is_zero_at_the_start_and_so_is_its_gradient(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    seen, figures = [], []
    for coefficient in (0.0, 10.0):
        vlm = load(model)
        learner = learner_on(vlm, {"kl_coefficient": coefficient})
        steps = watch(vlm, learner)
        figures.append(learner.update(lessons_of(vlm, ragged, plain_logprobs), 0, 10))
        seen.append(steps[0])
    assert "kl" not in figures[0]
    assert figures[1]["kl"] == pytest.approx(0, abs=1e-9)
    assert_equal(seen[0], seen[1], 1e-4)


def test_away_from_the_start_the_divergence_is_that_from_the_initial_weights_and_holds_the_policy_back(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, gradients: Gradients, watch: Watch
) -> None:
    vlm, initial = load(model), load(model)
    learner = learner_on(vlm, {"kl_coefficient": 0.5})
    nudge(vlm)
    moved = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    # Without any spread, which alone would teach nothing.
    lessons = lessons_of(vlm, ragged, plain_logprobs, advantages=((0.0, 0.0, 0.0),) * 3)
    kl, tokens = torch.zeros(()), sum(lesson.tokens for lesson in lessons)
    for lesson in lessons:
        for ids in lesson.token_ids:
            with torch.no_grad():
                reference = plain_logprobs(initial, lesson.prompt, ids)
            gap = reference - plain_logprobs(vlm, lesson.prompt, ids)
            kl = kl + (gap.exp() - 1 - gap).sum() / tokens
    (0.5 * kl).backward()  # type: ignore[no-untyped-call]
    expected = gradients(vlm)
    seen = watch(vlm, learner)
    figures = learner.update(lessons, 0, 10)
    assert figures["kl"] == pytest.approx(kl.item(), rel=1e-4)
    assert figures["kl"] > 0.001
    assert figures["loss"] == pytest.approx(0.5 * figures["kl"], rel=1e-4)
    assert_equal(seen[0], expected, 1e-5)
    # The step started from the present weights, not from the reference's: AdamW moves each by the rate and its decay.
    for name, value in vlm.model.named_parameters():
        assert (value - moved[name]).abs().max() <= 1e-3 * (1.01 + 0.01 * moved[name].abs().max()), name


def test_the_entropy_bonus_has_the_gradient_of_the_mean_entropy_and_raises_it(
    model: Path,
    load: Load,
    ragged: list[Sample],
    plain_logprobs: Plain,
    plain_distributions: Plain,
    gradients: Gradients,
    watch: Watch,
) -> None:
    vlm = load(model)
    lessons = lessons_of(vlm, ragged, plain_logprobs, advantages=((0.0, 0.0, 0.0),) * 3)

    def mean_entropy() -> Tensor:
        whole = []
        for lesson in lessons:
            for ids in lesson.token_ids:
                whole.append(entropy_of(vlm, plain_distributions(vlm, lesson.prompt, ids)))
        return torch.cat(whole).mean()

    before = mean_entropy()
    (-0.1 * before).backward()  # type: ignore[no-untyped-call]
    expected = gradients(vlm)
    learner = learner_on(vlm, {"entropy_coefficient": 0.1})
    seen = watch(vlm, learner)
    figures = learner.update(lessons, 0, 10)
    assert figures["policy_entropy"] == pytest.approx(before.item(), rel=1e-5)
    assert figures["loss"] == pytest.approx(-0.1 * before.item(), rel=1e-5)
    assert_equal(seen[0], expected, 1e-5)
    assert mean_entropy() > before


def test_where_the_sampler_is_the_policy_its_weights_are_1(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain
) -> None:
    vlm = load(model)
    figures = learner_on(vlm, {"truncated_is": 2.0}).update(lessons_of(vlm, ragged, plain_logprobs), 0, 10)
    assert figures["sampler_weight"] == pytest.approx(1, abs=1e-5)
    assert figures["logprob_gap"] < 1e-4


def test_a_sampler_that_differs_is_corrected_by_the_truncated_ratio_and_nothing_is_clipped_for_it(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, gradients: Gradients, watch: Watch
) -> None:
    vlm = load(model)
    lessons = lessons_of(vlm, ragged, plain_logprobs, off_policy=0.6)
    loss, tokens, weights = torch.zeros(()), sum(lesson.tokens for lesson in lessons), []
    for lesson in lessons:
        for ids, sampler, advantage in zip(lesson.token_ids, lesson.old_logprobs, lesson.advantages, strict=True):
            logprobs = plain_logprobs(vlm, lesson.prompt, ids)
            weight = (logprobs.detach() - torch.from_numpy(sampler)).exp().clamp(max=1.3)
            loss = loss - (advantage * weight * logprobs).sum() / tokens
            weights.append(weight)
    assert 0 < (torch.cat(weights) == 1.3).sum() < tokens
    loss.backward()  # type: ignore[no-untyped-call]
    expected = gradients(vlm)
    learner = learner_on(vlm, {"truncated_is": 1.3})
    seen = watch(vlm, learner)
    figures = learner.update(lessons, 0, 10)
    assert_equal(seen[0], expected, 1e-5)
    assert figures["clip_fraction"] == 0
    assert figures["logprob_gap"] == pytest.approx(0.6, abs=0.1)


def test_pi_old_is_recomputed_once_for_all_optimizer_steps_of_a_batch(
    model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain, watch: Watch
) -> None:
    """Later steps' ratios are to the policy before the first one: with a sampler that is right, nothing changes."""
    seen = []
    for objective in ({}, {"truncated_is": 2.0}):
        vlm = load(model)
        learner = learner_on(vlm, objective, prompts_per_update=1)
        steps = watch(vlm, learner)
        learner.update(lessons_of(vlm, ragged, plain_logprobs), 0, 10)
        seen.append(steps)
    for plain, corrected in zip(*seen, strict=True):
        assert_equal(corrected, plain, 1e-3)


def test_a_resumed_engine_is_held_to_the_recipes_model_not_to_the_checkpoint(
    model: Path, ragged: list[Sample], plain_logprobs: Plain, tmp_path: Path
) -> None:
    def engine() -> LocalEngine:
        return LocalEngine(
            ModelConfig(path=str(model), device="cpu"),
            RolloutConfig(max_new_tokens=6),
            UpdateConfig(learning_rate=1e-3, warmup_ratio=0.0),
            0,
            ObjectiveConfig(kl_coefficient=0.2, entropy_coefficient=0.01),
        )

    straight = engine()
    lessons = lessons_of(straight.vlm, ragged, plain_logprobs)
    straight.learner.update(lessons, 0, 10)
    straight.save(tmp_path / "checkpoint")
    resumed = engine()
    resumed.load(tmp_path / "checkpoint")
    assert straight.learner.update(lessons, 1, 10) == resumed.learner.update(lessons, 1, 10)
    assert straight.learner.update(lessons, 2, 10)["kl"] > 0
    resumed.learner.update(lessons, 2, 10)
    for (name, one), (_, other) in zip(
        straight.vlm.model.named_parameters(), resumed.vlm.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_lessons_are_left_as_they_were(model: Path, load: Load, ragged: list[Sample], plain_logprobs: Plain) -> None:
    vlm = load(model)
    lessons = lessons_of(vlm, ragged, plain_logprobs, off_policy=0.3)
    before = [replace(one, old_logprobs=[lp.copy() for lp in one.old_logprobs]) for one in lessons]
    learner_on(vlm, {"truncated_is": 2.0, "kl_coefficient": 0.1}).update(lessons, 0, 10)
    for one, other in zip(lessons, before, strict=True):
        assert not one.reference_logprobs
        assert not one.sampler_weights
        np.testing.assert_array_equal(np.concatenate(one.old_logprobs), np.concatenate(other.old_logprobs))
