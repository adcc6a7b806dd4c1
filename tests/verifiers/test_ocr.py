"""The OCR verifier: three measures of the edit distance by hand, several references, long texts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.ocr import MAX_GOLD, Ocr, OcrParams

VERIFIER, CONTEXT = Ocr(), Context(preset="modern", split="train")
words = st.text(st.sampled_from("abAB é"), min_size=1, max_size=12).filter(str.strip)


def judge(response: str, gold: str, **parameters: Any) -> Outcome:
    params = OcrParams(**parameters)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, CONTEXT), params, CONTEXT)


@pytest.mark.parametrize(
    ("answer", "gold", "similarity", "anls", "cer"),
    [
        # kitten -> sitting: 3 edits (Levenshtein's textbook pair), lengths 6 and 7
        ("sitting", "kitten", 1 - 3 / 7, 1 - 3 / 7, 3 / 6),
        ("ab", "abcd", 0.5, 0.0, 0.5),  # NL = tau: 0 by eq. 1 of arXiv 1905.13648
        ("abc", "abcd", 0.75, 0.75, 0.25),
        ("abcdefgh", "ab", 0.25, 0.0, 3.0),
        ("", "ab", 0.0, 0.0, 1.0),
        ("EXIT  12", "Exit\n12", 1.0, 1.0, 0.0),
        ("xy", "ab", 0.0, 0.0, 1.0),
    ],
)
def test_values_are_as_computed_by_hand(answer: str, gold: str, similarity: float, anls: float, cer: float) -> None:
    assert judge(answer, gold).accuracy == pytest.approx(similarity)
    assert judge(answer, gold, value="anls").accuracy == pytest.approx(anls)
    outcome = judge(answer, gold, value="cer")
    assert outcome.accuracy == pytest.approx(max(0, 1 - cer))
    assert outcome.report["cer"] == pytest.approx(cer)
    assert outcome.correct == (cer == 0)


def test_the_best_reference_counts() -> None:
    assert judge("itc limited", '["ITC", "ITC Limited"]').correct
    assert judge("itc", '["ITC", "ITC Limited"]').correct
    assert judge("[1] note", "[1] note").correct


def test_composed_and_decomposed_letters_are_equal_and_case_can_count() -> None:
    assert judge("cafe\u0301", "caf\u00e9").correct
    assert not judge("Exit", "exit", ignore_case=False).correct


@pytest.mark.parametrize("gold", ["", "[]", '["a", ""]', "a" * (MAX_GOLD + 1)])
def test_empty_and_endless_gold_is_unscorable(gold: str) -> None:
    with pytest.raises(Unscorable, match="gold"):
        judge("a", gold)


def test_the_longest_answer_is_compared_exactly() -> None:
    assert judge("a" * 400_000, "a" * 20_000).accuracy == pytest.approx(1 / 20)
    assert judge("a" + "\u0315\u0300" * 199_000, "a").accuracy < 0.1


@given(words, words)
def test_similarity_is_symmetric_within_0_and_1_and_1_for_itself(a: str, b: str) -> None:
    assert judge(a, b).accuracy == pytest.approx(judge(b, a).accuracy)
    assert 0 <= judge(a, b).accuracy <= 1
    assert judge(a, a).accuracy == 1


@given(words, st.lists(words, min_size=1, max_size=3), words)
def test_another_reference_never_takes_a_point_away(answer: str, gold: list[str], further: str) -> None:
    for value in ("similarity", "anls", "cer"):
        fewer, more = (judge(answer, json.dumps(texts), value=value).accuracy for texts in (gold, [*gold, further]))
        assert fewer <= more
