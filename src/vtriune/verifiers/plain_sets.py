r"""Sets, intervals, tuples, assignments of whole numbers: read and compared as math-verify does, without its grammar.

math-verify takes 30 to 50 ms to read one of them and as much to compare two. What is not as plain as here is left to
it; that both agree, expression for expression, is in the tests. Sources: github.com/huggingface/Math-Verify,
github.com/huggingface/latex2sympy2_extended.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

_NUMBER = r"(?:0|-?[1-9]\d{0,14})"
_NUMBERS = rf"{_NUMBER}(?:, ?{_NUMBER}){{0,19}}"
_SET = re.compile(rf"\\\{{({_NUMBERS})\\\}}")
_TUPLE = re.compile(rf"\(({_NUMBERS})\)|\[({_NUMBERS})\]")
_INTERVAL = re.compile(rf"([(\[])({_NUMBER}|-\\infty), ?({_NUMBER}|\\infty)([)\]])")
_UNION = re.compile(rf"{_INTERVAL.pattern} ?\\cup ?{_INTERVAL.pattern}")
_ASSIGNMENT = re.compile(rf"([a-cm-np-tx-z]) ?= ?({_NUMBER})")


def read(text: str) -> Any | None:
    r"""The expression that math-verify makes of `text`; None if it is not one of these.

    >>> read(r"\{3, 1, 2\}"), read("[1, 5)"), read("(5, 1)"), read("x = 4"), read("x + 4")
    ({1, 2, 3}, Interval.Ropen(1, 5), (5, 1), Eq(x, 4), None)
    """
    if not text.isascii():
        return None
    from latex2sympy2_extended.sets import FiniteSet  # noqa: PLC0415 - sympy takes most of a second
    from sympy import Eq, Integer, Symbol, Union  # noqa: PLC0415

    expression = None
    if found := _SET.fullmatch(text):
        expression = FiniteSet(*_integers(found[1]))
    elif found := _ASSIGNMENT.fullmatch(text):
        expression = Eq(Symbol(found[1], real=True), Integer(int(found[2])), evaluate=False)
    elif _UNION.fullmatch(text):
        intervals = [_interval(one) for one in _INTERVAL.finditer(text)]
        expression = None if None in intervals else Union(*intervals, evaluate=False)
    else:
        # Two numbers in brackets are an interval if they ascend.
        expression = _interval(_INTERVAL.fullmatch(text)) or _tuple(_TUPLE.fullmatch(text))
    return expression


def same(gold: Any, answer: Any) -> bool | None:
    """math-verify's verdict on two expressions; None if it takes more than a look.

    Two sets of integers are equal if they have the same elements, two tuples if the same in the same order, unions of
    intervals that neither touch nor overlap if they have the same intervals, assignments if they are the same.
    """
    from sympy import Eq, FiniteSet, Interval, Symbol, Tuple, Union  # noqa: PLC0415

    if isinstance(gold, FiniteSet | Tuple) and isinstance(answer, FiniteSet | Tuple):
        alike = isinstance(gold, FiniteSet) == isinstance(answer, FiniteSet)
        if not alike or not all(one.is_Integer for one in (*gold.args, *answer.args)):
            return None
        return bool(set(gold.args) == set(answer.args) if isinstance(gold, FiniteSet) else gold.args == answer.args)
    if isinstance(gold, Eq) and isinstance(answer, Eq):
        plain = all(isinstance(one.lhs, Symbol) and one.rhs.is_Integer for one in (gold, answer))
        return bool(gold == answer) if plain else None
    if isinstance(gold, Union | Interval) and isinstance(answer, Union | Interval):
        ours, theirs = _parts(gold), _parts(answer)
        return None if ours is None or theirs is None else ours == theirs
    return None


def _parts(one: Any) -> list[tuple[Any, bool, Any, bool]] | None:
    """The intervals of a union in order, as (start, open, end, open); None if two of them touch, or it has others."""
    from sympy import Interval, Union, oo  # noqa: PLC0415

    intervals = one.args if isinstance(one, Union) else (one,)
    if not all(isinstance(part, Interval) for part in intervals):
        return None
    if not all(end.is_Integer or end in (oo, -oo) for part in intervals for end in (part.start, part.end)):
        return None
    parts = sorted((part.start, bool(part.left_open), part.end, bool(part.right_open)) for part in intervals)
    return None if any(before[2] >= after[0] for before, after in pairwise(parts)) else parts


def _integers(text: str) -> list[Any]:
    from sympy import Integer  # noqa: PLC0415

    return [Integer(int(number)) for number in text.split(",")]


def _interval(found: re.Match[str] | None) -> Any | None:
    """An interval with an inside; None if its ends are not in ascending order, or an infinite one is not open."""
    from sympy import Integer, Interval, oo  # noqa: PLC0415

    if found is None:
        return None
    opening, start, end, closing = found.groups()
    below = -oo if start == r"-\infty" else Integer(int(start))
    above = oo if end == r"\infty" else Integer(int(end))
    sound = below < above and (start[-1] != "y" or opening == "(") and (end[-1] != "y" or closing == ")")
    return Interval(below, above, opening == "(", closing == ")") if sound else None


def _tuple(found: re.Match[str] | None) -> Any | None:
    from sympy import Tuple  # noqa: PLC0415

    if found is None:
        return None
    numbers = _integers(found[1] or found[2])
    return Tuple(*numbers) if len(numbers) > 2 or (len(numbers) == 2 and found[1]) else None
