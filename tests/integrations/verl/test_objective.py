"""Every objective is the same in verl: its loss, as our overrides configure it, against the learner's, on log-probs of
one model.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vtriune
from vtriune.local.logprobs import logprobs_and_entropies
from vtriune.local.model import Encoded, VisionLanguageModel
from vtriune.local.update import Learner, Lesson
from vtriune.recipe import Recipe
from vtriune.types import Message, RewardSpec, Sample

if find_spec("verl") is None:
    pytest.skip("verl isn't installed here: make test-verl", allow_module_level=True)

from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from vtriune.integrations.verl.main import compose_config
from vtriune.integrations.verl.settings import Settings

MODEL = Path(vtriune.__file__).parent / "playground" / "base_model"
REWARD = RewardSpec("mathverify", "1")
LENGTHS = ([3, 9, 1], [12, 5], [7, 7, 2, 4])
"""Tokens of the answers with a verdict to each of three prompts."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "paper": {},
    "dual clip": {"dual_clip": 1.5},
    "answers": {"normaliser": "answers"},
    "constant": {"normaliser": 40.0},
    "kl and entropy": {"kl_coefficient": 0.3, "entropy_coefficient": 0.2},
    "kl and entropy of answers": {"kl_coefficient": 0.3, "entropy_coefficient": 0.2, "normaliser": "answers"},
    "kl with a constant": {"kl_coefficient": 0.3, "normaliser": 40.0},
    "gspo": {"loss": "gspo", "normaliser": "answers"},
    "gspo over tokens": {"loss": "gspo"},
    "cispo": {"loss": "cispo"},
    "sampler weights": {"truncated_is": 1.2},
    "sampler weights of answers": {"truncated_is": 1.2, "normaliser": "answers"},
}


def recipe_of(objective: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "/data",
            "steps": 10,
            "engine": "verl",
            "model": {"path": str(MODEL), "device": "cpu"},
            "data": {"train": [{"path": "a"}], "test": [{"path": "b"}]},
            "rollout": {"prompts_per_step": 8, "temperature": 0.7},
            "update": {"epsilon_low": 0.1, "epsilon_high": 0.15, "max_grad_norm": 1e9},
            "objective": objective,
            "verl": {"gpus_per_node": 1},
        }
    )


def nested(rows: list[Any]) -> Any:
    """Rows of different lengths, as verl keeps them."""
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


@pytest.fixture(scope="module")
def loaded() -> tuple[VisionLanguageModel, dict[str, Tensor]]:
    """The model, and its weights to begin each test with."""
    vlm = VisionLanguageModel(recipe_of({}).model)
    return vlm, {name: weight.clone() for name, weight in vlm.model.state_dict().items()}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_loss_gradient_and_figures_are_those_of_the_learner(
    objective: dict[str, Any], loaded: tuple[VisionLanguageModel, dict[str, Tensor]]
) -> None:
    recipe = recipe_of(objective)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vlm, start = loaded
    vlm.model.load_state_dict(start)
    learner = Learner(vlm, recipe.update, recipe.rollout.temperature, recipe.objective)
    questions = [(Message("user", "What is " + "1 + " * k + "1?"),) for k in range(len(LENGTHS))]
    prompts = [vlm.encode(Sample(str(k), "a", "a", asked, (), REWARD)) for k, asked in enumerate(questions)]
    answers = [[rng.integers(0, 300, length) for length in lengths] for lengths in LENGTHS]
    asked = vlm, prompts, answers, recipe.rollout.temperature
    reference = logprobs_and_entropies(*asked)[0].detach().numpy()
    with torch.no_grad():
        for parameter in vlm.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std(), alpha=0.01)
    logprobs, entropies = logprobs_and_entropies(*asked)
    present = logprobs.detach().numpy()
    sampler = present + rng.normal(0, 0.3, len(present)).astype(np.float32)
    advantages = [rng.normal(0, 1, len(lengths)) for lengths in LENGTHS]

    loss, figures = of_verl(recipe, prompts, answers, advantages, logprobs, entropies, sampler, reference)
    trained = [one for some in learner.parameters.values() for one in some]
    gradient = torch.autograd.grad(loss, trained, allow_unused=True)
    norm = torch.stack([one.norm() for one in gradient if one is not None]).norm().item()

    pieces = iter(np.split(sampler, np.cumsum([length for lengths in LENGTHS for length in lengths])[:-1]))
    lessons = [
        Lesson(prompt, ids, [next(pieces) for _ in ids], worth)
        for prompt, ids, worth in zip(prompts, answers, advantages, strict=True)
    ]
    expected = learner.update(lessons, 5, 10)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)
    assert norm == pytest.approx(expected["grad_norm"], rel=1e-4)
    clipped = figures["actor/pg_clipfrac"].aggregate() + figures["actor/pg_clipfrac_lower"].aggregate()
    assert clipped == pytest.approx(expected["clip_fraction"], abs=1e-6)
    assert (clipped > 0) == (recipe.objective.truncated_is is None), "nothing to compare"
    if recipe.objective.kl_coefficient and recipe.objective.normaliser == "tokens":
        assert figures["kl_loss"].aggregate() == pytest.approx(expected["kl"], rel=1e-4)


def of_verl(
    recipe: Recipe,
    prompts: list[Encoded],
    answers: list[list[np.ndarray]],
    advantages: list[np.ndarray],
    logprobs: Tensor,
    entropies: Tensor | None,
    sampler: np.ndarray,
    reference: np.ndarray,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's loss and figures; it is given one more answer, which has no verdict, as our trainer leaves it."""
    config = compose_config(Settings(recipe, Path("/runs/a")))
    lengths = [*(length for some in LENGTHS for length in some), 6]
    prompt_ids = [prompt.ids for prompt, some in zip(prompts, LENGTHS, strict=True) for _ in some] + [prompts[0].ids]
    worth = [*np.concatenate(advantages).astype(np.float32), 0.0]

    def rows(values: Any) -> list[Tensor]:
        return list(torch.split(torch.cat([torch.as_tensor(values), torch.zeros(lengths[-1])]), lengths))

    def of_sequences(values: Any) -> Any:
        """As a model gives them: at each token what it says of the next one."""
        return nested([F.pad(row, (len(ids) - 1, 1)) for ids, row in zip(prompt_ids, rows(values), strict=True)])

    weigh = recipe.objective.truncated_is is not None
    data = {
        "prompts": nested(prompt_ids),
        "responses": nested([*(ids for some in answers for ids in some), np.zeros(lengths[-1], dtype=np.int64)]),
        "response_mask": nested(rows(torch.ones(len(logprobs)))),
        "old_log_probs": nested(rows(logprobs.detach() if weigh else sampler)),
        "rollout_log_probs": nested(rows(sampler)),
        "advantages": nested([torch.full((length,), one) for one, length in zip(worth, lengths, strict=True)]),
        "ref_log_prob": nested(rows(reference)),
    }
    batch = TensorDict(data, batch_size=len(lengths))
    if weigh:
        padded = DataProto(batch.select("old_log_probs", "rollout_log_probs", "response_mask").to_padded_tensor())
        corrected, _ = compute_rollout_correction_and_add_to_batch(padded, config.algorithm.rollout_correction)
        weights = corrected.batch["rollout_is_weights"]
        batch["rollout_is_weights"] = nested([row[:length] for row, length in zip(weights, lengths, strict=True)])
    counts = {"batch_num_tokens": len(logprobs), "global_batch_size": len(lengths) - 1}  # as engine.py makes them
    tensordict_utils.assign_non_tensor(batch, dp_size=1, **counts)
    output = {"log_probs": of_sequences(logprobs)}
    if recipe.objective.entropy_coefficient:
        output["entropy"] = of_sequences(entropies)
    loss, figures = ppo_loss(omega_conf_to_dataclass(config.actor_rollout_ref.actor), output, batch)
    return loss, figures
