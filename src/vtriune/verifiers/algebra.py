r"""math-verify as the math verifier uses it: `parse` and `verify`, cheaper where that provably changes no verdict.

Which text is compared is mathverify.py's. Nothing here limits time or memory. The twins without shortcuts, and that
both agree, are in the tests (test_algebra.py).
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from itertools import islice
from math import inf, prod
from typing import Any

from vtriune.verifiers import plain_sets

_BOX = r"\boxed{"
_PLAIN_BOX = re.compile(
    r"\\boxed\{(?:(?P<integer>-?\d{1,15})|(?P<decimal>-?\d{1,8}\.\d{1,7})"
    r"|(?P<minus>-?)\\frac\{(?P<over>\d{1,9})\}\{(?P<under>[1-9]\d{0,8})\})\}"
)
_CLOSER = re.compile(r"[$\])]")
_ANCHOR = re.compile(r"(?:final )?answer", re.IGNORECASE)
_MAX_SCOPED = 20_000
"""Characters. Looking for boxes in more of them, as math-verify does it, costs more than a cache saves."""
_MAX_REMEMBERED = 100
"""Characters of a box whose parse is kept."""


def parse_gold(text: str) -> list[Any]:
    """What math-verify makes of gold: an expression, if it can be read, and the text that it read."""
    plain = _read_plainly(text)
    if plain:
        return plain
    parsed: list[Any] = _math_verify().parse(text, extraction_mode="first_match", parsing_timeout=None)
    return parsed


def parse_answer(text: str, lenient: bool = False) -> list[Any]:
    r"""The same for an answer, with the released code's settings: boxes first, never bare numbers.

    Plain numbers and sets are read here: for them math-verify's result is known, and its grammar takes milliseconds.
    `lenient` mends what the released code leaves unreadable in answers, though not in gold: `\frac12`, `\sqrt2`.
    """
    return _read_plainly(text) or (_parse_remembered if len(text) <= _MAX_REMEMBERED else _parse_answer)(text, lenient)


def equivalent(gold: list[Any], answer: list[Any]) -> bool:
    """math-verify's verdict on the two. What certainly differs never reaches its `simplify`, which takes 10 ms."""
    if len(gold) == len(answer) == 2 and gold[1] != answer[1]:
        same = plain_sets.same(gold[0], answer[0])
        if same is not None:
            return same
        if _certainly_differ(gold[0], answer[0]):
            return False
    return bool(_math_verify().verify(gold, answer, timeout_seconds=None))


def only_tiny(gold: list[Any], answer: list[Any]) -> bool:
    """Are two numbers that math-verify calls equal so only because both are tiny? Its tolerance is absolute.

    >>> third, tiny, tinier = (parse_answer(rf"\\boxed{{{x}}}") for x in ("1/3", "10^{-19}", "10^{-20}"))
    >>> only_tiny(tiny, tinier), only_tiny(tiny, tiny), only_tiny(third, third)
    (True, False, False)
    """
    from sympy import Expr  # noqa: PLC0415

    if not all(parsed and isinstance(parsed[0], Expr) and parsed[0].is_number for parsed in (gold, answer)):
        return False
    try:
        a, b = gold[0].evalf(15), answer[0].evalf(15)
        return bool(0 < abs(a) < 1e-3 and abs(a - b) > 1e-3 * abs(a))
    except (TypeError, ArithmeticError):
        return False


def scope(text: str) -> str:
    r"""The part of a lower-cased response that `parse_answer` depends on: `parse_answer(scope(text))` is the same.

    Answers that differ only in their thinking thereby mostly have one scope. math-verify takes the match that ends
    last of two kinds: from the first `\boxed{` to the last brace, and LaTeX between delimiters that holds a box.
    If no delimiter closes behind the last brace the first kind wins, and of it only the boxes' content counts;
    otherwise what stands before the leftmost delimiter that can reach the first box doesn't count. Without a box it
    looks for LaTeX behind the word "answer", and for nothing else.

    >>> scope(r"<think>1 + 1 or $x$</think> it is \boxed{2}.")
    '\\boxed{2}'
    >>> scope(r"first $x$ is 3, then" "\n" r"so $y=\boxed{2}$.")
    'n\nso $y=\\boxed{2}$.'
    """
    first, last = text.find(_BOX), text.rfind("}")
    if first < 0 or last <= first + len(_BOX):
        anchor = _ANCHOR.search(text)
        return text[anchor.start() :] if anchor else ""
    if not _CLOSER.search(text, last + 1):
        boxes = text[first : last + 1]
        return _content_boxed(boxes) if len(boxes) <= _MAX_SCOPED else boxes
    openers = [max(text.rfind("\n", 0, first), 0)]  # `$`, `\(` and ` [` reach to the end of their line
    bracket = text.find(r"\[", max(text.rfind(r"\]", 0, first), 0), first)
    dollars = text.rfind("$$", 0, first)
    while dollars > 0 and text[dollars - 1] == "$":
        dollars -= 1
    start = min(opener for opener in (*openers, bracket, dollars) if opener >= 0)
    return text[max(start - 1, 0) :]  # what precedes a delimiter decides whether it is one


def _content_boxed(boxes: str) -> str:
    """The content that math-verify takes from `boxes`, in one box; all of it if that isn't the same."""
    from latex2sympy2_extended.math_normalization import extract_boxed_content  # noqa: PLC0415

    content = extract_boxed_content(boxes, mode="last")
    short = rf"{_BOX}{content}}}"
    return short if content and extract_boxed_content(short, mode="last") == content else boxes


@cache
def _math_verify() -> Any:
    """math-verify, imported when first needed: sympy takes most of a second, the registry must not."""
    import math_verify  # noqa: PLC0415

    # It warns once that its time limits are off. They must be: they use signals and count wall-clock time.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


@cache
def _intervals() -> Any:
    """mpmath's interval arithmetic: results are intervals that hold the true value."""
    from mpmath import iv  # type: ignore[import-untyped]  # noqa: PLC0415

    return iv


@cache
def _answer_config(lenient: bool) -> list[Any]:
    """How the released code has math-verify find an answer."""
    from latex2sympy2_extended import NormalizationConfig  # noqa: PLC0415

    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=lenient, nits=False, boxed="all"
    )
    return [
        _math_verify().LatexExtractionConfig(
            normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
        )
    ]


def _parse_answer(text: str, lenient: bool) -> list[Any]:
    parsed: list[Any] = _math_verify().parse(
        text, extraction_config=_answer_config(lenient), extraction_mode="first_match", parsing_timeout=None
    )
    return parsed


_parse_remembered = lru_cache(maxsize=2048)(_parse_answer)


def _read_plainly(text: str) -> list[Any]:
    """What is in a box, if it is so plain that math-verify's result is known; else nothing."""
    if not (text.isascii() and text.startswith(_BOX) and len(text) <= _MAX_REMEMBERED * 4):
        return []
    plain = _PLAIN_BOX.fullmatch(text)
    if plain:
        return _plain_number(plain)
    content = text.removeprefix(_BOX)[:-1]
    found = plain_sets.read(content) if text.endswith("}") else None
    return [] if found is None else [found, content]


def _plain_number(plain: re.Match[str]) -> list[Any]:
    from sympy import Float, Integer, Rational  # noqa: PLC0415

    text = plain[0].removeprefix(_BOX)[:-1]
    if plain["integer"]:
        return [Integer(int(text)), text]
    if plain["decimal"]:
        return [Float(text), text]
    return [Rational(int(plain["minus"] + plain["over"]), int(plain["under"])), text]


def _certainly_differ(gold: Any, answer: Any) -> bool:
    """Do they differ at a point where all symbols are positive? By interval arithmetic, so that a yes is certain.

    Only of expressions in which math-verify can't tell them equal for another reason: integers, fractions, decimals,
    pi, e and symbols under +, *, and small powers. A difference of 0.001 is no matter of its six decimals.
    """
    from sympy import Symbol  # noqa: PLC0415

    if isinstance(gold, Symbol) or isinstance(answer, Symbol) or not (_tame(gold) and _tame(answer)):
        return False
    names = sorted({symbol.name for symbol in gold.free_symbols | answer.free_symbols})
    point = {name: 1 + 0.618 * n % 1 for n, name in enumerate(names, start=1)}
    try:
        difference = _value(gold, point) - _value(answer, point)
    except (ArithmeticError, ValueError):
        return False
    return bool(difference > 0.001 or difference < -0.001)


def _tame(expression: Any) -> bool:
    """Nothing but what `_value` can compute, and too small for one part to vanish beside another."""
    from sympy import Basic, preorder_traversal  # noqa: PLC0415

    if not isinstance(expression, Basic):
        return False
    nodes = list(islice(preorder_traversal(expression), 41))
    return len(nodes) <= 40 and prod(map(_magnitude, nodes)) < 1e9


def _magnitude(node: Any) -> float:
    """The factor by which a node can enlarge or shrink the value; inf for what is not tame."""
    from sympy import Add, E, Mul, Pow, pi  # noqa: PLC0415

    if node.is_Rational:
        return float(max(abs(node.p), 1) * node.q) if max(abs(node.p), node.q) < 10**9 else inf
    if node.is_Float:
        size = abs(float(node))
        return max(size, 1 / size) if size else 1.0
    if node.func is Pow:
        exponent = node.exp
        return 2.0 ** float(abs(exponent)) if exponent.is_Rational and 0 < abs(exponent) <= 10 else inf
    known = node is pi or node is E or node.func in (Add, Mul) or (node.is_Symbol and node.is_real)
    return 1.0 if known else inf


def _value(expression: Any, point: dict[str, float]) -> Any:
    """An interval that holds the value at `point`; raises if a power is undefined there."""
    from sympy import pi  # noqa: PLC0415

    iv = _intervals()
    if expression.is_Rational:
        return iv.mpf(expression.p) / iv.mpf(expression.q)
    if expression.is_Float or expression.is_Symbol:
        return iv.mpf(float(expression) if expression.is_Float else point[expression.name])
    if not expression.args:
        return iv.pi if expression is pi else iv.e
    values = [_value(part, point) for part in expression.args]
    if expression.is_Pow:
        return _power(values[0], values[1], expression.exp)
    result = values[0]
    for value in values[1:]:
        result = result + value if expression.is_Add else result * value
    return result


def _power(base: Any, interval: Any, exponent: Any) -> Any:
    if exponent.is_Integer and (exponent > 0 or 0 not in base):
        return base ** int(exponent)
    if not base > 0:
        raise ValueError("a root of what may be negative")
    iv = _intervals()
    return iv.exp(iv.log(base) * interval)
