"""The multiple-choice verifier: which texts choose one letter, and that hedges choose none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.multiple_choice import MultipleChoice, MultipleChoiceParams

VERIFIER, CONTEXT = MultipleChoice(), Context(preset="modern", split="train")
OPTIONS = ("A cat", "a dog", "not enough information", "vitamin C")


def judge(response: str, gold: str, **parameters: Any) -> Outcome:
    params = MultipleChoiceParams(**parameters)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, CONTEXT), params, CONTEXT)


@pytest.mark.parametrize(
    "answer",
    [
        *("B", "b", "(B)", "B.", "B)", "[B]", "**B**", "$B$", r"\text{B}", r"\boxed{\text{B}}", r"\boxed{B}"),
        *("B) red", "B. red", "B: red", "(b) red", "option B", "Option b is right", "The answer is B", "Answer: B"),
        *(r"The answer is \textbf{B}.", "I think it's B", "I'd say B.", "B, because I saw it", "B and only B"),
        *("<think>A? C?</think><answer>B</answer>", "A bird, so (B)"),
    ],
)
def test_one_letter_is_chosen(answer: str) -> None:
    assert judge(answer, "B").correct


@pytest.mark.parametrize(
    "answer",
    [
        *("A or B", "A, B", "A B", "a or b", "A/B", "A\nB", "(A) (B)", "B, not A", "option a or b", "A and B"),
        *("", "red", "not B", "It isn't B", "AB", "<think>B", "Option B or option K"),
    ],
)
@pytest.mark.parametrize("gold", ["A", "B"])
def test_hedges_denials_and_answers_without_a_letter_are_0(answer: str, gold: str) -> None:
    assert judge(answer, gold).accuracy == 0


@pytest.mark.parametrize("answer", ["A cat", "It is a cat.", "A Red car", "a red car", "A"])
def test_the_article_is_no_choice_but_the_letter_is(answer: str) -> None:
    assert judge(answer, "A").correct == (answer == "A")


@pytest.mark.parametrize(("answer", "expected"), [("I think so", 0.0), ("I", 1.0), ("(I)", 1.0), ("I'm sure", 0.0)])
def test_the_pronoun_is_no_choice_but_the_letter_is(answer: str, expected: float) -> None:
    assert judge(answer, "I").accuracy == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("a cat", "A", 1.0),
        ("A dog.", "B", 1.0),
        ("vitamin C", "D", 1.0),
        ("D. vitamin C", "D", 1.0),
        ("C) not enough information", "C", 1.0),
        ("A) a dog", "A", 0.0),
        ("A) a dog", "B", 0.0),
        ("A cat or a dog", "A", 0.0),
        ("E", "A", 0.0),
    ],
)
def test_an_options_text_is_its_letter(answer: str, gold: str, expected: float) -> None:
    assert judge(answer, gold, options=OPTIONS).accuracy == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("A, C", 1.0), ("C and A", 1.0), ("AC", 1.0), ("(A), (C)", 1.0), ("A", 0.0), ("A, B, C", 0.0), ("ABCD", 0.0)],
)
def test_of_several_letters_all_and_no_other_must_be_chosen(answer: str, expected: float) -> None:
    assert judge(answer, "A, C", several=True).accuracy == expected


@pytest.mark.parametrize(
    ("gold", "parameters"), [("A, B", {}), ("", {}), ("red", {}), ("K", {}), ("E", {"options": OPTIONS})]
)
def test_gold_that_is_not_one_of_the_letters_is_unscorable(gold: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(Unscorable, match="must be one of the letters"):
        judge("A", gold, **parameters)


@given(
    st.lists(st.sampled_from("ABCD"), min_size=2, max_size=4, unique=True), st.sampled_from([" ", ", ", " or ", "/"])
)
def test_no_choice_among_letters_is_ever_right(letters: list[str], joint: str) -> None:
    assert all(judge(joint.join(letters), gold).accuracy == 0 for gold in "ABCD")


@given(st.text(st.sampled_from("ABI abi().,:*\\{}'or not"), max_size=30))
def test_every_answer_is_right_for_one_letter_at_most(answer: str) -> None:
    outcomes = [judge(answer, gold) for gold in "ABCDEFGHIJ"]
    assert sum(outcome.accuracy for outcome in outcomes) <= 1
    assert {tuple(outcome.report) for outcome in outcomes} == {("n_chosen",)}
