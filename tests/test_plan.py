"""Plans: the paper's recipes, what won't fit and the remedy."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from vtriune import cli
from vtriune.integrations.verl.overrides import hydra_overrides
from vtriune.plan import make_plan
from vtriune.plan_formulas import Load, Machines
from vtriune.recipe import Recipe, load_recipe
from vtriune.shapes import Shape, read_shape
from vtriune.types import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
ORSTA = (
    "orsta-7b",
    "orsta-7b-offpolicy",
    "orsta-32b",
    "orsta-32b-offpolicy",
    "orsta-7b-8gpu",
    "orsta-7b-lora",
)
ONE_NODE = ("orsta-7b-8gpu", "orsta-7b-lora")
H20, H100 = Machines(64, 96), Machines(8, 80)
Planned = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planned:
    """The command's exit status and its JSON."""

    def run(recipe: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["vtriune", "plan", str(recipe), *arguments, "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert captured.out, captured.err
        return int(end.value.code or 0), orjson.loads(captured.out)

    return run


# --- the paper's recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORSTA)
def test_the_papers_recipes_have_the_papers_settings(name: str) -> None:
    found = load_recipe(RECIPES / f"{name}.yaml")
    off_policy = name.endswith("-offpolicy")
    rollout, update, objective = found.rollout, found.update, found.objective
    assert Path(found.model.path).name == f"Qwen2.5-VL-{'32B' if '32b' in name else '7B'}-Instruct"
    assert (found.steps, found.data.prompt_pool, found.reward.preset) == (135, True, "paper")
    assert found.model.freeze == ["vision", "connector"]
    assert (rollout.prompts_per_step, rollout.responses_per_prompt) == (1024, 8)
    assert (rollout.max_new_tokens, rollout.temperature) == (2048, 1.0)
    assert update.prompts_per_update == (128 if off_policy else None)
    assert update.learning_rate == (1e-5 if name.endswith("-lora") else 5e-7 if off_policy else 1e-6)
    assert (update.warmup_ratio, update.epsilon_low, update.epsilon_high) == (0.05, 0.2, 0.28)
    assert (objective.advantage, objective.loss, objective.normaliser) == ("grpo", "clip", "tokens")
    assert (objective.kl_coefficient, objective.entropy_coefficient) == (0, 0)
    assert (found.engine, found.verl.nodes * found.verl.gpus_per_node) == ("verl", 8 if name in ONE_NODE else 64)
    boxes = [source.verifier_parm for source in found.data.train if source.verifier_parm]
    assert boxes == [{"iou_threshold": [[0.0, 0.85], [0.10, 0.95], [0.25, 0.99]]}]
    assert (found.model.lora is not None) == name.endswith("-lora")


@pytest.mark.parametrize("machines", [H20, H100], ids=["64 of 96 GB", "8 of 80 GB"])
@pytest.mark.parametrize("name", ORSTA)
def test_the_papers_recipes_fit_on_its_gpus_and_those_of_7b_on_one_node(
    planned: Planned, name: str, machines: Machines
) -> None:
    arguments = [f"--gpus={machines.gpus}", f"--gpu-memory={machines.memory}"]
    code, plan = planned(RECIPES / f"{name}.yaml", *arguments)
    fits = "32b" not in name or machines is H20
    assert (code, not plan["problems"]) == ((0, True) if fits else (1, False))
    assert plan["split"]["answers a step"] == 8192
    assert plan["split"]["optimizer steps"] == (8 if "offpolicy" in name else 1)


@pytest.mark.parametrize("name", ORSTA)
def test_the_papers_recipes_fit_on_the_gpus_that_they_ask_for(planned: Planned, name: str) -> None:
    one_node = name in ONE_NODE
    code, plan = planned(RECIPES / f"{name}.yaml", f"--gpu-memory={80 if one_node else 96}")
    assert (code, plan["problems"]) == (0, [])
    assert plan["split"]["answers per GPU and optimizer step"] * plan["split"]["optimizer steps"] == (
        1024 if one_node else 128
    )


def test_none_of_the_papers_recipes_is_left_out_here() -> None:
    assert {path.stem for path in RECIPES.glob("orsta-*.yaml")} == set(ORSTA)


def test_a_recipe_whose_model_is_missing_is_planned_by_its_public_numbers(planned: Planned) -> None:
    _, plan = planned(RECIPES / "orsta-32b.yaml")
    assert plan["split"]["sampling engines"] == 16
    assert plan["model"].startswith("qwen2.5-vl-32b (its public numbers; ")
    assert sum(plan["parameters"].values()) == 33_452_718_336


# --- what won't fit, and the remedy -----------------------------------------------------------------------------------


def seven() -> Shape:
    return read_shape("qwen2.5-vl-7b")


def orsta(*overrides: str) -> Recipe:
    return load_recipe(RECIPES / "orsta-7b.yaml", overrides)


def test_the_remedy_for_too_little_memory_makes_the_plan_fit() -> None:
    node = Machines(8, 40, sampling_share=0.6)
    dear = make_plan(orsta("update.gradient_checkpointing=false"), seven(), node, Load())
    assert "and update.tokens_per_batch: 6144" in dear.problems[0]
    cheap = orsta("update.gradient_checkpointing=true", "update.tokens_per_batch=6144")
    assert make_plan(cheap, seven(), node, Load()).training_total <= dear.limit


def test_a_model_too_large_for_the_gpus_says_how_many_would_do() -> None:
    few = Machines(8, 80, tensor_parallel=4)
    large = load_recipe(RECIPES / "orsta-32b.yaml")
    problem = make_plan(large, read_shape("qwen2.5-vl-32b"), few, Load()).problems[0]
    told = re.search(r"with gradient checkpointing and (update.tokens_per_batch): (\d+) it fits on (\d+) GPUs", problem)
    assert told
    key, tokens, gpus = told.groups()
    followed = load_recipe(RECIPES / "orsta-32b.yaml", [f"{key}={tokens}", "update.gradient_checkpointing=true"])
    enough = make_plan(followed, read_shape("qwen2.5-vl-32b"), replace(few, gpus=int(gpus)), Load())
    assert enough.training_total <= enough.limit
    less = make_plan(followed, read_shape("qwen2.5-vl-32b"), replace(few, gpus=int(gpus) // 2), Load())
    assert less.training_total > less.limit


def test_more_gpus_and_adapters_need_less_memory_each() -> None:
    plans = [make_plan(orsta(), seven(), Machines(n, 80), Load()) for n in (8, 16, 64)]
    totals = [plan.training_total for plan in plans]
    assert totals == sorted(totals, reverse=True)
    lora = make_plan(load_recipe(RECIPES / "orsta-7b-lora.yaml"), seven(), Machines(8, 80), Load())
    assert lora.training_total < totals[0]


@pytest.mark.parametrize(
    ("changes", "machines", "load", "problem"),
    [
        ((), Machines(8, 20), Load(), "raise verl.tensor_parallel or --sampling-share"),
        ((), Machines(8, 80, sampling_share=0.9), Load(), "lower --sampling-share"),
        (("rollout.prompts_per_step=1001",), Machines(16, 80), Load(), "can't be divided among 16 GPUs"),
        (
            ("verl.max_prompt_tokens=1000",),
            Machines(8, 80),
            Load(),
            "verl.max_prompt_tokens is 1000: give its real ones, or raise it",
        ),
        (("update.prompts_per_update=300",), Machines(8, 80), Load(), "no multiple of update.prompts_per_update"),
        ((), Machines(8, 80), Load(picture_tokens=130_000), "lower rollout.max_new_tokens or model.max_pixels"),
        (("engine=local", "rollout.cache_tokens=10000000"), Machines(1, 200), Load(), "lower rollout.cache_tokens"),
    ],
)
def test_what_will_not_work_is_a_problem_with_its_remedy(
    changes: tuple[str, ...], machines: Machines, load: Load, problem: str
) -> None:
    problems = make_plan(orsta(*changes), seven(), machines, load).problems
    assert any(problem in one for one in problems), problems


@pytest.mark.parametrize(
    ("change", "note"),
    [("null", "model.max_pixels is not set"), ("2000000", "allows 2551 tokens a picture, planned are 1280")],
)
def test_longer_prompts_than_planned_are_noted(change: str, note: str) -> None:
    plan = make_plan(orsta(f"model.max_pixels={change}"), seven(), Machines(64, 96), Load())
    assert [note in one for one in plan.notes] == [True]


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        (Machines(6, tensor_parallel=4), "6 GPUs can't be divided into groups of 4"),
        (Machines(6, tensor_parallel=3), "28 attention heads can't be divided by 3"),
        (Machines(9, nodes=2), "9 GPUs can't be divided among 2 nodes"),
    ],
)
def test_gpus_that_cannot_be_divided_are_refused(machines: Machines, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(orsta(), seven(), machines, Load())


def test_judges_keep_up_at_half_of_their_rate_and_any_server_may_die() -> None:
    quick = make_plan(orsta(), seven(), Machines(64, 96), Load(sampling_seconds=2)).rewards
    assert quick["verdicts a second"] == 4096
    assert quick["workers"] * quick["verdicts a second of one worker (measured)"] / 2 >= 4096
    slow = make_plan(orsta(), seven(), Machines(64, 96), Load(sampling_seconds=10_000)).rewards
    assert [value for name, value in slow.items() if name.startswith("servers")] == [2]


def test_every_key_of_the_papers_recipes_has_a_counterpart_in_verl(tmp_path: Path) -> None:
    for name in ORSTA:
        made = {one.key: one.value for one in hydra_overrides(load_recipe(RECIPES / f"{name}.yaml"), tmp_path)}
        assert made["data.train_batch_size"] == 1024
        assert made["actor_rollout_ref.actor.ppo_mini_batch_size"] == (128 if "offpolicy" in name else 1024)


def test_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vtriune", "plan", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main()
    text = capsys.readouterr().out
    options = ("gpus", "gpu-memory", "nodes", "tensor-parallel", "sampling-share", "text-tokens", "picture-tokens")
    assert [one for one in (*options, "sampling-seconds", "model-config", "json") if f"--{one}" not in text] == []


def test_a_plan_says_that_it_fits_or_what_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for memory in ("80", "30"):
        monkeypatch.setattr(
            sys, "argv", ["vtriune", "plan", str(RECIPES / "orsta-7b-8gpu.yaml"), f"--gpu-memory={memory}"]
        )
        with pytest.raises(SystemExit) as end:
            cli.main()
        said.append((end.value.code or 0, capsys.readouterr().out))
    assert said[0][0] == 0
    assert "it fits" in said[0][1]
    assert said[1][0] == 1
    assert "problem training needs" in said[1][1]
    assert "it fits\n" not in said[1][1]
