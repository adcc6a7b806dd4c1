"""`ordering`: are gold's items all there, each once, in gold's order?

How lists are read and items compared is item_text.py's job.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.answers import final_answer
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.item_text import normal, read_items

MAX_ITEMS = 10_000
"""Of gold."""


class OrderingParams(BaseModel):
    """What an order in part is worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Literal["exact", "kendall", "lcs"] = "exact"
    """R_acc, see `Ordering`."""


class Ordering:
    """How far the answered items lie in gold's order; correct means exactly in it.

    With n items in gold, m in the answer (all that it lists, repeated and foreign ones included):
        `exact`: 1 if the answer is gold's list, else 0.
        `kendall`: pairs of gold's items that the answer has in gold's order / (n (n - 1) / 2), times n / max(n, m').
            m' is n plus the repeated and the foreign items. A missing item fails its n - 1 pairs. For a permutation
            this is (tau + 1) / 2 with Kendall's tau: reversed 0, at random 0.5 on average.
        `lcs`: longest common subsequence / max(n, m).

    Only an item's first mention has a place. Items are read by `read_items` from the final answer (see `final_answer`)
    and compared up to case, white space, punctuation and articles (`normal`).

    Report: `exact`, `kendall`, `lcs`, `missing`, `extra` (repeated or foreign).

    Source: Kendall, A New Measure of Rank Correlation, Biometrika 30 (1938); the penalties are ours.

    >>> verifier, params = Ordering(), OrderingParams(value="kendall")
    >>> context = Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold("A, B, C, D", params, context)
    >>> outcome = verifier.judge("A > B > D > C", gold, params, context)  # 5 of 6 pairs
    >>> round(outcome.accuracy, 3), outcome.report["lcs"]
    (0.833, 0.75)
    """

    name = "ordering"
    Params = OrderingParams

    def parse_gold(self, gold: str, params: OrderingParams, context: Context) -> tuple[str, ...]:
        """Gold's items in their normal form.

        Raises:
            Unscorable: fewer than two items, too many, or one twice.
        """
        items = _items(gold)
        if not 2 <= len(items) <= MAX_ITEMS:
            raise Unscorable(f"gold {gold[:80]!r} must list 2 to {MAX_ITEMS} items, e.g. A, B, C; got {len(items)}")
        if len(set(items)) < len(items):
            raise Unscorable(f"gold {gold[:80]!r} has an item twice; an order needs different items")
        return tuple(items)

    def judge(self, response: str, gold: tuple[str, ...], params: OrderingParams, context: Context) -> Outcome:
        """Compare the answered order with gold's."""
        items = _items(response)
        place = {item: position for position, item in enumerate(gold)}
        places = [place[item] for item in dict.fromkeys(items) if item in place]
        n, extra = len(gold), len(items) - len(places)
        values = {
            "exact": float(tuple(items) == gold),
            "kendall": _ascending_pairs(places) / (n * (n - 1) / 2) * n / (n + extra),
            "lcs": _longest_ascent(places) / max(n, len(items)),
        }
        accuracy = values[params.value]
        report = {**values, "missing": float(n - len(places)), "extra": float(extra)}
        reason = "" if accuracy else ("another order" if items else "no items found in the answer")
        return Outcome(accuracy, tag_score(response), values["exact"] == 1, report, reason)


def _items(text: str) -> list[str]:
    return [normal(item) for item in read_items(final_answer(text), arrows=True)]


def _ascending_pairs(places: Sequence[int]) -> int:
    before: list[int] = []
    pairs = 0
    for place in places:
        pairs += bisect_left(before, place)
        insort(before, place)
    return pairs


def _longest_ascent(places: Sequence[int]) -> int:
    """Of different numbers: with a permutation's places, its longest common subsequence with gold."""
    tails: list[int] = []
    for place in places:
        at = bisect_left(tails, place)
        tails[at : at + 1] = [place]
    return len(tails)
