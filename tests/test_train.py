"""Whole runs of the real command on rows that a tiny model answers by rote: killed, stopped, resumed, damaged."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tests.conftest import StartServer, children, judge_workers
from tests.strange_servers import garbage, strange_server

from vtriune.curate.puzzlevqa import main
from vtriune.local.engine import LocalEngine
from vtriune.local.model import ModelConfig, VisionLanguageModel
from vtriune.local.update import Lesson
from vtriune.monitor.files import DamagedRun
from vtriune.monitor.runs import inspect, read_alerts
from vtriune.monitor.trackers.base import PACKAGES, TrackingConfig
from vtriune.recipe import Recipe, load_recipe
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.train import train
from vtriune.types import ImageSize, Progress, RewardSpec, UserError

Vtriune = Callable[..., subprocess.CompletedProcess[str]]

STEPS = 7
SCHEDULE = [(0.0, 0.5), (0.3, 0.8), (0.55, 0.95)]


@pytest.fixture(scope="session")
def recipe(rows: Path, playground: Path, taught_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several sources, a schedule, the prompt pool, off-policy updates, and checkpoints beside the evaluations."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    fields = {
        "seed": 5,
        "steps": STEPS,
        "threads": 1,
        "model": {"path": str(taught_model), "device": "cpu"},
        "data": {
            "train": [
                {"path": str(rows / "train_dots.jsonl"), "weight": 2},
                {
                    "path": str(rows / "train_boxes.parquet"),
                    "weight": 2,
                    "verifier_parm": {"iou_threshold": [list(one) for one in SCHEDULE]},
                },
                {"path": str(playground / "train"), "weight": 1},
            ],
            "test": [{"path": str(rows / "test_*")}, {"path": str(playground / "test")}],
        },
        "rollout": {
            "prompts_per_step": 8,
            "responses_per_prompt": 4,
            "max_new_tokens": 48,
            "temperature": 0.6,
            "cache_tokens": 500,
        },
        "update": {"learning_rate": 5e-5, "prompts_per_update": 4},
        "evaluation": {"every": 2, "samples_between": 2, "responses_per_prompt": 2, "prompts_per_chunk": 20},
        "checkpoint": {"every": 3, "keep": 2},
        "reward": {"workers": 1},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


class Training:
    """A training in a process of its own, which can be watched and killed."""

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        self.folder = folder
        self.output = folder.parent / f"output-{len(list(folder.parent.iterdir()))}.txt"
        command = [sys.executable, "-m", "vtriune.cli", "train", *map(str, arguments)]
        with self.output.open("wb") as sink:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)

    def await_row(self, step: int, split: str = "train") -> None:
        """Wait until the row of a step is in metrics.jsonl."""
        self._await(lambda: any((row["step"], row["split"]) == (step, split) for row in metrics(self.folder)))

    def await_output(self, text: str) -> None:
        """Wait until the training has said this."""
        self._await(lambda: text in self.output.read_text())

    def _await(self, happened: Callable[[], bool]) -> None:
        while not happened():
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.01)

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Send a signal, wait; exit code and output."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait()
        return code, self.output.read_text()


Start = Callable[..., Training]


@pytest.fixture
def start() -> Iterator[Start]:
    trainings: list[Training] = []

    def begin(folder: Path, *arguments: str | Path) -> Training:
        trainings.append(Training(folder, *arguments))
        return trainings[-1]

    yield begin
    for training in trainings:
        if training.process.poll() is None:
            training.end(signal.SIGKILL)


def metrics(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [orjson.loads(line) for line in lines]


def answers(folder: Path, split: str, step: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "rollouts" / f"{split}-{step:06d}.parquet").to_pylist()
    return rows


def set_aside(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "quarantine.jsonl").read_bytes().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """Equal in everything but the time it took."""
    timeless = [[{key: row[key] for key in row if key != "timing"} for row in metrics(run)] for run in (one, other)]
    assert timeless[0] == timeless[1]
    assert len(timeless[0]) == STEPS + STEPS // 2 + 2  # every second step, at first and at last
    names = [sorted(path.name for path in (run / "rollouts").iterdir()) for run in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        assert pq.read_table(one / "rollouts" / name).equals(pq.read_table(other / "rollouts" / name)), name
    for name in ("quarantine.jsonl", "alerts.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    last = f"checkpoints/step-{STEPS:06d}"
    assert (one / last / "model.safetensors").read_bytes() == (other / last / "model.safetensors").read_bytes()
    assert (one / last / "state.json").read_bytes() == (other / last / "state.json").read_bytes()
    states = [torch.load(run / last / "optimizer.pt", weights_only=True) for run in (one, other)]
    assert states[0]["optimizer"]["param_groups"] == states[1]["optimizer"]["param_groups"]
    assert torch.equal(states[0]["rng"], states[1]["rng"])
    moments = [state["optimizer"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for key, moment in moments[0].items():
        assert all(torch.equal(value, moments[1][key][name]) for name, value in moment.items())
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    assert summaries[0] | {"minutes": 0} == summaries[1] | {"minutes": 0}


@pytest.fixture(scope="session")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, output = Training(folder, recipe, "--out", folder).end()
    assert code == 0, output
    return folder


def eps_at(step: int) -> float:
    return [eps for start, eps in SCHEDULE if step / STEPS >= start][-1]


def with_servers(recipe: Path, folder: Path, servers: Sequence[str], **reward: float) -> Path:
    """The recipe, judged by servers."""
    fields = yaml.safe_load(recipe.read_text()) | {"reward": {"servers": list(servers), **reward}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.heavy
def test_reward_servers_make_the_same_run_as_the_embedded_judge(
    recipe: Path, whole: Path, reward_server: StartServer, tmp_path: Path
) -> None:
    servers = [reward_server("--workers", "1").url for _ in range(2)]
    code, output = Training(tmp_path / "run", with_servers(recipe, tmp_path, servers), "--out", tmp_path / "run").end()
    assert code == 0, output
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "fault",
    ["one killed", "one hangs", "one answers garbage", "all down and back", "workers killed", "fork server killed"],
)
def test_whatever_happens_to_servers_training_makes_the_same_run(
    recipe: Path, whole: Path, reward_server: StartServer, start: Start, tmp_path: Path, fault: str
) -> None:
    sound, doomed = (reward_server("--workers", "1") for _ in range(2))
    with strange_server(garbage) as strange:
        others = [strange] if fault == "one answers garbage" else [doomed.url]
        path = with_servers(recipe, tmp_path, [sound.url, *others], patience=3)
        training = start(tmp_path / "run", path, "--out", tmp_path / "run")
        training.await_row(2)
        match fault:
            case "one killed":
                doomed.stop(signal.SIGKILL)
            case "one hangs":
                doomed.process.send_signal(signal.SIGSTOP)
            case "all down and back":
                doomed.stop(signal.SIGKILL)
                sound.stop(signal.SIGKILL)
                time.sleep(10)
                reward_server("--workers", "1", "--port", str(sound.port))
            case "workers killed":
                for worker in judge_workers(doomed.process.pid):
                    os.kill(worker, signal.SIGKILL)
            case "fork server killed":
                os.kill(children(doomed.process.pid)[0], signal.SIGKILL)
        code, output = training.end()
    assert code == 0, output
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.heavy
def test_answers_that_no_server_judges_are_masked_and_counted_and_never_0(
    recipe: Path, reward_server: StartServer, start: Start, tmp_path: Path
) -> None:
    server = reward_server("--workers", "1")
    path = with_servers(recipe, tmp_path, [server.url], patience=1, deadline=3)
    training = start(tmp_path / "run", path, "--out", tmp_path / "run")
    training.await_row(2)
    server.stop(signal.SIGKILL)
    training.await_row(4)
    reward_server("--workers", "1", "--port", str(server.port))
    code, output = training.end()
    assert code == 0, output
    rows = {row["step"]: row["metrics"] for row in metrics(tmp_path / "run") if row["split"] == "train"}
    masked = 0
    for step in range(1, STEPS + 1):
        failed = [row for row in answers(tmp_path / "run", "step", step) if row["status"] == "failed"]
        assert rows[step]["all/failed_count"] == len(failed)
        for row in failed:
            assert (row["reward"], row["advantage"]) == (None, 0)
            assert "no verdict within 3 s" in row["reason"]
        masked += len(failed)
    assert masked > 0
    told = [alert for alert in read_alerts(tmp_path / "run") if alert.kind == "failed"]
    assert told
    for alert in told:
        assert rows[alert.since][f"{alert.source}/failed_count"] > 0
        assert f"! {alert.source}: failed since step {alert.since}: " in output
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "train"))
    shown.Reload()
    for alert in told:
        assert shown.Scalars(f"alert/{alert.source}/failed")[0].value == 1
    assert rows[STEPS]["all/failed_count"] == 0


def test_a_run_ends_with_a_table_per_source_and_is_shown_as_finished(whole: Path, vtriune: Vtriune) -> None:
    table = (whole.parent / "output-0.txt").read_text()
    assert f"{STEPS}/{STEPS}" in table
    for word in ("boxes", "dots", "mean over tasks", "before", "after", f"vtriune runs show {whole}"):
        assert word in table
    shown = vtriune("runs", "show", whole)
    assert shown.returncode == 0, shown.stderr
    assert "finished" in shown.stdout
    assert "mean over tasks" in shown.stdout
    listed = vtriune("runs", "list", whole.parent)
    assert "whole" in listed.stdout
    assert f"{STEPS}/{STEPS}" in listed.stdout


def test_the_summary_has_the_promised_shape_and_agrees_with_the_stored_answers(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    kinds = {"sources": dict, "mean_before": float, "mean_after": float, "minutes": float, "steps": int, "seed": int}
    assert {key: type(value) for key, value in summary.items()} == kinds
    assert (summary["steps"], summary["seed"]) == (STEPS, 5)
    means = {"before": summary["mean_before"], "after": summary["mean_after"]}
    by_task: dict[str, dict[str, list[float]]] = {}
    for name, source in summary["sources"].items():
        assert {key: type(value) for key, value in source.items()} == {"task": str} | dict.fromkeys(
            ("before", "after", "greedy_before", "greedy_after"), float
        )
        for when, step in (("before", 0), ("after", STEPS)):
            rows = [row for row in answers(whole, "eval", step) if row["source"] == name]
            for key, decoding in ((when, "sampled"), (f"greedy_{when}", "greedy")):
                accuracies = [row["accuracy"] for row in rows if row["decoding"] == decoding]
                assert source[key] == pytest.approx(100 * sum(accuracies) / len(accuracies))
            by_task.setdefault(source["task"], {}).setdefault(when, []).append(source[when])
    assert len(by_task) == 8
    assert len(summary["sources"]) == 18
    for when, mean in means.items():
        tasks = [sum(scores[when]) / len(scores[when]) for scores in by_task.values()]
        assert mean == pytest.approx(sum(tasks) / len(tasks))


def test_the_scheduled_threshold_moves_in_training_and_stays_fixed_in_evaluation(whole: Path) -> None:
    seen: set[float] = set()
    telling = 0
    for step in range(1, STEPS + 1):
        for row in answers(whole, "step", step):
            assert (row["progress_step"], row["total_steps"], row["split"]) == (step - 1, STEPS, "train")
            report = json.loads(row["report"])
            if row["source"] == "boxes" and report["n_pred"] == 1:
                eps, overlap = eps_at(step - 1), report["mean_iou"]
                assert row["accuracy"] == (overlap if overlap >= eps else 0)
                seen.add(eps)
                telling += 0.5 <= overlap < 0.95  # rewarded under one stage, refused under another
    assert seen == {0.5, 0.8, 0.95}
    assert telling
    for step in (0, STEPS):
        reports = [(row, json.loads(row["report"])) for row in answers(whole, "eval", step) if row["source"] == "boxes"]
        single = [(row["accuracy"], report["mean_iou"]) for row, report in reports if report["n_pred"] == 1]
        assert all(accuracy == (overlap if overlap >= 0.5 else 0) for accuracy, overlap in single)
        assert {row["split"] for row, _ in reports} == {"test"}


def test_every_stored_verdict_follows_from_what_is_stored_beside_it(whole: Path) -> None:
    seen = set()
    for path in (whole / "rollouts").iterdir():
        for row in pq.read_table(path).to_pylist():
            spec = RewardSpec(
                row["verifier"],
                row["gold"],
                row["accuracy_weight"],
                row["format_weight"],
                json.loads(row["parameters"]),
                row["preset"],
            )
            sizes = tuple(ImageSize(tuple(one["original"]), tuple(one["resized"])) for one in row["images"])
            progress = Progress(row["progress_step"], row["total_steps"], row["split"])
            verdict = judge_item(JudgeItem(row["response"], spec, progress, sizes))
            for field in ("status", "reward", "accuracy", "format", "correct", "reason"):
                assert row[field] == getattr(verdict, field), (row, field)
            assert json.loads(row["report"]) == verdict.report
            seen.add((row["verifier"], row["split"], row["correct"]))
    assert len(seen) == 8


def test_a_trained_run_judged_again_agrees_with_its_log_to_the_last_bit(whole: Path, vtriune: Vtriune) -> None:
    stored = sum(pq.read_metadata(path).num_rows for path in (whole / "rollouts").iterdir())
    done = vtriune("rejudge", whole)
    assert (done.returncode, done.stdout) == (0, f"{stored} of {stored} verdicts agree with the log to the last bit\n")


def test_training_changes_the_language_model_only(whole: Path, taught_model: Path) -> None:
    before = load_file(taught_model / "model.safetensors")
    after = load_file(whole / f"checkpoints/step-{STEPS:06d}" / "model.safetensors")
    assert before.keys() == after.keys()
    changed: dict[str, set[bool]] = {}
    vlm = VisionLanguageModel(ModelConfig(path=str(taught_model), device="cpu"))
    for name, value in vlm.model.named_parameters():  # the file has older names
        old = name if name in before else next(one for one in before if name.endswith(f".{one.removeprefix('model.')}"))
        assert torch.equal(value, before[old])
        changed.setdefault(vlm.places[name].part, set()).add(not torch.equal(value, after[old]))
    assert changed == {"vision": {False}, "connector": {False}, "llm": {True}}


def test_the_last_checkpoints_are_kept_and_are_ordinary_model_folders(whole: Path) -> None:
    kept = sorted((whole / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["step-000006", "step-000007"]
    model = VisionLanguageModel(ModelConfig(path=str(kept[-1])))
    assert model.image_token == "<|image_pad|>"


def test_the_resolved_recipe_in_the_run_folder_loads_again_and_is_equal(whole: Path, recipe: Path) -> None:
    assert load_recipe(whole / "recipe.yaml") == load_recipe(recipe)


@pytest.mark.heavy
def test_a_run_killed_between_checkpoints_and_in_an_evaluation_continues_to_the_last_bit(
    whole: Path, recipe: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    training = start(run, recipe, "--out", run)
    training.await_row(2)  # two steps after the first checkpoint, which was made before all of them
    assert training.end(signal.SIGKILL)[0] == -signal.SIGKILL
    training = start(run, "--resume", run)
    training.await_row(STEPS)  # the last evaluation, which comes before the last checkpoint
    assert training.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    training = start(run, "--resume", run)
    assert training.end()[0] == 0
    assert_same_run(run, whole)
    starts = [session["from_step"] for session in json.loads((run / "run.json").read_text())["sessions"]]
    assert starts[0] == 0
    assert starts[1] in (0, 3)
    assert starts[2] in (6, STEPS)


def test_ctrl_c_stops_after_the_step_and_the_run_continues_to_the_last_bit(
    whole: Path, recipe: Path, tmp_path: Path, start: Start
) -> None:
    run = tmp_path / "run"
    training = start(run, recipe, "--out", run)
    training.await_row(1)
    code, output = training.end(signal.SIGINT)
    assert code == 130, output
    assert "Traceback" not in output
    last = metrics(run)[-1]["step"]
    assert f"Stopped after step {last}. Go on: vtriune train --resume {run}" in output
    assert (run / f"checkpoints/step-{last:06d}").is_dir()
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"
    code, output = start(run, "--resume", run).end()
    assert code == 0, output
    assert_same_run(run, whole)


def test_a_second_ctrl_c_stops_in_the_middle_of_a_step(recipe: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    training = start(run, recipe, "--out", run, "rollout.responses_per_prompt=1000")
    training.await_row(0, "eval")
    training.process.send_signal(signal.SIGINT)
    training.await_output("Ctrl-C again stops at once")
    code, output = training.end(signal.SIGINT)
    assert code == 130, output
    assert "Traceback" not in output
    assert f"Stopped at once. A run goes on from its last checkpoint: vtriune train --resume {run}" in output
    assert [row["step"] for row in metrics(run)] == [0]
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"


def test_a_judge_that_is_killed_costs_nothing(whole: Path, recipe: Path, tmp_path: Path, start: Start) -> None:
    run = tmp_path / "run"
    training = start(run, recipe, "--out", run)
    for step in (1, 4):
        training.await_row(step)
        os.kill(judge_workers(training.process.pid)[0], signal.SIGKILL)
    code, output = training.end()
    assert code == 0, output
    assert all(row["metrics"]["all/failed_count"] == 0 for row in metrics(run) if row["split"] == "train")
    assert_same_run(run, whole)


@pytest.mark.heavy
def test_a_run_with_every_part_of_the_objective_goes_on_to_the_last_bit(
    recipe: Path, tmp_path: Path, start: Start
) -> None:
    objective = {
        "advantage": "gdpo",
        "loss": "cispo",
        "normaliser": "answers",
        "kl_coefficient": 0.05,
        "entropy_coefficient": 0.001,
        "truncated_is": 2.0,
        "dynamic_sampling": 2,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"objective": objective}))
    whole, run = tmp_path / "whole", tmp_path / "run"
    code, output = start(whole, path, "--out", whole).end()
    assert code == 0, output
    training = start(run, path, "--out", run)
    training.await_row(5)
    training.end(signal.SIGKILL)
    code, output = start(run, "--resume", run).end()
    assert code == 0, output
    assert_same_run(run, whole)
    rows = [row["metrics"] for row in metrics(run) if row["split"] == "train"]
    assert all(row["all/sampler_weight"] == pytest.approx(1, abs=1e-3) for row in rows)
    assert rows[0]["all/kl"] < rows[-1]["all/kl"]
    assert all(row["all/policy_entropy"] > 0 for row in rows)
    assert max(row["all/groups"] for row in rows) > 8  # of a step's 8 prompts some taught nothing


@pytest.fixture
def small(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe of a run that is as short as can be."""

    def write(train: Path, test: Path, **changes: Any) -> Path:
        fields = {
            "steps": 2,
            "threads": 1,
            "model": {"path": str(tiny_model), "device": "cpu"},
            "data": {"train": [{"path": str(train)}], "test": [{"path": str(test)}]},
            "rollout": {"prompts_per_step": 2, "responses_per_prompt": 2, "max_new_tokens": 8},
            "evaluation": {"responses_per_prompt": 2},
            "reward": {"workers": 1},
        }
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(fields | changes))
        return path

    return write


def test_rows_that_turn_out_bad_are_set_aside_for_good(
    tmp_path: Path, small: Callable[..., Path], start: Start
) -> None:
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "good.png")
    PIL.Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "whole.jpg")
    (tmp_path / "short.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-500])  # its header is sound
    PIL.Image.new("RGB", (4000, 4), "red").save(tmp_path / "thread.png")  # no processor takes such a shape
    for split in ("train", "test"):
        lines = [
            {
                "data_source": "mixed",
                "images": [picture],
                "prompt": [{"role": "user", "content": "<image>How many?"}],
                "ability": "counting",
                "reward_model": {"ground_truth": "4", "verifier": "mathverify"},
            }
            for picture in ("good.png", "short.jpg", "thread.png", "good.png")
        ]
        (tmp_path / f"{split}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    run = tmp_path / "run"
    one_row_a_step = {"prompts_per_step": 1, "responses_per_prompt": 2, "max_new_tokens": 8}
    changes = {"steps": 12, "checkpoint": {"every": 1}, "rollout": one_row_a_step}
    training = start(run, small(tmp_path / "train.jsonl", tmp_path / "test.jsonl", **changes), "--out", run)
    training.await_row(5)  # every row has been drawn once
    training.end(signal.SIGKILL)
    found = set_aside(run)
    assert sorted(row["sample"] for row in found) == [
        f"{split}.jsonl#{n}" for split in ("test", "train") for n in (2, 3)
    ]
    reasons = {row["sample"]: row["reason"] for row in found}
    for split, found_at in (("test", {0}), ("train", {1, 2, 3, 4})):
        assert {row["step"] for row in found if row["sample"].startswith(split)} <= found_at
        assert f"{split}.jsonl row 2" in reasons[f"{split}.jsonl#2"]
        assert "cannot be read as a picture" in reasons[f"{split}.jsonl#2"]
        assert f"{split}.jsonl#3" in reasons[f"{split}.jsonl#3"]
        assert "aspect ratio" in reasons[f"{split}.jsonl#3"]
    code, output = start(run, "--resume", run).end()
    assert code == 0, output
    assert set_aside(run) == found
    steps = [answers(run, "step", step) for step in range(1, 13)]
    assert sorted(len(rows) for rows in steps) == [0] * 2 + [2] * 10  # a step whose only row is bad learns nothing
    asked = {row["sample_id"] for rows in steps for row in rows}
    assert asked == {"train.jsonl#1", "train.jsonl#4"}
    for step in (0, 12):
        assert {row["sample_id"] for row in answers(run, "eval", step)} == {"test.jsonl#1", "test.jsonl#4"}


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the gradient of a loaded model NaN from some optimizer step of the session on, for so many."""
    original = LocalEngine.__init__

    def poison(first: int, count: int) -> None:
        def loading(self: LocalEngine, *arguments: Any) -> None:
            original(self, *arguments)
            steps = itertools.count()
            step = self.learner._optimizer_step

            def counted(lessons: Sequence[Lesson], *given: Any) -> Any:
                self.vlm.model.poisoned = first <= next(steps) < first + count
                # Whether answers to a prompt differ is chance; here each lesson has a gradient.
                return step([replace(one, advantages=np.arange(len(one.token_ids)) - 1.0) for one in lessons], *given)

            monkeypatch.setattr(self.learner, "_optimizer_step", counted)
            weight = next(one for one in self.vlm.model.parameters() if one.requires_grad and one.ndim > 1)
            weight.register_hook(lambda g: torch.full_like(g, math.nan) if self.vlm.model.poisoned else g)

        monkeypatch.setattr(LocalEngine, "__init__", loading)

    return poison


@pytest.fixture
def dots(rows: Path, taught_model: Path, small: Callable[..., Path]) -> Callable[..., Recipe]:
    """A short run with two optimizer steps a training step."""

    def make(**update: Any) -> Recipe:
        path = small(
            rows / "train_dots.jsonl",
            rows / "test_dots.jsonl",
            steps=6,
            model={"path": str(taught_model), "device": "cpu"},
            rollout={"prompts_per_step": 4, "responses_per_prompt": 4, "max_new_tokens": 24},
            update={"prompts_per_update": 2, "learning_rate": 1e-5} | update,
        )
        return load_recipe(path)

    return make


def skipped_rows(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "skipped.jsonl").read_bytes().splitlines()]


def test_gradients_that_stay_nan_stop_training_with_a_checkpoint_from_which_it_goes_on(
    dots: Callable[..., Recipe], poisoned: Callable[..., None], tmp_path: Path
) -> None:
    recipe, run, console = dots(max_skipped_in_a_row=3), tmp_path / "run", Console(quiet=True)
    poisoned(first=3, count=100)  # the second one of the second step
    message = r"stopped after step 3: .* of the last 3 optimizer steps was not finite.*skipped.jsonl.*--resume"
    with pytest.raises(UserError, match=message):
        train(recipe, run, console)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-000000", "step-000003"]
    state = json.loads((run / "run.json").read_text())
    assert state["state"] == "failed"
    assert "not finite" in state["error"]
    rows = skipped_rows(run)
    assert [row["step"] for row in rows] == [2, 3, 3]
    for row in rows:
        asked = {answer["sample_id"] for answer in answers(run, "step", row["step"])}
        assert 0 < len(row["samples"]) <= 2
        assert set(row["samples"]) <= asked
        assert "gradient nan" in row["reason"]
    weights = load_file(run / "checkpoints/step-000003/model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())

    poisoned(first=0, count=100)
    with pytest.raises(UserError, match=r"stopped after step 4: .* of the last 4 optimizer"):  # the first one is enough
        train(recipe, run, console, resume=True)
    poisoned(first=0, count=0)
    train(recipe, run, console, resume=True)
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert [row["step"] for row in skipped_rows(run)] == [2, 3, 3, 4]


def test_skipped_steps_that_are_fewer_than_allowed_do_not_stop_training(
    dots: Callable[..., Recipe], poisoned: Callable[..., None], tmp_path: Path
) -> None:
    poisoned(first=1, count=2)
    train(dots(max_skipped_in_a_row=3), tmp_path / "run", Console(quiet=True))
    assert [row["step"] for row in skipped_rows(tmp_path / "run")] == [1, 2]
    rows = [row["metrics"] for row in metrics(tmp_path / "run") if row["split"] == "train"]
    assert [row["all/skipped_updates"] for row in rows] == [1, 1, 0, 0, 0, 0]
    assert all(f"layer_00/grad_norm_{part}" in row for row in rows for part in ("llm",))


def test_a_run_with_adapters_that_is_killed_goes_on_to_the_last_bit_and_is_exported_merged(
    rows: Path, taught_model: Path, small: Callable[..., Path], tmp_path: Path, start: Start, vtriune: Vtriune
) -> None:
    recipe = small(
        rows / "train_dots.jsonl",
        rows / "test_dots.jsonl",
        steps=5,
        model={"path": str(taught_model), "device": "cpu", "lora": {"rank": 2, "alpha": 4}},
        rollout={"prompts_per_step": 4, "responses_per_prompt": 4, "max_new_tokens": 24},
        update={"prompts_per_update": 2, "learning_rate": 3e-2, "warmup_ratio": 0},
        evaluation={"every": 1, "responses_per_prompt": 4},
        checkpoint={"every": 2, "keep": 1, "keep_best": True},
    )
    whole, run = tmp_path / "whole", tmp_path / "run"
    code, output = start(whole, recipe, "--out", whole).end()
    assert code == 0, output
    training = start(run, recipe, "--out", run)
    training.await_row(3)  # a step after the second checkpoint
    training.end(signal.SIGKILL)
    code, output = start(run, "--resume", run).end()
    assert code == 0, output

    timeless = [[{key: row[key] for key in row if key != "timing"} for row in metrics(one)] for one in (whole, run)]
    assert timeless[0] == timeless[1]
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    for name in names:
        for file in ("adapter_model.safetensors", "state.json"):
            one, other = ((folder / "checkpoints" / name / file).read_bytes() for folder in (whole, run))
            assert one == other, (name, file)

    scores = {row["step"]: row["metrics"]["all/score"] for row in metrics(run) if row["split"] == "eval"}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert names == sorted({f"step-{best:06d}", "step-000005"})
    for arguments, step in ((["--best"], best), (["--step", "5"], 5), ([], 5)):
        out = tmp_path / f"model{len(arguments)}"
        exported = vtriune("export", run, out, *arguments)
        assert exported.returncode == 0, exported.stderr
        assert f"step-{step:06d}" in exported.stdout
        assert VisionLanguageModel(ModelConfig(path=str(out), device="cpu")).image_token == "<|image_pad|>"
    base, merged = load_file(taught_model / "model.safetensors"), load_file(tmp_path / "model0" / "model.safetensors")
    assert base.keys() == merged.keys()
    changed = {name for name, value in base.items() if not torch.equal(value, merged[name])}
    assert changed
    assert all(".layers." in name for name in changed)
    for arguments, message in (
        (["--step", "3"], "holds no step-000003; there are"),
        (["--best", "--step", "5"], "out"),
    ):
        refused = vtriune("export", run, tmp_path / "other", *arguments)
        assert refused.returncode == 2
        assert message in refused.stderr


@pytest.mark.heavy
def test_puzzlevqa_trains_end_to_end_at_its_own_resolution(tmp_path: Path, start: Start, fixtures: Path) -> None:
    main(fixtures / "puzzlevqa" / "puzzlevqa_20.jsonl", tmp_path / "puzzles.parquet", test_every=5)
    run = tmp_path / "run"
    code, output = start(
        run,
        fixtures.parents[1] / "recipes" / "puzzlevqa.yaml",
        f"data.train=[{{path: {tmp_path}/puzzles.parquet}}]",
        f"data.test=[{{path: {tmp_path}/puzzles_test.parquet}}]",
        *("steps=2", "threads=1", "model.device=cpu", "reward.workers=1"),
        *("rollout.prompts_per_step=8", "rollout.responses_per_prompt=2", "rollout.max_new_tokens=24"),
        *("--out", run),
    ).end()
    assert code == 0, output
    asked = [row for step in (1, 2) for row in answers(run, "step", step)]
    assert len({row["sample_id"] for row in asked}) == 16
    assert len({row["sample_id"] for row in answers(run, "eval", 2)}) == 4
    for row in asked:
        assert (row["source"], row["task"], row["status"]) == ("puzzlevqa", "puzzle", "scored")
        assert row["images"][0]["original"] == [512, 512]
        assert row["images"][0]["resized"] == [504, 504]  # 18 x 18 visual tokens of 28 px
    for row in metrics(run):
        assert f"puzzlevqa/{'reward' if row['split'] == 'train' else 'score'}" in row["metrics"]
    assert json.loads((run / "summary.json").read_text())["sources"]["puzzlevqa"]["task"] == "puzzle"
    assert (run / "quarantine.jsonl").read_bytes() == b""


def test_a_log_file_has_the_whole_line_of_each_step_and_evaluation(dots: Callable[..., Recipe], tmp_path: Path) -> None:
    log = Console(file=io.StringIO(), width=20)
    train(dots(), tmp_path / "run", log)
    lines = log.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(re.fullmatch(r"0/\d  evaluated \d+ held-out prompts  sampled .*  greedy .*", line) for line in lines)
    assert any(re.fullmatch(r"1/\d  reward -?\d.*  0:\d\d:\d\d left(  [^ ]+ -?\d\.\d\d)+ *", line) for line in lines)


def test_a_finished_run_goes_on_when_its_recipe_asks_for_more_steps(
    dots: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(dots(), run, Console(quiet=True))
    longer = yaml.safe_load((run / "recipe.yaml").read_text())
    longer["steps"] += 1
    (run / "recipe.yaml").write_text(yaml.safe_dump(longer))
    train(load_recipe(run / "recipe.yaml"), run, Console(quiet=True), resume=True)
    info = inspect(run)
    assert (info.state, info.step, info.total_steps) == ("finished", longer["steps"], longer["steps"])
    assert json.loads((run / "summary.json").read_text())["steps"] == longer["steps"]


def test_a_tracker_that_fails_ends_no_training_and_its_failures_are_counted_at_the_end(
    dots: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("a file stands where TensorBoard's folder should be")
    train(dots(), run, Console(quiet=True))
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    rows = len(metrics(run))
    said = f"tensorboard failed {rows} times in this run; metrics.jsonl in its folder has all figures"
    assert [record.getMessage() for record in caplog.records if "tensorboard failed" in record.getMessage()] == [
        "tensorboard failed, training goes on; later failures are only counted",
        said,
    ]


def test_a_run_whose_first_rows_are_damaged_is_shown_as_failed_when_it_can_not_go_on(
    dots: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(dots(), run, Console(quiet=True))
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([b'{"step": 0}\n', *rows[1:]]))
    with pytest.raises(DamagedRun):
        train(load_recipe(run / "recipe.yaml"), run, Console(quiet=True), resume=True)
    state = json.loads((run / "run.json").read_text())
    assert state["state"] == "failed"
    assert state["error"].startswith("DamagedRun: ")


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_read_or_written(
    dots: Callable[..., Recipe], tmp_path: Path
) -> None:
    absent = next((name for name in PACKAGES if find_spec(name) is None), None)
    if absent is None:
        pytest.skip("all trackers are installed here")
    recipe = dots().model_copy(update={"tracking": TrackingConfig.model_validate({"with": [absent]})})
    with pytest.raises(UserError, match=rf"tracking\.with: {absent} is not installed"):
        train(recipe, tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_resumed_training_goes_on_with_its_run_of_wandb(
    dots: Callable[..., Recipe], poisoned: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = dots(max_skipped_in_a_row=3).model_copy(
        update={"tracking": TrackingConfig.model_validate({"with": ["wandb"]})}
    )
    poisoned(first=3, count=100)
    with pytest.raises(UserError, match="stopped after step 3"):
        train(recipe, tmp_path / "run", Console(quiet=True))
    poisoned(first=0, count=0)
    resolved = load_recipe(tmp_path / "run" / "recipe.yaml")
    train(resolved, tmp_path / "run", Console(quiet=True), resume=True)
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    stored = [path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")]
    assert stored == [f"run-{run_id}.wandb"] * 2
