"""The local engine and verl are the same: one is given the answers of the other, and gets its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from tests.integrations.verl.support.runs import recorded

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
            prompt_ids, rollouts = answers[one.id]
            prompt = engine._encoded[one.id]
            assert prompt.ids.tolist() == prompt_ids.tolist(), f"{one.id}: another prompt"
            yield Group(one, prompt.prompt, prompt.ids, prompt.pictures.sizes, rollouts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalEngine, "generate", generate)
        train(load_recipe(run.parent / "recipe.yaml", ["engine=local"]), folder / "local", Console(quiet=True))
    return folder / "local"
