"""The paper's recipes, as far as verl itself can judge them without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtriune.recipe import load_recipe

pytest.importorskip("verl", reason="verl is not installed here: make test-verl")

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("orsta-*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_verl_knows_every_key_that_the_recipe_sets_and_accepts_it(path: Path, tmp_path: Path) -> None:
    from vtriune.integrations.verl.main import compose_config
    from vtriune.integrations.verl.settings import Settings

    config = compose_config(Settings(load_recipe(path), tmp_path, False))
    assert config.data.train_batch_size == 1024
    assert config.actor_rollout_ref.rollout.n == 8
