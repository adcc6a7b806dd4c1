from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtriune.integrations.verl.overrides import (
    CARRIED,
    IGNORED,
    ONLY_LOCAL,
    Override,
    hydra_overrides,
    recipe_leaves,
)
from vtriune.recipe import Recipe, load_recipe
from vtriune.types import UserError

with_verl = pytest.mark.skipif(find_spec("verl") is None, reason="verl isn't installed here: make test-verl")
FOLDER = Path("/runs/it's a run")

PLAIN: dict[str, Any] = {
    "base": "/data",
    "steps": 10,
    "engine": "verl",
    "model": {"path": "model"},
    "data": {"train": [{"path": "a"}], "test": [{"path": "b"}]},
    "rollout": {"prompts_per_step": 64},
}
EVERYTHING: dict[str, Any] = PLAIN | {
    "threads": 2,
    "seed": 3,
    "model": {"path": "m", "dtype": "bfloat16", "lora": {"rank": 4}, "min_pixels": 3136, "max_pixels": 50176},
    "update": {"prompts_per_update": 8, "gradient_checkpointing": True},
    "objective": {"kl_coefficient": 0.01, "dual_clip": 3.0, "normaliser": 2048.0, "truncated_is": 2.0},
    "evaluation": {"every": 5},
    "verl": {
        "nodes": 2,
        "tensor_parallel": 4,
        "rollout": "another",
        "overrides": ["actor_rollout_ref.rollout.enforce_eager=true"],
    },
}
OTHER_LOSSES = [
    PLAIN
    | {"objective": {"loss": "gspo", "normaliser": "answers"}, "update": {"epsilon_low": 3e-4, "epsilon_high": 4e-4}},
    PLAIN | {"objective": {"loss": "cispo", "entropy_coefficient": 0.01}},
]


def recipe(fields: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(fields)


def values(fields: dict[str, Any]) -> dict[str, Any]:
    return {one.key: one.value for one in hydra_overrides(recipe(fields), FOLDER)}


def test_every_field_of_a_recipe_is_translated_carried_or_refused() -> None:
    translated = {one.field for one in hydra_overrides(recipe(EVERYTHING), FOLDER)} - {""}
    leaves = {name for name, _ in recipe_leaves(recipe(EVERYTHING))}
    assert translated | set(CARRIED) | set(IGNORED) | set(ONLY_LOCAL) == leaves
    assert not translated & set(ONLY_LOCAL)
    assert not (set(CARRIED) | set(IGNORED)) & set(ONLY_LOCAL)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "plain", True),
        ("update", "max_skipped_in_a_row", 1),
        ("update", "learning_rate", {"llm": 1e-6}),
        ("objective", "dynamic_sampling", 1),
        ("checkpoint", "keep_best", True),
    ],
)
def test_what_verl_has_no_counterpart_for_is_refused_by_name(section: str, key: str, value: Any) -> None:
    fields = PLAIN | {section: PLAIN.get(section, {}) | {key: value}}
    with pytest.raises(UserError, match=rf"{section}\.{key}: .*no counterpart in verl 0\.9"):
        hydra_overrides(recipe(fields), FOLDER)


def test_the_demo_can_be_told_to_verl_as_it_is() -> None:
    demo = Path(__file__).parents[3] / "recipes" / "demo.yaml"
    assert hydra_overrides(load_recipe(demo, ["engine=verl"]), FOLDER)


def test_each_override_has_a_reason_and_no_key_is_set_twice() -> None:
    for fields in (PLAIN, EVERYTHING, *OTHER_LOSSES):
        made = hydra_overrides(recipe(fields), FOLDER)
        assert all(one.reason for one in made)
        assert len({one.key for one in made}) == len(made)


def test_on_policy_is_one_update_of_all_prompts_and_off_policy_as_many_as_asked_for() -> None:
    key = "actor_rollout_ref.actor.ppo_mini_batch_size"
    assert values(PLAIN)[key] == 64
    assert values(EVERYTHING)[key] == 8


def test_an_unset_dual_clip_leaves_none_of_verls_own() -> None:
    assert values(PLAIN)["actor_rollout_ref.actor.clip_ratio_c"] > 1e6
    assert values(EVERYTHING)["actor_rollout_ref.actor.clip_ratio_c"] == 3.0


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="$")),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@with_verl
@example("\\")
@example(r"a\\'b\\")
@given(json_like)
def test_hydra_reads_back_the_value_that_was_written(value: Any) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    def plain(read: Any) -> Any:
        return [plain(one) for one in read] if isinstance(read, list) else getattr(read, "text", read)

    parsed = OverridesParser.create().parse_override(Override("a.b", value, "", "").hydra)
    assert parsed.key_or_group == "a.b"
    assert plain(parsed.value()) == value


@with_verl
@pytest.mark.parametrize("fields", [PLAIN, EVERYTHING, *OTHER_LOSSES])
def test_verl_knows_every_key_and_accepts_the_whole(fields: dict[str, Any], tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from vtriune.integrations.verl.main import compose_config
    from vtriune.integrations.verl.settings import Settings, settings_of

    settings = Settings(recipe(fields), tmp_path)
    config = compose_config(settings)
    for one in hydra_overrides(settings.recipe, tmp_path):
        found = OmegaConf.select(config, one.key)
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == one.value, one.key
    assert settings_of(config.data) == settings


@with_verl
def test_verls_code_reads_every_key() -> None:
    import verl

    read: set[str] = set()
    for path in Path(verl.__file__).parent.rglob("*.py"):
        code = path.read_text()
        read |= set(re.findall(r"\.([a-z_]+)\b", code))
        if "config" not in path.parts:  # there a name in quotes need not be read
            read |= set(re.findall(r"""["']([a-z_]+)["']""", code))
    made = [one for fields in (EVERYTHING, *OTHER_LOSSES) for one in hydra_overrides(recipe(fields), FOLDER)]
    handed_on = ("ray_kwargs", "data.mm_processor_kwargs")  # to Ray, to the model's processor
    names = {one.key.rpartition(".")[2] for one in made if not one.key.startswith(handed_on)}
    assert sorted(names - read) == []


@with_verl
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.no_such_key=1", "verl.overrides: .*no_such_key"),
        ("data.custom_cls.name=Other", "verl.overrides: data.custom_cls.name must stay"),
        ("actor_rollout_ref.actor.loss_agg_mode=sum", "verl refuses this recipe: .*Invalid loss_agg_mode"),
        ("trainer.v1.trainer_mode=sync", "verl.overrides: trainer.v1.trainer_mode must stay"),
        ("trainer.n_gpus_per_node=3", r"update.prompts_per_update: the 512 answers .*can't be divided among 3 GPUs"),
        ("trainer.n_gpus_per_node=2", "verl.tensor_parallel: 2 GPUs can't be divided into groups of 4; take a divisor"),
    ],
)
def test_overrides_that_can_not_work_are_said_before_anything_starts(
    override: str, message: str, tmp_path: Path
) -> None:
    from vtriune.integrations.verl.main import compose_config
    from vtriune.integrations.verl.settings import Settings

    fields = PLAIN | {"verl": {"overrides": [override], "tensor_parallel": 4 if "per_node=2" in override else 1}}
    with pytest.raises(UserError, match=message):
        compose_config(Settings(recipe(fields), tmp_path))
