"""A whole run on verl, on a CPU: two ranks with FSDP2 over gloo, real Ray, the playground's model and rows through our
dataset, judge, agent loop, engine and trainer. The platform and the sampling engine are test-only (support/).
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import peft
import PIL.Image
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from safetensors.torch import load_file
from tests.integrations.verl.support.runs import (
    ANSWERS,
    LOOSE,
    MARK,
    MODEL,
    PROMPTS,
    STEPS,
    STRICT,
    metrics,
    rollouts,
    train,
    write_recipe,
)
from transformers import AutoModelForImageTextToText

from vtriune import cli
from vtriune.data.schema import write_rows
from vtriune.integrations.verl.checkpoints import read_weights
from vtriune.local.lora import layers_with_adapters
from vtriune.local.parts import NAMES, places
from vtriune.playground.dataset import rows
from vtriune.rejudge.rejudging import Rejudging
from vtriune.watch.app import create_app
from vtriune.watch.report import write_report

if TYPE_CHECKING:
    from tests.conftest import StartServer

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(find_spec("verl") is None, reason="verl isn't installed here: make test-verl"),
]

LORA = {"rank": 4, "alpha": 8}


def left_over(output: Path) -> list[str]:
    """Command lines of the processes that a run left behind."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone by now
            if f"{MARK}={output}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Path:
    """A run of one rank with adapters and with a row that is too long, stopped by Ctrl-C in its first step."""
    place = folder / "adapters"
    place.mkdir()
    recipe = yaml.safe_load(write_recipe(place, ranks=1).read_text())
    for split in ("train", "test"):
        (row,) = rows("math", "math", rare=False, split=split, count=1, seed=1)
        row["prompt"][-1]["content"] += " very" * 300
        write_rows([row], place / split / "long.parquet")
    recipe["model"] |= {"lora": LORA, "freeze": ["vision"]}
    recipe["data"]["train"] = [
        {"path": "train/chart.parquet", "weight": 3, "verifier": "checksum"},
        {"path": "train/long.parquet", "weight": 1},
    ]
    recipe["data"]["test"] = [{"path": "test/grounding.parquet"}, {"path": "test/long.parquet"}]
    recipe["reward"]["load"] = ["support.verifiers:checksum"]
    recipe["rollout"] |= {"prompts_per_step": 4, "max_new_tokens": 24, "temperature": 1.5}
    recipe["update"] |= {"warmup_ratio": 0.0, "prompts_per_update": 4}
    recipe["evaluation"] = {"responses_per_prompt": 1}
    recipe |= {"steps": 50, "checkpoint": {"every": 50}}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run, output = place / "run", place / "output.txt"
    process = train(output, place / "recipe.yaml", "--out", run)
    try:
        while not (run / "metrics.jsonl").exists() or ("eval", 0) not in metrics(run):
            assert process.poll() is None, output.read_text()
            time.sleep(0.05)
        assert len(left_over(output)) > 5  # Ray's, as long as it runs
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130, output.read_text()
    finally:
        process.kill()
    return run


def test_every_step_has_figures_of_every_source_that_it_asked(run: Path) -> None:
    figures = metrics(run)
    assert [key for key in figures if key[0] == "train"] == [("train", step) for step in range(1, STEPS + 1)]
    for step in range(1, STEPS + 1):
        table, row = rollouts(run, step), figures["train", step]
        assert len(table) == row["all/rollouts"] == PROMPTS * ANSWERS
        assert row["all/spurious_tokens"] == 0
        for source, some in table.groupby("source"):
            assert row[f"{source}/rollouts"] == len(some)
            assert row[f"{source}/reward"] == pytest.approx(some.reward.mean())
    assert {name.split("/")[0] for _, row in figures.items() for name in row} >= {"math", "chart", "grounding", "all"}


def test_the_run_is_finished_and_compares_the_last_evaluation_with_the_first(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == STEPS
    for done in (0, 2, STEPS):
        table = pd.read_parquet(run / "rollouts" / f"eval-{done:06d}.parquet")
        assert table.groupby(["source", "decoding"]).size().to_dict() == {
            ("grounding", "greedy"): 2,
            ("grounding", "sampled"): 4,
            ("math", "greedy"): 2,
            ("math", "sampled"): 4,
        }
        assert set(table.split) == {"test"}


def test_only_the_language_model_was_trained(run: Path) -> None:
    before = load_file(MODEL / "model.safetensors")
    after = load_file(run / "checkpoints" / f"global_step_{STEPS}" / "actor" / "huggingface" / "model.safetensors")
    changed = {name for name, weight in before.items() if not np.array_equal(weight.numpy(), after[name].numpy())}
    of_vision = {name for name in before if any(part in name.split(".") for part in NAMES["vision"])}
    assert of_vision
    assert not changed & of_vision
    assert len(changed) > len(set(before) - of_vision) / 2


def test_the_threshold_follows_the_schedule(run: Path) -> None:
    for step in range(1, STEPS + 1):
        table = rollouts(run, step)
        assert set(table.progress_step) == {step - 1}
        boxes = table[table.source == "grounding"]
        threshold = LOOSE if (step - 1) / STEPS < 0.5 else STRICT
        assert boxes.accuracy.tolist() == pytest.approx([iou if iou >= threshold else 0.0 for iou in boxes.iou])
    between = [
        ((table.iou >= LOOSE) & (table.iou < STRICT)).any()
        for half in ((1, 2), (3, 4))
        for table in [pd.concat([rollouts(run, step) for step in half])]
    ]
    assert between == [True, True], "no answer in a half that the two thresholds judge differently"


def test_an_answer_without_a_verdict_enters_no_mean(run: Path) -> None:
    mixed = 0
    for step in range(1, STEPS + 1):
        table, row = rollouts(run, step), metrics(run)["train", step]
        failed = table[table.status == "failed"]
        mixed += sum(group.advantage.any() for _, group in table.groupby("group") if (group.status == "failed").any())
        assert row["all/failed_count"] == len(failed)
        assert failed.reward.isna().all()
        assert (failed.advantage == 0).all()
        for _, group in table[table.status == "scored"].groupby("group"):
            rewards = group.reward.to_numpy()
            spread = rewards.std(ddof=1) if len(rewards) > 1 else 0.0
            expected = (rewards - rewards.mean()) / (spread + 1e-6) if spread else np.zeros(len(rewards))
            assert group.advantage.to_numpy() == pytest.approx(expected, abs=1e-6)
    assert mixed > 0, "in no group that teaches something a verifier broke"


def test_a_run_resumed_with_reward_servers_one_of_which_is_killed_has_the_same_results(
    run: Path, folder: Path, reward_server: StartServer
) -> None:
    """As if it had been killed between the checkpoint after step 2 and the evaluation that was due."""
    again, output = folder / "again", folder / "output-again.txt"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / f"global_step_{STEPS}")
    (again / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    (again / "rollouts" / "eval-000002.parquet").unlink()
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(lines[:3]))
    servers = [reward_server("--workers", "1", "--load", "support.verifiers:unreliable") for _ in range(2)]
    recipe = yaml.safe_load((again / "recipe.yaml").read_text())
    recipe["reward"] = {"servers": [server.url for server in servers], "patience": 5}
    (again / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    resumed = train(output, "--resume", again)
    try:
        while ("train", 3) not in metrics(again):
            assert resumed.poll() is None, output.read_text()
            time.sleep(0.05)
        servers[0].stop(signal.SIGKILL)
        assert resumed.wait() == 0, output.read_text()
    finally:
        resumed.kill()

    expected, got = metrics(run), metrics(again)
    assert list(expected) == list(got)
    for key, row in expected.items():
        assert row == pytest.approx(got[key], abs=1e-4), key
    for step in range(1, STEPS + 1):
        one, other = rollouts(run, step), rollouts(again, step)
        assert one.response.tolist() == other.response.tolist()
        assert one.status.tolist() == other.status.tolist()


def test_norms_of_gradients_by_part_and_layer_make_up_the_one_that_verl_clips(run: Path) -> None:
    output = (run.parent / "output.txt").read_text()
    of_verl = [float(text) for text in re.findall(r"actor/grad_norm:([-+.e0-9]+)", output)]
    assert len(of_verl) == STEPS
    for step, whole in enumerate(of_verl, start=1):
        row = metrics(run)["train", step]
        assert row["all/grad_norm"] == pytest.approx(whole, rel=1e-5)
        assert row["all/grad_norm_llm"] == row["all/grad_norm"]
        assert not {"all/grad_norm_vision", "all/grad_norm_connector"} & row.keys()  # they are frozen
        layers = [row[f"layer_{number:02d}/grad_norm_llm"] for number in range(3)]
        assert 0 < sum(norm**2 for norm in layers) < whole**2
        assert "layer_03/grad_norm_llm" not in row


def test_the_exported_model_is_an_ordinary_folder_with_the_weights_that_verl_saved(run: Path, tmp_path: Path) -> None:
    cli.export(run, tmp_path / "model", step=2)
    saved = load_file(run / "checkpoints" / "global_step_2" / "actor" / "huggingface" / "model.safetensors")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], saved[name]) for name in saved)
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_every_verdict_of_a_verl_run_is_found_again_to_the_last_bit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    again = Rejudging(run, [], load=["support.verifiers:unreliable"])
    with again.open_judge() as judge:
        result = again.run(judge, lambda count: None)
    stored = pd.read_parquet(run / "rollouts")
    assert result.agree == (stored.status == "scored").sum() > 100
    assert not result.disagree


def test_the_dashboard_and_the_report_show_a_run_on_verl(run: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(run), base_url="http://127.0.0.1")
    (shown,) = (row for row in client.get("/api/grid?run=.").json()["sources"] if row["source"] == "grounding")
    rewards = [metrics(run)["train", step]["grounding/reward"] for step in range(1, STEPS + 1)]
    assert shown["cells"]["reward"]["points"] == pytest.approx(rewards)
    boxes = next(group for _, group in rollouts(run, 1).groupby("group") if (group.source == "grounding").all())
    group = client.get(f"/api/group?run=.&step=1&group={boxes.group.iloc[0]}").json()
    assert [one["response"] for one in group["answers"]] == boxes.response.tolist()
    assert group["gold_shapes"]
    picture = PIL.Image.open(io.BytesIO(client.get(group["images"][0]["url"]).content))
    assert list(picture.size) == group["images"][0]["original"]

    assert " pictures" in write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert all(source in page for source in ("math", "chart", "grounding"))


def test_ctrl_c_ends_a_run_after_its_step_with_a_checkpoint_and_nothing_left_running(stopped: Path) -> None:
    output = stopped.parent / "output.txt"
    text = output.read_text()
    done = max(step for split, step in metrics(stopped) if split == "train")
    assert f"Stopped after step {done}. Go on: vtriune train --resume {stopped}" in text.splitlines()[-1]
    assert "KeyboardInterrupt" not in text
    assert json.loads((stopped / "run.json").read_text())["state"] == "stopped"
    assert done < 50
    assert (stopped / "checkpoints" / f"global_step_{done}" / "actor" / "fsdp_config.json").is_file()
    assert not (stopped / ".stop").exists()
    assert left_over(output) == []


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
    assert left_over(output) == []


def test_resuming_a_finished_run_shows_what_it_reached_and_starts_nothing(run: Path, folder: Path) -> None:
    output, before = folder / "finished.txt", (run / "run.json").read_bytes()
    assert train(output, "--resume", run).wait() == 0
    text = output.read_text()
    assert "mean over tasks" in text
    assert "Ray" not in text
    assert (run / "run.json").read_bytes() == before


def test_the_console_tells_every_step_and_evaluation_in_a_line(run: Path) -> None:
    text = (run.parent / "output.txt").read_text()
    for step in range(1, STEPS + 1):
        row = metrics(run)["train", step]
        sources = [f"{one} {row[f'{one}/reward']:.2f}" for one in ("chart", "grounding", "math")]
        assert re.search(rf"{step}/{STEPS}  reward {row['all/reward']:.2f}  .*{'.*'.join(sources)}", text)
    for done in (0, 2, STEPS):
        assert (
            f"{done}/{STEPS}  evaluated 4 held-out prompts  sampled {metrics(run)['eval', done]['all/score']:.1f}"
            in text
        )


def test_versions_name_verl_and_ray(run: Path) -> None:
    assert {"verl", "ray", "tensordict"} <= json.loads((run / "versions.json").read_text()).keys()


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
    (actor,) = (stopped / "checkpoints").glob("global_step_*/actor")
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
    shutil.copytree(MODEL, place / "model")
    weights = place / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    recipe = yaml.safe_load(write_recipe(place, ranks=1).read_text())
    recipe["model"]["path"] = "model"
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train(output, place / "recipe.yaml", "--out", place / "run").wait() == 2
    *_, trace, last = output.read_text().splitlines()
    assert last.startswith("error the run broke down: ")
    assert "SafetensorError" in trace  # line by line as python wrote it
    assert "SafetensorError" in last
    assert left_over(output) == []


def test_a_step_in_which_nobody_could_judge_teaches_nothing_and_the_run_goes_on(stopped: Path, folder: Path) -> None:
    """The stopped run resumed for two steps; its adapters are those of its checkpoint."""
    again, output = folder / "unjudged", folder / "unjudged.txt"
    shutil.copytree(stopped, again)
    done = max(step for split, step in metrics(stopped) if split == "train")
    recipe = yaml.safe_load((again / "recipe.yaml").read_text())
    recipe["data"]["train"] = [recipe["data"]["train"][0] | {"verifier": "broken"}]
    recipe["reward"]["load"] = ["support.verifiers:broken"]
    recipe |= {"steps": done + 2, "checkpoint": {"every": 1, "keep": 2}}
    (again / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train(output, "--resume", again).wait() == 0, output.read_text()
    assert json.loads((again / "run.json").read_text())["state"] == "finished"
    for step in (done + 1, done + 2):
        assert set(rollouts(again, step).status) == {"failed"}
        row = metrics(again)["train", step]
        assert row["all/failed_count"] == row["all/rollouts"] > 0
        assert row["all/grad_norm"] == row["all/loss"] == 0
    places_of = {path.name: path for path in (again / "checkpoints").glob("global_step_*")}
    assert set(places_of) == {f"global_step_{done + 1}", f"global_step_{done + 2}"}
    before = read_weights(stopped / "checkpoints" / f"global_step_{done}" / "actor")
    after = read_weights(places_of[f"global_step_{done + 2}"] / "actor")
    assert all(torch.equal(before[name], weight) for name, weight in after.items())


def test_a_step_in_which_no_row_gets_an_answer_ends_the_run_with_the_reason(folder: Path) -> None:
    place, output = folder / "no-answer", folder / "no-answer.txt"
    recipe = yaml.safe_load(write_recipe(place, ranks=1).read_text())
    (row,) = rows("math", "math", rare=False, split="train", count=1, seed=1)
    row["prompt"][-1]["content"] += " very" * 300
    write_rows([row], place / "train" / "long.parquet")
    recipe["data"]["train"] = [{"path": "train/long.parquet"}]
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train(output, place / "recipe.yaml", "--out", place / "run").wait() == 2
    told = "step 1: none of its rows got an answer, the first because the prompt has "
    assert output.read_text().splitlines()[-1].startswith(f"error {told}")
    assert told in json.loads((place / "run" / "run.json").read_text())["error"]
    listed = [json.loads(line) for line in (place / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [one["sample"] for one in listed] == ["train/long.parquet#0"]
    assert listed[0]["reason"].startswith(f"{PROMPTS * ANSWERS} answers are missing: the prompt has ")
    assert left_over(output) == []
