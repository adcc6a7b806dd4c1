from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.monitor.votes import most_voted, voted
from vtriune.verifiers.answers import final_answer


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("4", "4"),
        ("", ""),
        (r"\boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"<think>\boxed{3}</think> <answer> \boxed{ 4 } </answer>", "4"),
        ("<answer>4</answer> or <answer>5</answer>", "5"),
        ("<answer>cut o", "cut o"),
        (r"\boxed{cut o", "cut o"),
        ("<think>4, or", ""),
    ],
)
def test_an_answer_stands_for_what_it_says_at_last(response: str, text: str) -> None:
    assert voted(response) == text


PIECES = ["<think>", "</think>", "<answer>", "</answer>", r"\boxed{4}", r"\boxed{\frac{1}{2}}", "4", " "]


@given(st.lists(st.sampled_from(PIECES), max_size=7))
def test_it_is_what_the_verifiers_read(pieces: list[str]) -> None:
    assert voted("".join(pieces)) == final_answer("".join(pieces))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.randoms())
def test_no_order_of_the_answers_changes_who_wins(texts: list[str], rng: Random) -> None:
    shuffled = texts.copy()
    rng.shuffle(shuffled)
    assert sorted(texts[k] for k in most_voted(texts)) == sorted(shuffled[k] for k in most_voted(shuffled))


def test_answers_that_stand_for_nothing_have_no_vote_unless_all_do() -> None:
    assert most_voted(["", "4", "<think>4", "5", "4", " "]) == [1, 4]
    assert most_voted(["", "<think>4"]) == [0, 1]


@pytest.mark.parametrize("piece", ["{", "}", "\\", r"\boxed{", "<answer>", "<think>", "\\boxed{}", "{}"])
def test_400_000_characters_of_anything_are_read(piece: str) -> None:
    # A quadratic reading would take hours here: ending at all is the proof.
    text = piece * (400_000 // len(piece))
    assert voted(text) == ("" if "boxed" in piece or "<" in piece else text)
