"""The reward function file as EasyR1 loads and calls it: by EasyR1's own reward manager where EasyR1 is found.

EasyR1 is in no package registry, and its package is called verl, too: `make test-easyr1 EASYR1=<clone of it>`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.reward.conftest import Server
from transformers import AutoTokenizer

import vtriune.integrations
import vtriune.playground
from vtriune.reward.label import write_label
from vtriune.types import RewardSpec, Sample

FILE = Path(vtriune.integrations.__file__).parent / "easyr1.py"
MODEL = Path(vtriune.playground.__file__).parent / "base_model"


def is_easyr1() -> bool:
    """Is what is called verl here EasyR1?"""
    found = find_spec("verl")
    return bool(found and found.origin and (Path(found.origin).parent / "workers" / "reward" / "function.py").is_file())


only_easyr1 = pytest.mark.skipif(not is_easyr1(), reason="EasyR1 isn't here: make test-easyr1 EASYR1=<clone of it>")
Row = tuple[str, str]
"""An answer and its label."""


def called_by_easyr1(server: Server, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[float]]]:
    """Token-level rewards and the mask of answers, shapes (rows, tokens), and figures: of `AutoRewardManager`."""
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.workers.reward import AutoRewardManager, RewardConfig

    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="right")
    config = RewardConfig(reward_function=f"{FILE}:compute_score", reward_function_kwargs={"servers": [server.url]})
    config.post_init()
    answers = tokenizer([answer + tokenizer.eos_token for answer, _ in rows], padding=True, return_tensors="pt")
    mask = answers["attention_mask"]
    data = DataProto(
        TensorDict({"responses": answers["input_ids"], "response_mask": mask}, batch_size=len(rows)),
        {"ground_truth": np.array([label for _, label in rows], dtype=object)},
    )
    rewards, metrics = AutoRewardManager(config, tokenizer).compute_reward(data)
    return rewards, mask, metrics


def called_as_by_easyr1(server: Server, rows: list[Row]) -> tuple[list[float], dict[str, list[float]]]:
    """`AutoRewardManager.__init__` and `compute_reward_batch` of EasyR1 (commit b44b311,
    verl/workers/reward/function.py), call by call, with texts in place of token tensors.
    """
    spec = importlib.util.spec_from_file_location("custom_reward_fn", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_reward_fn"] = module
    spec.loader.exec_module(module)
    assert getattr(module, "REWARD_TYPE", "batch") == "batch"
    inputs = [{"response": answer, "response_length": 3, "ground_truth": label} for answer, label in rows]
    rewards: list[float] = []
    metrics: defaultdict[str, list[float]] = defaultdict(list)
    for score in partial(module.compute_score, servers=[server.url])(inputs):
        rewards.append(score["overall"])
        for key, value in score.items():
            metrics[key].append(value)
    return rewards, metrics


def label(spec: RewardSpec | str = "mathverify", name: str = "a#0") -> str:
    found = RewardSpec(spec, "4") if isinstance(spec, str) else spec
    return write_label(Sample(name, "gsm", "math", (), (), found))


ROWS = [
    (r"\boxed{4}", label()),
    (r"\boxed{5}", label()),
    ("4", label("no such verifier", "a#1")),
    ("5", label("no such verifier", "a#1")),
]
FIGURES = {"overall": 0.25, "no_verdict": 0.5, "accuracy": 0.5, "format": 0.0, "gsm/accuracy": 0.5}


def test_rewards_are_the_judges_and_figures_those_of_the_source(server: Server) -> None:
    rewards, metrics = called_as_by_easyr1(server, ROWS)
    assert rewards == [1.0, 0.0, 0.0, 0.0]
    assert {key: np.mean(value) for key, value in metrics.items()} == pytest.approx(FIGURES)


@only_easyr1
def test_easyr1_puts_our_rewards_on_last_tokens_and_learns_nothing_without_a_verdict(server: Server) -> None:
    from verl.trainer.core_algos import compute_grpo_outcome_advantage
    from verl.trainer.metrics import reduce_metrics

    rewards, mask, metrics = called_by_easyr1(server, ROWS)
    assert rewards.sum(-1).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert rewards[0].nonzero().item() == mask[0].sum() - 1
    assert reduce_metrics(metrics) == pytest.approx(FIGURES)
    advantages, _ = compute_grpo_outcome_advantage(rewards, mask, np.array(["a#0", "a#0", "a#1", "a#1"]))
    assert advantages[0, 0] > 0 > advantages[1, 0]
    assert advantages[2:].count_nonzero() == 0


@only_easyr1
def test_easyr1_tells_the_length_in_tokens(server: Server) -> None:
    brief = RewardSpec("shaping", "", parameters={"kind": "soft_overlong", "max_tokens": 100, "buffer_tokens": 50})
    rows = [("a " * count, label(brief, f"a#{count}")) for count in (1, 60, 400)]
    rewards, mask, _ = called_by_easyr1(server, rows)
    expected = [min(max((100 - length) / 50, 0), 1) for length in mask.sum(-1).tolist()]
    assert rewards.sum(-1).tolist() == pytest.approx(expected)
    assert 0 < expected[1] < 1
