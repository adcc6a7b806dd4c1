"""The local engine gets verl's numbers from verl's answers.

The run on verl has two ranks, two optimizer steps in each of its four steps, and a rate that rises over the first two.
The local engine does all by itself (mixture, prompts, verdicts, advantages, log-probs, loss, optimizer), but that it is
given the token ids that were sampled there. So each step starts from weights that each engine has learned itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.integrations.verl.support.runs import ANSWERS, MODEL, PROMPTS, STEPS, metrics, recorded, rollouts

from vtriune.local.engine import LocalEngine
from vtriune.recipe import load_recipe
from vtriune.session import EVALUATION_SEED_STEP
from vtriune.train import train
from vtriune.types import Group, Sample

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(find_spec("verl") is None, reason="verl isn't installed here: make test-verl"),
]


@pytest.fixture(scope="module")
def local(run: Path, folder: Path) -> Path:
    """The run's recipe in the local engine: all is its own but for the answers of training, which are verl's."""
    sample = LocalEngine.generate

    def generate(engine: LocalEngine, samples: Sequence[Sample], step: int, group_size: int | None) -> Iterator[Group]:
        if step == EVALUATION_SEED_STEP:
            yield from sample(engine, samples, step, group_size)
            return
        answers = recorded(run, step + 1)
        assert {one.id for one in samples} == set(answers), f"step {step + 1}: another batch of prompts"
        for one in samples:
            prompt_ids, given = answers[one.id]
            prompt = engine._encoded[one.id]
            assert prompt.ids.tolist() == prompt_ids.tolist(), f"{one.id}: another prompt"
            yield Group(one, prompt.prompt, prompt.ids, prompt.pictures.sizes, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalEngine, "generate", generate)
        train(load_recipe(run.parent / "recipe.yaml", ["engine=local"]), folder / "local", Console(quiet=True))
    return folder / "local"


def pairs(run: Path, local: Path, step: int) -> pd.DataFrame:
    """The answers of a step in both engines, side by side."""
    both = rollouts(run, step).merge(
        rollouts(local, step), on=["sample_id", "answer"], suffixes=("", "_local"), validate="1:1"
    )
    assert len(both) == PROMPTS * ANSWERS
    return both


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_verdicts_and_advantages_are_the_same(run: Path, local: Path, step: int) -> None:
    both = pairs(run, local, step)
    assert set(both.source) == {"math", "chart", "grounding"}
    assert both.status.tolist() == both.status_local.tolist()
    assert {"scored", "failed"} == set(both.status)
    for name in ("reward", "accuracy", "format", "advantage"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_local"].to_numpy(), abs=1e-6, nan_ok=True), name
    assert both.advantage.any()


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_loss_and_what_belongs_to_it_are_the_same(run: Path, local: Path, step: int) -> None:
    here, there = metrics(local)["train", step], metrics(run)["train", step]
    assert here["all/optimizer_steps"] == 2
    # Losses are small, advantages summing up to about 0: the tolerance is tighter than the 1e-4 of other figures.
    assert there["all/loss"] == pytest.approx(here["all/loss"], abs=1e-5)
    assert there["all/grad_norm"] == pytest.approx(here["all/grad_norm"], rel=1e-3)
    assert there["all/clip_fraction"] == pytest.approx(here["all/clip_fraction"], abs=1e-6)
    # Both engines' log-probs against those of one sampler, and so against each other: the worst of all tokens. After
    # the first step each engine has weights of its own making.
    assert max(here["all/logprob_gap"], there["all/logprob_gap"]) < (1e-4 if step == 1 else 1e-3)
    shared = (here.keys() & there.keys()) - {"all/logprob_gap"}
    assert len(shared) > 40
    assert {name: there[name] for name in shared} == pytest.approx({name: here[name] for name in shared}, abs=1e-4)


def test_there_was_something_to_compare(run: Path) -> None:
    """Ratios that were clipped, in what second optimizer steps learn; groups that teach with answers that don't."""
    tables = [rollouts(run, step) for step in range(1, STEPS + 1)]
    groups = [group for table in tables for _, group in table.groupby("group")]
    assert any(metrics(run)["train", step]["all/clip_fraction"] > 0 for step in range(1, STEPS + 1))
    assert any(group.advantage.any() and (group.status == "failed").any() for group in groups)
    assert {table.tokens.nunique() > 1 for table in tables} == {True}


@pytest.mark.parametrize("step", (2, STEPS))
def test_weights_are_the_same(run: Path, local: Path, step: int) -> None:
    """After 4 and after 8 optimizer steps, each of which moves a weight by up to 8e-4."""
    start = load_file(MODEL / "model.safetensors")
    there = load_file(run / "checkpoints" / f"global_step_{step}" / "actor" / "huggingface" / "model.safetensors")
    here = load_file(local / "checkpoints" / f"step-{step:06d}" / "model.safetensors")
    assert start.keys() == there.keys() == here.keys()
    moved, apart = (
        torch.cat([(one[name] - here[name]).flatten() for name in sorted(here)]).abs() for one in (start, there)
    )
    assert moved.max() > 1e-3
    assert apart.norm() < 1e-3 * moved.norm()
    # AdamW divides a gradient by its own size: where it is but rounding, so is the direction of a step.
    assert (apart > 1e-4).sum() <= 1e-5 * len(apart)


def test_the_trained_models_give_the_same_greedy_answers(run: Path, local: Path) -> None:
    answers = [
        pd.read_parquet(folder / "rollouts" / f"eval-{STEPS:06d}.parquet")
        .query("decoding == 'greedy'")
        .set_index("sample_id")
        .response.to_dict()
        for folder in (run, local)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 4
