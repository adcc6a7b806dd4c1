"""Stretches of time: reading, IoU, one-to-one matching, R@0.5, spraying."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.temporal import MAX_INTERVALS, Temporal, TemporalParams, read_intervals

CONTEXT = Context(preset="modern", split="train")


def judge(response: str, gold: str = "[10, 20]") -> Outcome:
    verifier, params = Temporal(), TemporalParams()
    return verifier.judge(response, verifier.parse_gold(gold, params, CONTEXT), params, CONTEXT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1.5, 3]", [(1.5, 3)]),
        ("(1, 3) and (4, 5)", [(1, 3), (4, 5)]),
        ("[[1, 3], [4, 5]]", [(1, 3), (4, 5)]),
        ('["00:12", "01:02.5"]', [(12, 62.5)]),
        ("[01:00:00, 01:00:10]", [(3600, 3610)]),
        ("From 00:12 to 00:30.", [(12, 30)]),
        ("12.5s - 30 seconds", [(12.5, 30)]),
        ("between 5 sec and 10 secs", [(5, 10)]),
        ("[5-10]", [(5, 10)]),
        ("1:05–2:00", [(65, 120)]),
        ("[1, 3], the same again: [1.0, 3]", [(1, 3)]),
        ("[5, 5]", [(5, 5)]),
        ("[1, 2, 3]", []),
        ("[nan, 2]", []),
        ("at 12 s", []),
        ("", []),
    ],
)
def test_intervals_are_read_from_what_models_write(text: str, expected: list[tuple[float, float]]) -> None:
    assert [(one.x1, one.x2) for one in read_intervals(text).found] == expected


def test_swapped_ends_are_dropped_and_counted() -> None:
    outcome = judge("[20, 10], [10, 20]")
    assert (outcome.accuracy, outcome.correct, outcome.report["dropped_intervals"]) == (1.0, True, 1.0)
    assert judge("[20, 10]").reason == "no interval found in the answer"


@pytest.mark.parametrize(
    ("response", "expected", "correct"),
    [
        ("[10, 20]", 1.0, True),
        ("[10, 18]", 0.8, True),
        ("[10, 15]", 0.5, True),
        ("[10, 14]", 0.4, False),
        ("[0, 40]", 0.25, False),
        ("[20, 30]", 0.0, False),
        ("[15, 15]", 0.0, False),
        ("<think>[10, 20]", 0.0, False),
        ("<think>[0, 1]</think><answer>00:10 - 00:20</answer>", 1.0, True),
        # A hedge is worth no more than a guess.
        ("[10, 20] or [30, 40]", 0.5, False),
        (str([[k, k + 10] for k in range(100)]), 0.01, False),
    ],
)
def test_one_interval_is_worth_its_iou(response: str, expected: float, correct: bool) -> None:
    outcome = judge(response)
    assert outcome.accuracy == pytest.approx(expected)
    assert outcome.correct is correct
    assert bool(outcome.reason) == (expected == 0)


def test_several_intervals_are_matched_one_to_one() -> None:
    gold = "[[0, 10], [5, 15]]"
    # [4, 14] meets both: with [5, 15] it has 9/11, with [0, 10] 6/14; the best sum gives it to the second.
    outcome = judge("[4, 14], [0, 10]", gold)
    assert outcome.accuracy == pytest.approx((1 + 9 / 11) / 2)
    assert (outcome.correct, outcome.report["recall_70"]) == (True, 1.0)
    assert judge("[0, 10]", gold).accuracy == 0.5
    assert not judge("[0, 10]", gold).correct
    assert judge("[0, 15]", gold).accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "gold", ["", "[]", "soon", "[20, 10]", "[5, 5]", str([[k, k + 1] for k in range(MAX_INTERVALS)])]
)
def test_gold_without_sound_intervals_is_unscorable(gold: str) -> None:
    with pytest.raises(Unscorable):
        judge("[1, 2]", gold)


intervals = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 20)).map(lambda pair: (pair[0], sum(pair))),
    min_size=1,
    max_size=5,
    unique=True,
)


@given(intervals, intervals, st.randoms(use_true_random=False), st.integers(0, 50), st.integers(1, 9))
def test_order_shift_and_unit_change_nothing(
    answered: list[tuple[int, int]], gold: list[tuple[int, int]], rng: random.Random, shift: int, scale: int
) -> None:
    def moved(pairs: list[tuple[int, int]]) -> str:
        return str([[scale * a + shift, scale * b + shift] for a, b in rng.sample(pairs, len(pairs))])

    first = judge(str(answered), str(gold))
    again = judge(moved(answered), moved(gold))
    assert again.accuracy == pytest.approx(first.accuracy, abs=1e-9)
    assert again.correct == first.correct
    assert 0 <= first.accuracy <= 1 + 1e-12
    assert judge(str(gold), str(gold)).accuracy == pytest.approx(1.0)


def test_the_report_has_the_same_keys_for_every_answer() -> None:
    assert len({tuple(judge(response).report) for response in ("", "[1, 2]", "[1, 12], [3, 4]")}) == 1


@pytest.mark.parametrize(
    "unit", ["[", "[1", "[1,", "(1:2:3 s,", "1:", "1 ", "1" * 400, "1 - ", "1 to ", '"', " " * 50 + "1", "[1,2]", "s"]
)
def test_400000_characters_of_anything_are_judged(unit: str) -> None:
    judge(unit * (400_000 // len(unit)))


@given(st.text(st.sampled_from("[]():,.-– 0129sto\"'"), max_size=200))
def test_no_text_breaks_the_reading(text: str) -> None:
    assert len(read_intervals(text).found) <= MAX_INTERVALS
