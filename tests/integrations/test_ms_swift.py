"""The plug-in as ms-swift loads, builds and calls it: by ms-swift's own function where it is installed."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.reward.conftest import Server

from vtriune.reward.label import write_label
from vtriune.types import RewardSpec, Sample

INSTALLED = find_spec("swift") is not None
GROUP = 2
STATE = SimpleNamespace(global_step=0, max_steps=10)


def rows(verifiers: list[str], answers: list[str]) -> list[dict[str, Any]]:
    """What `OnPolicySample.to_reward_row` makes (swift/rl_core/data.py, 4.6.0), as far as we see it."""
    return [
        {
            "messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": answer}],
            "prompt_id": str(number // GROUP),
            "response_token_ids": [[1, 2, 3]],
            "reward_label": write_label(Sample(f"a#{number // GROUP}", "gsm", "", (), (), RewardSpec(verifier, "4"))),
        }
        for number, (verifier, answer) in enumerate(zip(verifiers, answers, strict=True))
    ]


def called_by_swift(function: Callable[..., list[float]], rows: list[dict[str, Any]]) -> list[float]:
    """`compute_rewards_per_func`, the real one."""
    import torch
    from swift.rl_core.grpo_algorithm import compute_rewards_per_func

    samples = [SimpleNamespace(messages=one["messages"], to_reward_row=lambda one=one: one) for one in rows]
    told = compute_rewards_per_func(samples, [function], [None], torch.device("cpu"), STATE)
    rewards: list[float] = told[:, 0].tolist()
    return rewards


def called_as_by_swift(function: Callable[..., list[float]], rows: list[dict[str, Any]]) -> list[float]:
    """The same, call by call: swift/rl_core/grpo_algorithm.py, `compute_rewards_per_func`, and `rows_to_batched`."""
    assert not asyncio.iscoroutinefunction(type(function).__call__)
    completions = [one["messages"][-1]["content"] for one in rows]
    columns = {key: [one[key] for one in rows] for key in rows[0]}
    return function(completions, trainer_state=STATE, **columns)


@pytest.fixture
def judge(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plug-in as `_prepare_rewards` builds it: `orms[name](args=args)` (swift/rlhf_trainers/grpo_trainer.py)."""
    monkeypatch.setenv("VTRIUNE_SERVERS", server.url)
    if not INSTALLED:

        class ORM:
            """swift/rewards/orm.py."""

            def __init__(self, args: Any = None, **kwargs: Any) -> None:
                self.args = args

        rewards = ModuleType("swift.rewards")
        rewards.__dict__.update(ORM=ORM, orms={})
        monkeypatch.setitem(sys.modules, "swift", ModuleType("swift"))
        monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
    monkeypatch.delitem(sys.modules, "vtriune.integrations.ms_swift", raising=False)
    importlib.import_module("vtriune.integrations.ms_swift")
    return sys.modules["swift.rewards"].orms["vtriune"](args=SimpleNamespace(num_generations=GROUP))


def test_rewards_are_the_judges_and_what_has_no_verdict_is_neutral(judge: Any) -> None:
    call = called_by_swift if INSTALLED else called_as_by_swift
    asked = rows(["mathverify"] * 2 + ["no such verifier"] * 2, [r"\boxed{4}", r"\boxed{5}", "4", "5"])
    assert call(judge, asked) == [1.0, 0.0, 0.0, 0.0]
