"""The counting verifier: what is one whole number, and what a miss is worth."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.counting import Counting, CountingParams

VERIFIER, CONTEXT = Counting(), Context(preset="modern", split="train")


def judge(response: str, gold: str, value: Literal["exact", "distance"] = "exact") -> Outcome:
    params = CountingParams(value=value)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, CONTEXT), params, CONTEXT)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{4}", "4"),
        ("There are four cats.", "4"),
        ("4.0", "4"),
        ("1,250", "1250"),
        ("Twenty-one", "21"),
        ("ninety nine", "99"),
        ("one hundred and five", "105"),
        ("a hundred", "100"),
        ("nine hundred ninety-nine", "999"),
        ("zero", "0"),
        ("It adds up to four.", "4"),
        ("cats and dogs: four", "4"),
        ("7", "seven"),
    ],
)
def test_digits_and_words_are_counts(answer: str, gold: str) -> None:
    assert judge(answer, gold).correct


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "",
            "several",
            "4 or 5",
            "four or five",
            "4 cats and two dogs",
            "one two",
            "4 4",
            "not 4",
            "> 4",
            "4.5",
            "4%",
        ),
        *("at least 4", "at most 4", "less than 4", "more than four", "4+", "maybe 4, maybe a few more", "up to four"),
        *("four thousand", "twenty four hundred", "<think>4", "someone"),
    ],
)
def test_what_is_not_one_whole_number_is_0_in_both_values(answer: str) -> None:
    for value in ("exact", "distance"):
        assert judge(answer, "4", value).accuracy == 0


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [("4", "4", 1.0), ("5", "4", 0.75), ("3", "4", 0.75), ("8", "4", 0.0), ("100", "4", 0.0), ("1", "0", 0.0)],
)
def test_the_shaped_value_is_1_minus_the_relative_distance(answer: str, gold: str, expected: float) -> None:
    outcome = judge(answer, gold, "distance")
    assert (outcome.accuracy, outcome.correct) == (expected, answer == gold)
    assert judge(answer, gold).accuracy == float(answer == gold)


@pytest.mark.parametrize("gold", ["", "many", "-1", "2.5", "3, 4"])
def test_gold_that_is_no_count_is_unscorable(gold: str) -> None:
    with pytest.raises(Unscorable, match="not one whole number"):
        judge("1", gold)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_nearer_is_never_worth_less(gold: int, a: int, b: int) -> None:
    near, far = sorted((a, b), key=lambda count: abs(count - gold))
    values = [judge(str(count), str(gold), "distance").accuracy for count in (far, near, gold)]
    assert 0 <= values[0] <= values[1] <= values[2] == 1
