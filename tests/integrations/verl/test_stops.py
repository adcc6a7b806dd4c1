"""Runs on verl that stop, lack answers or verdicts, or break down; most with adapters. Real as those of test_run.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import peft
import pytest
import torch
import yaml
from tests.integrations.verl.support.runs import (
    ANSWERS,
    MODEL,
    RATE,
    left_behind,
    metrics,
    processes_of,
    rollouts,
    train,
    write_recipe,
)
from transformers import AutoModelForImageTextToText

from vtriune import cli
from vtriune.data.schema import write_rows
from vtriune.integrations.verl.checkpoints import find_checkpoint, read_weights
from vtriune.local.lora import layers_with_adapters
from vtriune.local.parts import places
from vtriune.playground.dataset import rows

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(find_spec("verl") is None, reason="verl isn't installed here: make test-verl"),
]

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Path:
    """A run of one rank with adapters, a row that is too long, and a verifier that breaks after the first step; stopped
    by Ctrl-C then.
    """
    place = folder / "adapters"
    place.mkdir()
    recipe = yaml.safe_load(write_recipe(place, ranks=1).read_text())
    for split in ("train", "test"):
        (row,) = rows("math", "math", rare=False, split=split, count=1, seed=1)
        row["prompt"][-1]["content"] += " very" * 300
        write_rows([row], place / split / "long.parquet")
    recipe["model"] |= {"lora": LORA, "freeze": ["vision"]}
    recipe["data"]["train"] = [
        {"path": "train/chart.parquet", "weight": 3, "verifier": "fading"},
        {"path": "train/long.parquet", "weight": 1},
    ]
    recipe["data"]["test"] = [{"path": "test/grounding.parquet"}, {"path": "test/long.parquet"}]
    recipe["reward"]["load"] = ["support.verifiers:Fading"]
    recipe["rollout"] |= {"prompts_per_step": 4, "max_new_tokens": 24, "temperature": 1.5}
    recipe["update"] |= {"warmup_ratio": 0.0, "prompts_per_update": 4}
    recipe["evaluation"] = {"responses_per_prompt": 1}
    recipe |= {"steps": 50, "checkpoint": {"every": 50}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run, output = place / "run", place / "output.txt"
    process = train(output, place / "recipe.yaml", "--out", run)
    try:
        while not (run / "metrics.jsonl").exists() or ("train", 2) not in metrics(run):
            assert process.poll() is None, output.read_text()
            time.sleep(0.05)
        assert len(processes_of(output)) > 5  # Ray's, as long as it runs
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130, output.read_text()
    finally:
        process.kill()
    return run


def test_ctrl_c_ends_a_run_after_its_step_with_a_checkpoint_and_nothing_left_running(stopped: Path) -> None:
    output = stopped.parent / "output.txt"
    text = output.read_text()
    done = max(step for split, step in metrics(stopped) if split == "train")
    assert f"Stopped after step {done}. Go on: vtriune train --resume {stopped}" in text.splitlines()[-1]
    assert "KeyboardInterrupt" not in text
    assert json.loads((stopped / "run.json").read_text())["state"] == "stopped"
    assert 2 <= done < 50
    assert (stopped / "checkpoints" / f"global_step_{done}" / "actor" / "fsdp_config.json").is_file()
    assert not (stopped / ".stop").exists()
    assert left_behind(output) == []


def test_ctrl_c_before_the_run_has_begun_ends_it_at_once(folder: Path) -> None:
    place, output = folder / "early", folder / "early.txt"
    process = train(output, write_recipe(place, ranks=1), "--out", place / "run")
    try:
        while "Started a local Ray instance" not in output.read_text():
            assert process.poll() is None, output.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130, output.read_text()
    finally:
        process.kill()
    assert "Stopped at once. There is no checkpoint yet" in output.read_text().splitlines()[-1]
    assert not (place / "run").exists()
    assert left_behind(output) == []


def test_answers_that_are_missing_are_listed_with_their_reason(stopped: Path) -> None:
    listed = [json.loads(line) for line in (stopped / "quarantine.jsonl").read_text().splitlines()]
    assert [(one["step"], one["sample"]) for one in listed][:2] == [
        (0, "test/long.parquet#0"),
        (1, "train/long.parquet#0"),
    ]
    assert listed[0]["reason"].startswith("2 answers are missing: the prompt has ")
    assert listed[1]["reason"].startswith(f"{ANSWERS} answers are missing: the prompt has ")
    assert all("verl.max_prompt_tokens is 256" in one["reason"] for one in listed)
    # Rows that verl fills the step up with are no answers of the sampler.
    assert all(row["all/logprob_gap"] < 0.3 for (split, _), row in metrics(stopped).items() if split == "train")


def test_adapters_alone_learn_and_are_merged_by_export(stopped: Path, tmp_path: Path) -> None:
    actor = find_checkpoint(stopped / "checkpoints") / "actor"
    held, base = read_weights(actor), AutoModelForImageTextToText.from_pretrained(MODEL)
    adapted = sorted(
        {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in held if ".lora_" in name}
    )
    model = AutoModelForImageTextToText.from_pretrained(MODEL)
    assert adapted == sorted(layers_with_adapters(model, "all", places(model), {"connector", "llm"}))
    assert {place.part for name, place in places(model).items() if name.removesuffix(".weight") in adapted} == {
        "connector",
        "llm",
    }
    assert all(held[f"base_model.model.{name}.lora_B.default.weight"].abs().max() > 0 for name in adapted)
    for name, weight in base.state_dict().items():
        layer, _, end = name.rpartition(".")
        inside = f"{layer}.base_layer.{end}" if layer in adapted else name
        assert torch.equal(held[f"base_model.model.{inside}"], weight), name

    torch.manual_seed(0)  # the recipe's
    by_peft = peft.get_peft_model(
        base, peft.LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=adapted)
    )
    for name, weight in by_peft.state_dict().items():
        if ".lora_A." in name:  # that of its first steps: B begins as 0, so that A is hardly moved
            torch.testing.assert_close(held[name], weight, atol=0.02, rtol=0)
    by_peft.load_state_dict(held)
    expected = by_peft.merge_and_unload().state_dict()
    cli.export(stopped, tmp_path / "model")
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").state_dict()
    assert exported.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(exported[name], weight, atol=1e-6, rtol=0)


def test_what_breaks_in_a_worker_is_the_last_line_on_the_console(folder: Path) -> None:
    place, output = folder / "broken", folder / "broken.txt"
    recipe = yaml.safe_load(write_recipe(place, ranks=1).read_text())
    sampler = "trainer.v1.sampler.custom_sampler"
    recipe["verl"]["overrides"] += [f"{sampler}.path=/nowhere.py", f"{sampler}.name=Sampler"]
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train(output, place / "recipe.yaml", "--out", place / "run").wait() == 2
    *_, trace, last = output.read_text().splitlines()
    assert last.startswith("error the run broke down: ")
    assert "/nowhere.py" in trace  # line by line as python wrote it
    assert "/nowhere.py" in last
    assert left_behind(output) == []


def test_a_step_in_which_nobody_could_judge_teaches_nothing_and_the_run_goes_on(stopped: Path) -> None:
    taught, *others = [row for (split, _), row in metrics(stopped).items() if split == "train"]
    assert taught["all/failed_count"] == 0 < taught["all/grad_norm"]
    for step, row in enumerate(others, start=2):
        assert set(rollouts(stopped, step).status) == {"failed"}
        assert row["all/failed_count"] == row["all/rollouts"] > 0
        assert row["all/grad_norm"] == row["all/loss"] == 0
    # The first step of AdamW moves each weight by the rate, from 0. Momentum would have moved it on.
    held = read_weights(find_checkpoint(stopped / "checkpoints") / "actor")
    moved = torch.cat([weight.abs().flatten() for name, weight in held.items() if ".lora_B." in name])
    assert moved.max() == pytest.approx(RATE, rel=1e-3)


def test_a_step_in_which_no_row_gets_an_answer_ends_the_run_with_the_reason(stopped: Path, folder: Path) -> None:
    """The stopped run resumed, with its adapters, on the row that is too long."""
    again, output = folder / "no-answer", folder / "no-answer.txt"
    shutil.copytree(stopped, again)
    recipe = yaml.safe_load((again / "recipe.yaml").read_text())
    recipe["data"]["train"] = recipe["data"]["train"][1:]
    (again / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    step = max(step for split, step in metrics(stopped) if split == "train") + 1
    assert train(output, "--resume", again).wait() == 2
    told = f"step {step}: none of its rows got an answer, the first because the prompt has "
    assert output.read_text().splitlines()[-1].startswith(f"error {told}")
    assert told in json.loads((again / "run.json").read_text())["error"]
    last = json.loads((again / "quarantine.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["sample"]) == (step, "train/long.parquet#0")
    assert last["reason"].startswith(f"{4 * ANSWERS} answers are missing: the prompt has ")
    assert left_behind(output) == []
