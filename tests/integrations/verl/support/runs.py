"""Runs on verl on a CPU, and what their folders hold."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import yaml

import vtriune
from vtriune.data.schema import write_rows
from vtriune.playground.dataset import rows
from vtriune.types import Rollout

MODEL = Path(vtriune.__file__).parent / "playground" / "base_model"
STEPS, PROMPTS, ANSWERS = 4, 16, 4
RATE = 8e-4
MARK = "VTRIUNE_TEST_RUN"
"""Environment variable by which the processes of a run are known, Ray's included."""
LOOSE, STRICT = 0.02, 1.0
"""IoU thresholds of grounding in the first and in the second half of a run."""


def write_recipe(folder: Path, ranks: int) -> Path:
    """A recipe beside its rows: two optimizer steps a step, one verifier that breaks on a third of its answers."""
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
        "rollout": {
            "prompts_per_step": PROMPTS,
            "responses_per_prompt": ANSWERS,
            "max_new_tokens": 48,
            "temperature": 1.3,  # answers to one prompt shall differ
        },
        "update": {
            "learning_rate": RATE,
            "warmup_ratio": 0.5,
            "epsilon_low": 0.1,
            "epsilon_high": 0.14,
            "prompts_per_update": PROMPTS // 2,
            "tokens_per_batch": 1024,
        },
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
                "trainer.logger=[console]",  # verl's own figures, beside which ours are held
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
        MARK: str(output),
        "VERL_PLATFORM": "vtriune_cpu",
        "VERL_USE_EXTERNAL_MODULES": "support.plugin,support.recorder",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        # Ray would start processes ahead, as many as there are logical CPUs.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "vtriune.cli", "train", *map(str, arguments)]
    with output.open("wb") as sink:
        # In a group of its own, to which Ctrl-C can be sent as a terminal does.
        return subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def processes_of(output: Path) -> list[str]:
    """Command lines of the processes of a run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone by now
            if f"{MARK}={output}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def left_behind(output: Path) -> list[str]:
    """Command lines of the processes that a run left behind, when those that are about to end have had a minute."""
    for _ in range(600):
        if not processes_of(output):
            break
        time.sleep(0.1)
    return processes_of(output)


def metrics(run: Path) -> dict[tuple[str, int], dict[str, float]]:
    """The figures of a run, by split and step."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {(line["split"], line["step"]): line["metrics"] for line in lines}


def rollouts(run: Path, step: int) -> pd.DataFrame:
    """The answers of a step."""
    table = pd.read_parquet(run / "rollouts" / f"step-{step:06d}.parquet")
    return table.assign(iou=[json.loads(report).get("mean_iou") for report in table.report])


def recorded(run: Path, step: int) -> dict[str, tuple[np.ndarray, tuple[Rollout, ...]]]:
    """What recorder.py kept of a step: ids of the prompt and answers, by the sample's id."""
    found: dict[str, tuple[np.ndarray, tuple[Rollout, ...]]] = pickle.loads(
        (run / "answers" / f"{step}.pickle").read_bytes()
    )
    return found
