"""What the agent loop does that the runs of test_run.py don't show: their model never answers with a placeholder."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

if find_spec("verl") is None:
    pytest.skip("verl isn't installed here: make test-verl", allow_module_level=True)

from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from vtriune.integrations.verl.agent import PlaceholderFreeAgentLoop
from vtriune.types import UserError

IMAGE, VIDEO = 7, 8


@pytest.fixture
def loop() -> PlaceholderFreeAgentLoop:
    made = object.__new__(PlaceholderFreeAgentLoop)
    made._placeholders = [IMAGE, VIDEO]
    made.rollout_config = SimpleNamespace(prompt_length=3)
    return made


def output(ids: list[int]) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=[1],
        response_ids=ids,
        response_mask=[1] * len(ids),
        response_logprobs=[-float(k) for k in range(len(ids))],
        metrics=AgentLoopMetrics(),
    )


def test_placeholders_are_taken_out_of_an_answer_with_their_logprobs_and_counted(
    loop: PlaceholderFreeAgentLoop,
) -> None:
    answer = output([IMAGE, 5, VIDEO, 6])
    assert loop._remove_placeholders(answer) == 2
    assert (answer.response_ids, answer.response_mask, answer.response_logprobs) == ([5, 6], [1, 1], [-1.0, -3.0])
    assert loop._remove_placeholders(answer) == 0


def test_an_answer_of_placeholders_only_is_missing_for_that_reason(loop: PlaceholderFreeAgentLoop) -> None:
    with pytest.raises(UserError, match="the answer holds placeholder tokens only"):
        loop._remove_placeholders(output([IMAGE, IMAGE]))


def test_a_long_prompt_of_text_is_refused_and_not_cut(loop: PlaceholderFreeAgentLoop) -> None:
    assert loop._cap_text_prompt_length([1, 2, 3]) == [1, 2, 3]
    with pytest.raises(UserError, match=r"the prompt has 4 tokens.*; verl\.max_prompt_tokens is 3: raise it"):
        loop._cap_text_prompt_length([1, 2, 3, 4])
