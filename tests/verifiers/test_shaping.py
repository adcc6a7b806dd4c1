"""Length and repetition: DAPO's equation at its corners, the share of n-grams by counting, and what can't be judged."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import Progress, RewardSpec, Status
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.shaping import Shaping, ShapingParams

VERIFIER = Shaping()
DAPO: dict[str, Any] = {"kind": "soft_overlong", "max_tokens": 20480, "buffer_tokens": 4096}
"""The paper's own: 16,384 tokens expected, 4,096 more as the soft punish cache."""


def judge(response: str = "", tokens: int | None = None, **parameters: Any) -> Outcome:
    params = ShapingParams.model_validate(parameters)
    context = Context(preset="modern", split="train", response_tokens=tokens)
    return VERIFIER.judge(response, None, params, context)


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [
        (0, 0.0),
        (1, 0.0),
        (16384, 0.0),
        (16385, -1 / 4096),
        (18432, -0.5),
        (20479, -4095 / 4096),
        (20480, -1.0),
        (10**9, -1.0),
    ],
)
def test_soft_overlong_is_equation_13_of_dapo_plus_1(tokens: int, penalty: float) -> None:
    outcome = judge(tokens=tokens, **DAPO)
    assert (outcome.accuracy, outcome.report) == (1 + penalty, {"tokens": tokens, "penalty": penalty})
    assert (outcome.correct, bool(outcome.reason)) == (penalty == 0, penalty == -1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 12_000))
def test_soft_overlong_agrees_with_the_equation_as_printed(a: int, b: int, tokens: int) -> None:
    l_max, l_cache = max(a, b), min(a, b)
    if tokens <= l_max - l_cache:
        r_length = 0.0
    elif tokens <= l_max:
        r_length = ((l_max - l_cache) - tokens) / l_cache
    else:
        r_length = -1.0
    assert judge(tokens=tokens, kind="soft_overlong", max_tokens=l_max, buffer_tokens=l_cache).accuracy == 1 + r_length


def test_an_answer_of_unknown_length_is_unscorable_and_says_what_to_send() -> None:
    with pytest.raises(Unscorable, match="send response_tokens"):
        judge(**DAPO)
    item = JudgeItem("a", RewardSpec("shaping", "", parameters=DAPO), Progress(0, 1, "train"))
    assert judge_item(item).status is Status.UNSCORABLE


@pytest.mark.parametrize(
    ("text", "ngram", "accuracy"),
    [
        ("", 2, 1.0),
        ("one", 2, 1.0),
        ("a b c d", 2, 1.0),
        ("a b a b", 2, 2 / 3),
        ("A b a B", 2, 2 / 3),
        ("no no no no no", 1, 1 / 5),
        ("是是是是是", 1, 1 / 5),
        ("한국 한국", 1, 1 / 2),
        ("ab" * 50, 1, 1 / 5),
    ],
)
def test_repetition_is_the_share_of_distinct_ngrams(text: str, ngram: int, accuracy: float) -> None:
    outcome = judge(text, kind="repetition", ngram=ngram)
    assert (outcome.accuracy, outcome.report) == (accuracy, {"repetition": 1 - accuracy})


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
def test_repetition_agrees_with_counting(words: list[str], n: int) -> None:
    counts = Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))
    repeated = sum(count - 1 for count in counts.values())
    share = repeated / sum(counts.values()) if counts else 0.0
    assert judge(" ".join(words), kind="repetition", ngram=n).report["repetition"] == pytest.approx(share)


def test_a_text_repeated_is_worth_less_than_once() -> None:
    text = "The cat sits on the mat and looks at seven green birds."
    worths = [judge(f"{text} " * times, kind="repetition").accuracy for times in (1, 2, 4, 50)]
    assert worths == sorted(worths, reverse=True)
    assert worths[0] == 1
    assert worths[-1] < 0.03


@pytest.mark.parametrize("text", ["a", "a ", "是", "ab cd ", "\ud800 "])
def test_400000_characters_of_anything_are_judged(text: str) -> None:
    assert 0 < judge(text * (400_000 // len(text)), kind="repetition", ngram=10).accuracy < 0.01


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"kind": "soft_overlong"},
        {"kind": "soft_overlong", "max_tokens": 10},
        {"kind": "soft_overlong", "buffer_tokens": 10},
        {"kind": "soft_overlong", "max_tokens": 10, "buffer_tokens": 11},
        {"kind": "soft_overlong", "max_tokens": 10, "buffer_tokens": 0},
        {"kind": "repetition", "max_tokens": 10},
        {"kind": "repetition", "ngram": 0},
        {"kind": "repetition", "ngram": 11},
        {"kind": "repetition", "n": 3},
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ShapingParams.model_validate(parameters)
