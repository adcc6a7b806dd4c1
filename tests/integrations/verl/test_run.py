"""A whole run on verl, on a CPU: two ranks with FSDP2 over gloo, real Ray, the playground's model and rows through our
dataset, judge, agent loop, engine and trainer. The platform and the sampling engine are test-only (support/).
"""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import PIL.Image
import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from safetensors.torch import load_file
from tests.integrations.verl.support.runs import (
    ANSWERS,
    LOOSE,
    MODEL,
    PROMPTS,
    STEPS,
    STRICT,
    metrics,
    rollouts,
    train,
)
from transformers import AutoModelForImageTextToText

from vtriune import cli
from vtriune.local.parts import NAMES
from vtriune.rejudge.rejudging import Rejudging
from vtriune.watch.app import create_app
from vtriune.watch.report import write_report

if TYPE_CHECKING:
    from tests.conftest import StartServer

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(find_spec("verl") is None, reason="verl isn't installed here: make test-verl"),
]


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
    (again / "checkpoints" / "global_step_1" / "actor").mkdir(parents=True)  # of an earlier session
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

    kept = {path.name for path in (again / "checkpoints").glob("global_step_*")}
    assert kept == {"global_step_2", f"global_step_{STEPS}"}
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
