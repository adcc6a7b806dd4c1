"""A whole run on verl, on a CPU: two ranks with FSDP2 over gloo, real Ray, the playground's model and rows through our
dataset, judge, agent loop, engine and trainer. The platform and the sampling engine are test-only (support/).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import yaml
from safetensors.torch import load_file

import vtriune
from vtriune.data.schema import write_rows
from vtriune.local.parts import NAMES
from vtriune.playground.dataset import rows

if TYPE_CHECKING:
    from tests.conftest import StartServer

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(find_spec("verl") is None, reason="verl isn't installed here: make test-verl"),
]

MODEL = Path(vtriune.__file__).parent / "playground" / "base_model"
STEPS, PROMPTS, ANSWERS = 4, 8, 4
LOOSE, STRICT = 0.02, 1.0
"""IoU thresholds of grounding in the first and in the second half of a run."""


def write_recipe(folder: Path, ranks: int) -> Path:
    for split, count in (("train", 16), ("test", 2)):
        for task in ("math", "chart", "grounding"):
            write_rows(
                rows(task, task, rare=False, split=split, count=count, seed=0),  # type: ignore[arg-type]
                folder / split / f"{task}.parquet",
            )
    recipe = {
        "steps": STEPS,
        "engine": "verl",
        "threads": 1,
        "model": {"path": str(MODEL), "device": "cpu"},
        "data": {
            "prompt_pool": False,
            "train": [
                {"path": "train/math.parquet", "weight": 1},
                {"path": "train/chart.parquet", "weight": 1, "verifier": "unreliable"},
                {
                    "path": "train/grounding.parquet",
                    "weight": 2,
                    "verifier_parm": {"iou_threshold": [[0.0, LOOSE], [0.5, STRICT]]},
                },
            ],
            "test": [{"path": "test/math.parquet"}, {"path": "test/grounding.parquet"}],
        },
        "reward": {"workers": 1, "load": ["support.verifiers:unreliable"]},
        "rollout": {"prompts_per_step": PROMPTS, "responses_per_prompt": ANSWERS, "max_new_tokens": 48},
        "update": {"learning_rate": 1e-3, "tokens_per_batch": 2048},
        "evaluation": {"every": 2, "responses_per_prompt": 2},
        "checkpoint": {"every": 2},
        "verl": {
            "gpus_per_node": ranks,
            "rollout": "transformers_cpu",
            "max_prompt_tokens": 256,
            "overrides": [
                "actor_rollout_ref.model.use_remove_padding=false",
                "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
                "actor_rollout_ref.actor.use_torch_compile=false",
                "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
                "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
                "actor_rollout_ref.rollout.agent.num_workers=1",
                "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
                "ray_kwargs.ray_init.num_cpus=16",  # logical, as the GPUs
                f"+ray_kwargs.ray_init.num_gpus={ranks}",
                "+ray_kwargs.ray_init.include_dashboard=false",
            ],
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(output: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Begin `vtriune train`, which writes what it says to `output`."""
    environment = os.environ | {
        "VERL_PLATFORM": "vtriune_cpu",
        "VERL_USE_EXTERNAL_MODULES": "support.plugin",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "vtriune.cli", "train", *map(str, arguments)]
    with output.open("wb") as sink:
        return subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs lie; in the environment of every process, `support` can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        places = Path(vtriune.__file__).parents[1], Path(__file__).parent
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        yield tmp_path_factory.mktemp("verl")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished run of two ranks."""
    output = folder / "output.txt"
    assert train(output, write_recipe(folder, ranks=2), "--out", folder / "run").wait() == 0, output.read_text()
    return folder / "run"


def metrics(run: Path) -> dict[tuple[str, int], dict[str, float]]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {(line["split"], line["step"]): line["metrics"] for line in lines}


def rollouts(run: Path, step: int) -> pd.DataFrame:
    table = pd.read_parquet(run / "rollouts" / f"step-{step:06d}.parquet")
    return table.assign(iou=[json.loads(report).get("mean_iou") for report in table.report])


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


def test_an_answer_without_a_verdict_enters_neither_the_mean_nor_the_loss(run: Path) -> None:
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
        # One update on policy: all ratios are 1, so that the loss follows from advantages and lengths alone.
        scored = table[table.status == "scored"]
        assert row["all/loss"] == pytest.approx(
            -(scored.advantage * scored.tokens).sum() / scored.tokens.sum(), abs=1e-5
        )
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
