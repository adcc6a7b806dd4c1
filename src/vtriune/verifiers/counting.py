"""`counting`: is the answer's one whole number gold's, or how near is it?

Numbers with a tolerance are numeric.py's, how digits are read number_text.py's.
"""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import islice
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.answers import final_answer
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.number_text import SMALL, TENS, hedged, read_numbers

_VALUES = {word: n for n, word in enumerate(SMALL)} | {word: 10 * n for n, word in enumerate(TENS, 2)} | {"a": 1}
_UNIT = "|".join(SMALL[1:10])
_BELOW_100 = rf"(?:(?:{'|'.join(TENS)})(?:[\s-](?:{_UNIT}))?|{'|'.join(reversed(SMALL))})"
_WORDS = re.compile(
    rf"\b(?:(?:a|{_UNIT})\ hundred(?:(?:\ and)?\ {_BELOW_100})?|{_BELOW_100}"
    r"|(?P<large>(?:hundred|thousand|million|billion|dozen)s?))\b",
    re.IGNORECASE,
)


class CountingParams(BaseModel):
    """What a miss is worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Literal["exact", "distance"] = "exact"
    """`exact`: 1 or 0. `distance`: max(0, 1 - |p - g| / max(g, 1))."""


class Counting:
    """R_acc of a count p against gold g: exact, or shaped by the distance; correct means p = g.

    p is the one whole number of the final answer (see `final_answer`), in digits or in English words up to nine hundred
    ninety-nine, prose around it allowed. None, more than one of either kind (`3 or 4`, `2 cats and 3 dogs`), a
    fraction, a share (`50%`) or a hedge (`not 3`, `> 3`, `at least 3`, `3+`) is 0.

    Report: `exact` and `closeness`, the two values.

    Source: the exact value is that of arXiv 2505.18129, eq. 3, for whole numbers; the shaped one is ours: 1 less the
    relative error of the count, floored at 0.

    >>> verifier, params = Counting(), CountingParams(value="distance")
    >>> context = Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold("4", params, context)
    >>> outcome = verifier.judge("There are five cats.", gold, params, context)
    >>> outcome.accuracy, outcome.correct
    (0.75, False)
    """

    name = "counting"
    Params = CountingParams

    def parse_gold(self, gold: str, params: CountingParams, context: Context) -> int:
        """Gold's count.

        Raises:
            Unscorable: gold is not one whole number of at least 0.
        """
        counts = _counts(final_answer(gold))
        if len(counts) != 1 or counts[0] is None or counts[0] < 0:
            raise Unscorable(f"gold {gold[:80]!r} is not one whole number of at least 0, such as 4 or four")
        return counts[0]

    def judge(self, response: str, gold: int, params: CountingParams, context: Context) -> Outcome:
        """Compare the answer's count with gold."""
        text = final_answer(response)
        counts = _counts(text)
        exact = closeness = 0.0
        if len(counts) != 1:
            reason = "several numbers in the answer" if counts else "no number in the answer"
        elif counts[0] is None or hedged(text):
            reason = "the answer is not one whole number"
        else:
            exact = float(counts[0] == gold)
            closeness = float(max(Decimal(0), 1 - Decimal(abs(counts[0] - gold)) / max(gold, 1)))
            reason = "another number"
        accuracy = exact if params.value == "exact" else closeness
        report = {"exact": exact, "closeness": closeness}
        return Outcome(accuracy, tag_score(response), exact == 1, report, "" if accuracy else reason)


def _counts(text: str) -> list[int | None]:
    """The first numbers of a text, two at most of each kind; None is one that is no whole number below 1e12."""
    counts: list[int | None] = []
    for number in read_numbers(text):
        whole = not number.percent and abs(number.value) < Decimal("1e12") and number.value == int(number.value)
        counts.append(int(number.value) if whole else None)
    for found in islice(_WORDS.finditer(text), 2):
        counts.append(None if found["large"] else _spelt(found[0].lower()))
    return counts


def _spelt(words: str) -> int:
    head, hundred, rest = words.rpartition("hundred")
    small = sum(_VALUES[word] for word in rest.replace("-", " ").split() if word != "and")
    return 100 * _VALUES[head.strip()] + small if hundred else small
