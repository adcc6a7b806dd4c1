"""Recipes as files: what is refused and how, overrides, paths, and the way to the run folder and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from vtriune.grpo.objective import PAPER
from vtriune.recipe import Recipe, load_recipe
from vtriune.types import UserError

MINIMAL: dict[str, Any] = {
    "steps": 3,
    "model": {"path": "model"},
    "data": {"train": [{"path": "train"}], "test": [{"path": "test"}]},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(fields: Any = MINIMAL) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(fields if isinstance(fields, bytes) else yaml.safe_dump(fields).encode())
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    """The message with which a recipe is refused."""
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    return str(error.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dmeo.yaml"
    assert refusal(path) == f"{path}: can't be read (No such file or directory); give the path of a recipe"
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    "text", [b"steps: [", b"a: *unknown", b"\x00", b"a: 2024-13-01", b"a: " + b"9" * 5000, b"a: !!python/name:os.x"]
)
def test_a_recipe_that_is_no_yaml_is_named(write: Write, text: bytes) -> None:
    path = write(text)
    assert refusal(path).startswith(f"{path}: is not YAML: ")


@pytest.mark.parametrize("text", [b"", b"- steps", b"steps", b"3"])
def test_a_recipe_that_is_no_mapping_is_named(write: Write, text: bytes) -> None:
    path = write(text)
    assert refusal(path) == f"{path}: a recipe is a mapping of keys; see recipes/ for examples"


def test_a_recipe_that_is_not_utf_8_says_where(write: Write) -> None:
    path = write(b"steps: 3 # \xff")
    assert refusal(path) == f"{path}: is not UTF-8 text (invalid start byte at byte 11); save it as UTF-8"


def test_keys_that_are_no_text_are_refused(write: Write) -> None:
    assert "1: Keys should be strings" in refusal(write(b"1: 2\n"))


# --- keys and values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stpes": 3}, 'stpes: unknown key; did you mean "steps"?'),
        ({"rollout": {"temprature": 1}}, 'rollout.temprature: unknown key; did you mean "temperature"?'),
        ({"data": {"tarin": []}}, 'data.tarin: unknown key; did you mean "train"?'),
        (
            {"data": {"train": [{"path": "a"}, {"path": "b", "wieght": 2}], "test": [{"path": "c"}]}},
            'data.train.1.wieght: unknown key; did you mean "weight"?',
        ),
        ({"checkpoint": {"zzz": 1}}, "checkpoint.zzz: unknown key; known keys: every, keep"),
        ({"model": {}}, "model.path: is missing; add it"),
        ({"rollout": None}, "rollout: is a section of keys, not None; write keys below it, or leave it out"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1, not 0"),
        ({"data": {"train": [], "test": [{"path": "c"}]}}, "data.train: List should have at least 1 item"),
        ({"reward": {"preset": "papre"}}, "reward.preset: Input should be 'paper', 'official_code' or 'modern'"),
        ({"update": {"learning_rate": {"vison": 1}}}, "update.learning_rate.vison: Input should be 'vision'"),
        ({"update": {"learning_rate": float("nan")}}, "update.learning_rate: Input should be a finite number"),
        ({"objective": {"normaliser": 0}}, "objective.normaliser: Input should be greater than 0, not 0"),
        (
            {"objective": {"advantage": "gae"}},
            "objective.advantage: Input should be 'grpo', 'dr_grpo', 'rloo' or 'gdpo'",
        ),
        ({"update": {"betas": [0.9, 1.0]}}, "update.betas.1: Input should be less than 1"),
    ],
)
def test_a_bad_key_or_value_is_named_with_the_file_and_the_remedy(
    write: Write, change: dict[str, Any], message: str
) -> None:
    path = write(MINIMAL | change)
    lines = refusal(path).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any(line.startswith(f"{path}: {message}") for line in lines)


def test_all_that_is_wrong_is_told_at_once(write: Write) -> None:
    lines = refusal(write({"stpes": 3, "model": {"path": "m", "frezee": []}})).splitlines()
    assert len(lines) == 4
    for word in ("steps: is missing", "data: is missing", "stpes: unknown", "model.frezee: unknown"):
        assert any(word in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("update.learning_rate={llm: 1e-6, vision: 1e-7}",), "vision has a rate but is frozen; take it out of"),
        (("update.learning_rate={connector: 1e-6}", "model.freeze=[vision]"), "llm is trained but has no rate; give"),
        (("update.prompts_per_update=9", "rollout.prompts_per_step=8"), "9 is more than a step samples; lower it to"),
        (("model.min_pixels=2000", "model.max_pixels=1000"), "2000 is more than model.max_pixels (1000); lower it"),
        (
            ("objective.dual_clip=3", "objective.loss=cispo"),
            "is for loss clip, not cispo; leave it out or set loss: clip",
        ),
        (("objective.loss=gspo",), "set update.epsilon_low and update.epsilon_high (3e-4 and 4e-4 in its paper)"),
        (("objective.loss=gspo", "update.epsilon_low=3e-4"), "set update.epsilon_low and update.epsilon_high"),
        (("data.train=[{path: a, weight: 1}, {path: b}]",), "source b has no weight but others have; give `weight`"),
    ],
)
def test_keys_that_contradict_each_other_are_refused_with_a_remedy(
    write: Write, overrides: tuple[str, ...], message: str
) -> None:
    assert message in refusal(write(), *overrides)


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_reach_every_section(write: Write) -> None:
    recipe = load_recipe(
        write(),
        [
            "steps=20",
            "rollout.temperature=0.5",
            "threads=null",
            "data.prompt_pool=false",
            "model.freeze=[vision]",
            "update.learning_rate={llm: 1e-6, connector: 2.5e-7}",
            "reward.preset=paper",
            "data.train=[{path: 'a=b', verifier_parm: {iou_threshold: [[0, 0.5]]}}]",
        ],
    )
    assert (recipe.steps, recipe.rollout.temperature, recipe.threads) == (20, 0.5, None)
    assert (recipe.data.prompt_pool, recipe.model.freeze, recipe.reward.preset) == (False, ["vision"], "paper")
    assert recipe.update.learning_rate == {"llm": 1e-6, "connector": 2.5e-7}
    assert recipe.data.train[0].path == "a=b"
    assert recipe.data.train[0].verifier_parm == {"iou_threshold": [[0, 0.5]]}


def test_overrides_fill_a_section_that_the_file_leaves_empty(write: Write) -> None:
    assert load_recipe(write(MINIMAL | {"rollout": None}), ["rollout.temperature=0.5"]).rollout.temperature == 0.5


@pytest.mark.parametrize("override", ["steps", "=3", "rollout..temperature=3", "", "--steps"])
def test_an_override_that_is_none_is_refused(write: Write, override: str) -> None:
    message = f'"{override}": write overrides as section.key=value, e.g. rollout.temperature=0.9'
    assert refusal(write(), override) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=[1", '"steps=[1": the value is not YAML'),
        ("seed=2024-13-01", '"seed=2024-13-01": the value is not YAML'),
        ("steps.x=1", '"steps.x=1": steps is no section; lists are changed in the file'),
        ("data.train.0.path=x", '"data.train.0.path=x": train is no section; lists are changed in the file'),
        ("rollout.temprature=1", 'rollout.temprature: unknown key; did you mean "temperature"?'),
        ("steps=many", "steps: Input should be a valid integer"),
    ],
)
def test_a_bad_override_is_named(write: Write, override: str, message: str) -> None:
    assert message in refusal(write(), override)


# --- paths and the run folder -----------------------------------------------------------------------------------------


def test_relative_paths_start_from_the_recipes_folder_wherever_one_stands(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(Path("../recipe.yaml"))
    assert recipe.base == tmp_path
    assert recipe.model.path == str(tmp_path / "model")


def test_a_base_moves_the_start_of_relative_paths(write: Write, tmp_path: Path) -> None:
    recipe = load_recipe(write(MINIMAL | {"base": "../other"}))
    assert recipe.base == tmp_path.parent / "other"
    assert recipe.model.path == str(tmp_path.parent / "other" / "model")
    absolute = load_recipe(write(MINIMAL | {"model": {"path": "/models/vlm"}}))
    assert absolute.model.path == "/models/vlm"


def test_a_resolved_recipe_loads_from_another_folder_and_is_equal(write: Write, tmp_path: Path) -> None:
    overrides = [
        "update.learning_rate={llm: 1e-6}",
        "data.train=[{path: a, weight: 2, only: [x, y], name: z, verifier_parm: {iou_threshold: [[0, 0.5]]}}]",
        "evaluation.every=5",
        "update.epsilon_low=3e-4",
        "update.epsilon_high=4e-4",
        "objective={advantage: dr_grpo, loss: gspo, normaliser: 2048, truncated_is: 2}",
    ]
    recipe = load_recipe(write(), overrides)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_the_recipes_that_are_shipped_load() -> None:
    shipped = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert shipped
    for path in shipped:
        load_recipe(path)


def test_every_key_is_documented_where_it_stands() -> None:
    def undocumented(model: type[BaseModel]) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            inner = getattr(field.annotation, "__args__", (field.annotation,))
            sections = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
            found += [f"{name}.{deeper}" for section in sections for deeper in undocumented(section)]
            if not sections and not field.description:
                found.append(name)
        return found

    assert undocumented(Recipe) == []


def test_a_minimal_recipe_trains_with_the_papers_settings(write: Write) -> None:
    """5.1.2: 1024 prompts, G = 8, 2048 tokens at temperature 1; on-policy at 1e-6, 5 % warm-up; clip 0.2 / 0.28."""
    recipe = load_recipe(write())
    rollout, update = recipe.rollout, recipe.update
    assert (rollout.prompts_per_step, rollout.responses_per_prompt) == (1024, 8)
    assert (rollout.max_new_tokens, rollout.temperature) == (2048, 1.0)
    assert (update.prompts_per_update, update.learning_rate, update.warmup_ratio) == (None, 1e-6, 0.05)
    assert (update.epsilon_low, update.epsilon_high) == (0.2, 0.28)
    assert recipe.objective == PAPER
    assert recipe.model.freeze == ["vision", "connector"]


def test_the_recipe_of_a_run_with_reward_servers_comes_back_from_its_folder(write: Write) -> None:
    recipe = load_recipe(write({**MINIMAL, "reward": {"servers": ["http://127.0.0.1:1"], "deadline": 5}}))
    assert load_recipe(write(recipe.model_dump(mode="json"))) == recipe
