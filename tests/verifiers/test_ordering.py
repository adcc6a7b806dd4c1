"""The ordering verifier: three values by hand, penalties for what is missing, foreign or repeated."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.ordering import Ordering, OrderingParams

VERIFIER, CONTEXT = Ordering(), Context(preset="modern", split="train")


def judge(response: str, gold: str, value: Literal["exact", "kendall", "lcs"] = "exact") -> Outcome:
    params = OrderingParams(value=value)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, CONTEXT), params, CONTEXT)


@pytest.mark.parametrize(
    ("answer", "exact", "kendall", "lcs"),
    [
        ("w, x, y, z", 1, 1, 1),
        ("W > X > Y > Z", 1, 1, 1),
        ('["w", "x", "y", "z"]', 1, 1, 1),
        ("1. w\n2. x\n3. y\n4. z", 1, 1, 1),
        ("w x y z", 1, 1, 1),
        ("z, y, x, w", 0, 0, 1 / 4),
        ("w, x, z, y", 0, 5 / 6, 3 / 4),
        ("w, x, y", 0, 3 / 6, 3 / 4),  # z misses its three pairs
        ("w, x, y, z, q", 0, 4 / 5, 4 / 5),  # all six pairs, one item too many
        ("w, x, y, z, w", 0, 4 / 5, 4 / 5),
        ("z, w, x, y, z", 0, 3 / 6 * 4 / 5, 3 / 5),  # only the first z has a place
        ("q, r", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_values_are_as_computed_by_hand(answer: str, exact: float, kendall: float, lcs: float) -> None:
    for value, expected in (("exact", exact), ("kendall", kendall), ("lcs", lcs)):
        outcome = judge(answer, "w, x, y, z", value)  # type: ignore[arg-type]
        assert outcome.accuracy == pytest.approx(expected)
        assert outcome.correct == (exact == 1)


@pytest.mark.parametrize(("gold", "why"), [("", "2 to"), ("a", "2 to"), ("w, x, w", "an item twice")])
def test_gold_that_is_no_order_is_unscorable(gold: str, why: str) -> None:
    with pytest.raises(Unscorable, match=why):
        judge("w", gold)


@given(st.permutations(range(8)))
def test_kendall_is_the_share_of_pairs_in_order_and_reversing_turns_it_round(order: list[int]) -> None:
    gold = ",".join(map(str, range(8)))
    forth = judge(",".join(map(str, order)), gold, "kendall").accuracy
    back = judge(",".join(map(str, reversed(order))), gold, "kendall").accuracy
    assert forth == pytest.approx(sum(a < b for a, b in combinations(order, 2)) / 28)
    assert forth + back == pytest.approx(1)


@given(st.lists(st.integers(0, 9), max_size=12))
def test_all_values_are_within_0_and_1_and_1_only_for_gold(answer: list[int]) -> None:
    report = judge(",".join(map(str, answer)), "1,2,3,4,5").report
    for value in ("exact", "kendall", "lcs"):
        assert 0 <= report[value] <= 1
        assert (report[value] == 1) == (answer == [1, 2, 3, 4, 5])
