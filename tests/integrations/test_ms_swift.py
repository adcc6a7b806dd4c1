"""The plug-in as ms-swift loads, builds and calls it, each by ms-swift's own function.

Runs where ms-swift is installed: `make test-adapters`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.reward.conftest import Serve, Server

import vtriune.integrations
from vtriune.reward.label import write_label
from vtriune.types import RewardSpec, Sample, UserError

pytestmark = pytest.mark.skipif(find_spec("swift") is None, reason="ms-swift isn't installed here: make test-adapters")

FILE = Path(vtriune.integrations.__file__).parent / "ms_swift.py"
GROUP = 4
MATH = RewardSpec("mathverify", "4")
BRIEF = RewardSpec("shaping", "", parameters={"kind": "soft_overlong", "max_tokens": 100, "buffer_tokens": 50})
BOX = RewardSpec(
    "detection",
    '<answer>[{"bbox_2d": [0, 0, 40, 40], "label": "box"}]</answer>',
    parameters={"iou_threshold": [[0.0, 0.5], [0.5, 0.9]], "eval_iou_threshold": 0.5},
)
HALF = '<answer>[{"bbox_2d": [0, 0, 40, 24], "label": "box"}]</answer>'
"""IoU 0.6 with gold."""
UNKNOWN = RewardSpec("no such verifier", "4")


@pytest.fixture(scope="module")
def own_verifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verifier that breaks on one answer of a group."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "brittle.py").write_text(
        "def brittle(response: str, gold: str) -> float:\n"
        "    if response == '?':\n"
        "        raise RuntimeError('broken')\n"
        "    return float(response == gold)\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def server(serve: Serve) -> Server:
    started = serve("--load", "brittle:brittle")
    started.await_ready()
    return started


@pytest.fixture
def judge(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`--external_plugins <file>` (`BaseArguments._import_external_plugins`), then `GRPOTrainer._prepare_rewards`."""
    from swift.rewards import orms
    from swift.utils.utils import import_external_file

    monkeypatch.setenv("VTRIUNE_SERVERS", server.url)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which swift adds the plug-in's folder
    module = import_external_file(str(FILE))
    assert orms["vtriune"] is module.JudgeORM
    return orms["vtriune"](args=SimpleNamespace(num_generations=GROUP))


def sampled(spec: RewardSpec, answers: list[str], *, tokens: int = 3, turns: bool = False) -> list[Any]:
    """A row of the data set with answers of the sampling engine, as `RolloutTrainerMixin` puts them together: token ids
    in one list, or in one for each turn.
    """
    from swift.infer_engine.protocol import (
        ChatCompletionResponse,
        ChatCompletionResponseChoice,
        ChatMessage,
        RolloutOutput,
        UsageInfo,
    )
    from swift.rl_core.data import GRPOSample

    ids = list(range(tokens))
    row = {
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "reward_label": write_label(Sample("a#0", "gsm", "", (), (), spec)),
    }
    samples = []
    for answer in answers:
        choice = ChatCompletionResponseChoice(0, ChatMessage("assistant", answer), "stop", token_ids=ids)
        reply = ChatCompletionResponse("model", [choice], UsageInfo(0, 0, 0))
        sample = GRPOSample.from_row(row)
        sample.apply_rollout_output(
            rollout_output=RolloutOutput(response=reply, response_token_ids=ids if turns else [])
        )
        samples.append(sample)
    return samples


def rewards(judge: Any, samples: list[Any], step: int = 0) -> torch.Tensor:
    """`GRPOTrainer._compute_rewards_per_func` on one process. Shape (answers, 1)."""
    from swift.rl_core.grpo_algorithm import score_completions

    state = SimpleNamespace(global_step=step, max_steps=10)
    told: torch.Tensor = score_completions(samples, [judge], [None], False, torch.device("cpu"), state)
    return told


def test_rewards_are_the_judges(judge: Any) -> None:
    assert rewards(judge, sampled(MATH, [r"\boxed{4}", r"\boxed{5}"])).tolist() == [[1.0], [0.0]]


def test_its_advantages_leave_answers_without_a_verdict_out(judge: Any) -> None:
    from swift.rl_core.advantage import compute_advantages

    mixed = sampled(RewardSpec("brittle", "4"), ["4", "4", "5", "?"])
    found = torch.cat([rewards(judge, mixed), rewards(judge, sampled(UNKNOWN, ["4"] * GROUP))])
    advantages, _ = compute_advantages(found, torch.ones(1), GROUP)
    assert advantages[3:].tolist() == pytest.approx([0.0] * 5, abs=1e-6)
    assert advantages[0] == advantages[1] > 0 > advantages[2]


def test_half_a_group_without_a_verdict_stops_the_run(judge: Any) -> None:
    with pytest.raises(UserError, match="in another process"):
        rewards(judge, sampled(UNKNOWN, ["4"] * (GROUP // 2)))


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize(("tokens", "reward"), [(10, 1.0), (75, 0.5), (100, 0.0)])
def test_the_judge_is_told_the_length_in_tokens(judge: Any, turns: bool, tokens: int, reward: float) -> None:
    assert rewards(judge, sampled(BRIEF, ["4"], tokens=tokens, turns=turns)).item() == reward


@pytest.mark.parametrize(("step", "reward"), [(0, 0.6), (5, 0.0)])
def test_thresholds_follow_their_schedule(judge: Any, step: int, reward: float) -> None:
    assert rewards(judge, sampled(BOX, [HALF]), step).item() == pytest.approx(reward)
