"""The reward function file as EasyR1 loads and calls it."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.reward.conftest import Server

import vtriune.integrations
from vtriune.reward.label import write_label
from vtriune.types import RewardSpec, Sample

FILE = Path(vtriune.integrations.__file__).parent / "easyr1.py"


def compute_reward(server: Server, rows: list[dict[str, Any]]) -> tuple[list[float], dict[str, list[float]]]:
    """`AutoRewardManager.__init__` and `compute_reward_batch` of EasyR1 (commit b44b311,
    verl/workers/reward/function.py), call by call, with texts in place of token tensors. The package itself is not
    run here.
    """
    spec = importlib.util.spec_from_file_location("custom_reward_fn", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_reward_fn"] = module
    spec.loader.exec_module(module)
    assert getattr(module, "REWARD_TYPE", "batch") == "batch"
    scores = partial(module.compute_score, servers=[server.url])(rows)
    rewards: list[float] = []
    metrics: defaultdict[str, list[float]] = defaultdict(list)
    for score in scores:
        rewards.append(score["overall"])
        for key, value in score.items():
            metrics[key].append(value)
    return rewards, metrics


def row(response: str, verifier: str = "mathverify", name: str = "a#0") -> dict[str, Any]:
    label = write_label(Sample(name, "gsm", "math", (), (), RewardSpec(verifier, "4")))
    return {"response": response, "response_length": 3, "ground_truth": label}


def test_rewards_are_the_judges_and_figures_those_of_the_source(server: Server) -> None:
    rows = [
        row(r"\boxed{4}"),
        row(r"\boxed{5}"),
        row("4", "no such verifier", "a#1"),
        row("5", "no such verifier", "a#1"),
    ]
    rewards, metrics = compute_reward(server, rows)
    assert rewards == [1.0, 0.0, 0.0, 0.0]
    # EasyR1's `reduce_metrics`, verl/trainer/metrics.py.
    assert {key: np.mean(value) for key, value in metrics.items()} == pytest.approx(
        {"overall": 0.25, "no_verdict": 0.5, "accuracy": 0.5, "format": 0.0, "gsm/accuracy": 0.5}
    )
