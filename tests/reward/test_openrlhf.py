"""OpenRLHF's remote reward protocol, asked as OpenRLHF asks."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reward.conftest import Server

from vtriune.reward.label import write_label
from vtriune.reward.openrlhf import OpenRLHFRequest, read_openrlhf
from vtriune.types import RewardSpec, Sample, UserError

PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>2 + 2?<|im_end|>\n<|im_start|>assistant\n"
SEEN = PROMPT.replace("<|image_pad|>", "<|image_pad|>" * 16)


def label(gold: str = "4", verifier: str = "mathverify") -> str:
    return write_label(Sample("a#0", "gsm", "math", (), (), RewardSpec(verifier, gold)))


def payload(answer: str, gold: str = "4", verifier: str = "mathverify") -> dict[str, Any]:
    """As `SingleTurnAgentExecutor.execute` and `_fetch_rewards_via_http` make it (openrlhf/utils/agent.py, 0.11.2):
    the prompt as text, and the query as the tokenizer decodes prompt and answer, special tokens and all.
    """
    return {"query": [SEEN + answer], "prompts": [PROMPT], "labels": [label(gold, verifier)]}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>")))
def test_the_answer_is_what_follows_the_prompt_with_its_pictures_expanded(answer: str) -> None:
    asked = OpenRLHFRequest(**payload(answer + "<|im_end|>"))
    assert read_openrlhf(asked)[0].response == answer


@pytest.mark.parametrize("prompt", ["<a><a>x", "x<a>", "<|image_pad|>\n<|image_pad|>q", ""])
def test_marks_that_the_prompt_itself_repeats_are_no_part_of_the_answer(prompt: str) -> None:
    asked = OpenRLHFRequest(query=[prompt + "<a>yes"], prompts=[prompt], labels=[label()])
    assert read_openrlhf(asked)[0].response == "<a>yes"


def test_a_query_without_its_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="cut to max_len"):
        read_openrlhf(OpenRLHFRequest(query=[PROMPT[9:]], prompts=[PROMPT], labels=[label()]))


def test_one_answer_has_numbers_and_several_have_lists(server: Server) -> None:
    reply = server.http.post("/openrlhf", json=payload(r"\boxed{4}<|im_end|>"))
    assert reply.json() == {
        "rewards": 1.0,
        "scores": 1.0,
        "extra_logs": {"accuracy": 1.0, "format": 0.0, "correct": 1.0},
    }
    both = {key: value * 2 for key, value in payload(r"\boxed{5}").items()}
    assert server.http.post("/openrlhf", json=both).json()["rewards"] == [0.0, 0.0]


def test_what_has_no_verdict_is_an_error_and_never_a_number(server: Server) -> None:
    for body, why in (
        (payload("4", verifier="mathverfy"), "not registered"),
        (payload("4") | {"labels": ["4"]}, "label"),
        (payload("4") | {"labels": []}, "labels"),
        (payload("4") | {"labels": [label(), label()]}, "length"),
    ):
        reply = server.http.post("/openrlhf", json=body)
        assert reply.status_code == httpx.codes.UNPROCESSABLE_ENTITY
        assert why in reply.json()["detail"]
