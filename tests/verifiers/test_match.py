"""The match verifier: strings, lists and sets against hand-computed values, and that sprays don't pay."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.item_text import nfc, normal, read_items
from vtriune.verifiers.match import Match, MatchParams

VERIFIER, CONTEXT = Match(), Context(preset="modern", split="train")
some_words = st.lists(st.sampled_from(["red", "green", "blue", "dark blue", "7"]), max_size=6)


def judge(response: str, gold: str, **parameters: Any) -> Outcome:
    params = MatchParams(**parameters)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, CONTEXT), params, CONTEXT)


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The  Red fox.", "red fox", 1.0, 1.0),
        ("fox red", "red fox", 0.0, 1.0),
        # 1 common word of 3 and 2: 2 * 1 / 5
        ("a big fox jumping", "red fox", 0.0, 0.4),
        # 2 common of 4 and 2, `or` among them: 2 * 2 / 6
        ("red fox or dog", "red fox", 0.0, 2 / 3),
        ("red red red", "red", 0.0, 0.5),
        ("-5", "5", 0.0, 0.0),
        ("3.5", "35", 0.0, 0.0),
        ("", "red", 0.0, 0.0),
        ("the", "A", 0.0, 0.0),
    ],
)
def test_strings_are_matched_as_squad_does_but_for_numbers(answer: str, gold: str, exact: float, f1: float) -> None:
    outcome = judge(answer, gold)
    assert (outcome.accuracy, outcome.correct) == (exact, exact == 1)
    assert outcome.report["f1"] == pytest.approx(f1)
    assert judge(answer, gold, value="f1").accuracy == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "gold", "parameters"),
    [
        ("Red", "red", {"ignore_case": False}),
        ("U.S.", "US", {"ignore_punctuation": False}),
        ("the fox", "fox", {"ignore_articles": False}),
    ],
)
def test_what_is_ignored_can_be_made_to_count(answer: str, gold: str, parameters: dict[str, Any]) -> None:
    assert judge(answer, gold).correct
    assert not judge(answer, gold, **parameters).correct


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("set", '["c", "B", "a"]', 1.0),
        ("list", '["c", "B", "a"]', 2 / 6),  # longest common subsequence 1
        ("list", "['a', 'b', 'c']", 1.0),
        ("list", "a, c", 4 / 5),
        ("set", "a, a, a, b, c", 6 / 8),  # naming a three times is two items too many
        ("set", "a, b, c, d, e, f, g, h, i", 6 / 12),
        ("set", "- a\n- b\n- c", 1.0),
        ("set", "x", 0.0),
        ("set", "", 0.0),
        ("set", "[]", 0.0),
    ],
)
def test_lists_and_sets_are_worth_f1_over_items(kind: str, answer: str, expected: float) -> None:
    outcome = judge(answer, "a, b, c" if kind == "list" else '["a", "b", "c"]', kind=kind, ignore_articles=False)
    assert outcome.accuracy == pytest.approx(expected)
    assert outcome.correct == (expected == 1)


def test_an_empty_gold_list_is_met_by_an_empty_list_only() -> None:
    assert [judge(answer, "[]", kind="set").accuracy for answer in ("[]", "{}", "", "none", "a")] == [1, 1, 0, 0, 0]
    for kind, gold in (("set", ""), ("string", "")):
        with pytest.raises(Unscorable, match="is empty"):
            judge("a", gold, kind=kind)


@given(some_words, some_words, st.randoms(use_true_random=False))
def test_no_order_changes_a_sets_value(answer: list[str], gold: list[str], rng: random.Random) -> None:
    first, again = (
        judge(json.dumps(rng.sample(answer, len(answer))), json.dumps(rng.sample(gold, len(gold))), kind="set")
        for _ in range(2)
    )
    assert first == again


@given(some_words, some_words, st.sampled_from(["list", "set"]))
def test_f1_is_within_0_and_1_and_1_only_for_the_same(answer: list[str], gold: list[str], kind: str) -> None:
    outcome = judge(json.dumps(answer), json.dumps(gold), kind=kind)
    same = answer == gold if kind == "list" else sorted(answer) == sorted(set(gold))
    assert 0 <= outcome.accuracy <= 1
    assert (outcome.accuracy == 1) == outcome.correct == same


@given(some_words, some_words)
def test_f1_of_lists_is_symmetric(a: list[str], b: list[str]) -> None:
    one, other = (judge(json.dumps(x), json.dumps(y), kind="list").accuracy for x, y in ((a, b), (b, a)))
    assert one == pytest.approx(other)


@given(st.text(max_size=60))
def test_a_normal_form_is_its_own_normal_form_and_never_empties_a_text(text: str) -> None:
    assert bool(normal(text)) == bool(text.strip())
    read_items(text, arrows=True)


def test_deep_brackets_and_endless_combining_marks_are_no_trouble() -> None:
    assert judge("[" * 100_000, "red", kind="set").accuracy == 0
    assert len(nfc("a" + "\u0315\u0300" * 100_000)) == 30  # quadratic in Python; the a takes the first grave in
