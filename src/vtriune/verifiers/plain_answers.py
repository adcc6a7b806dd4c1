r"""Equality of short answers that needs no computer algebra: numbers, words, dates, ratios, and choices in one box.

What a number with a unit is lives in quantities.py; whatever can't be settled here is left to math-verify by
mathverify.py. Linear in the length.
"""

from __future__ import annotations

import re
from fractions import Fraction

from vtriune.verifiers.number_text import FRACTIONS, SMALL, TENS
from vtriune.verifiers.quantities import (
    PLAIN_NUMBER,
    Number,
    convertible,
    read_number,
    read_quantity,
    same_number,
    same_quantity,
)

_DECIMAL = re.compile(r"[-+]?\d{1,40}(?:\.\d{1,40})?")
_WORDS = re.compile(r"[^\W\d_]{2,}(\s+[^\W\d_]+)*")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf)\{([^{}\\]*)\}")
_OR = re.compile(r"\bor\b|\\lor\b|\\vee\b", re.IGNORECASE)
_CAPITAL = re.compile(r"[A-Z]")
_LETTER = re.compile(r"[A-Za-z]")
_NAME = re.compile(r"\\[A-Za-z]+|[A-Za-z]+")
_EQUALS = re.compile(r"(?<![\\<>!:])=")
_ASSIGNED = re.compile(r"(\\?[A-Za-z]+(?:_\{?\w{1,9}\}?)?)\s*=\s*([^=]+)", re.DOTALL)
_CHAIN = re.compile(r"[A-Z](?:\s*=\s*[A-Z])+")
_OPTION = re.compile(r"\(?([A-Z])[).:]")
_ALGEBRA = re.compile(
    r"\b(?:(?:arc)?(?:sin|cos|tan)|cot|csc|log|exp|sqrt|lim|max|mod|det"
    r"|alpha|beta|gamma|delta|theta|lambda|sigma|omega)\b"
)
_PLAIN_UNIT = re.compile(r"[A-Za-z]{2,}(?: (?:of |per )?[A-Za-z]{2,})?")
_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+")
_NO_EXPONENT = re.compile(r"(?<!\^)(?<!\^-)\d")
_CHANGING_WORDS = """
    hundred thousand million billion trillion k M B bn mn lakh crore dozen gross score pair couple percent ppm permille
    squared cubed factorial root infinity plus minus negative double doubled triple tripled twice point e i x y z
    over under above below than least most to vs or and but not no nor never neither either maybe perhaps possibly
    likely wrong incorrect false except
"""
_CHANGING = frozenset((*SMALL, *TENS, *FRACTIONS, *_CHANGING_WORDS.split()))
"""Words beside a number that are no unit: they make another number of it, deny it or offer a second one."""
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4}")
_RATIO = re.compile(rf"{PLAIN_NUMBER}(?:\s*(?::|\\colon)\s*{PLAIN_NUMBER})+")
_OPERAND = rf"(?:{PLAIN_NUMBER}|\d{{1,40}}\s*/\s*\d{{1,40}})"
_UNFINISHED = re.compile(rf"{_OPERAND}(?:\s*(?:[-+*×·÷]|\\times|\\cdot|\\div)\s*{_OPERAND})+")


def sprayed(gold: str, answer: str) -> bool:
    """Does the answer offer a choice (`A or B`, `A=B=C`, `3=4`) that gold does not? One assignment (`A=5`) is none.

    >>> sprayed("5", "A=5"), sprayed("D", "A=D"), sprayed("D", "A or D")
    (False, True, True)
    """
    if len(_OR.findall(answer)) > len(_OR.findall(gold)):
        return True
    sides = [side.strip() for side in _EQUALS.split(answer)]
    if _EQUALS.search(gold):
        return len(sides) > len(_EQUALS.split(gold))
    if len(sides) == 2 and _CAPITAL.fullmatch(sides[0]) and _DECIMAL.fullmatch(sides[1]):
        return _CAPITAL.fullmatch(gold) is not None
    options = all(_CAPITAL.fullmatch(side) or _DECIMAL.fullmatch(side) for side in sides)
    return len(sides) > 2 or (options and len(set(sides)) > 1)


def settle(gold: str, answer: str) -> bool | None:
    r"""Are they equal? None if that takes computer algebra.

    Equal text is equal, a `\text{}` around it and a full stop behind it aside. Whole numbers are compared exactly,
    fractions and decimals by value; numbers of which one is in scientific notation with a relative tolerance of 1e-6;
    words regardless of case, single letters and commands (`\delta`) with it; dates and ratios (`1:2`) part by part.
    A capital letter is no number (`E` is not 2.718...). A percent sign and words such as `million` belong to the
    number: `50\%` is 0.5, not 50. A sum, difference or product of numbers is unfinished where gold is a number.
    Of two quantities the units are converted and must fit, see `quantities.same_quantity`; where only one side has
    a unit, known or of two words at most, it is not looked at, since questions often name it; words that change the
    number, deny it or add another (`7 tenths`, `7 \text{ maybe eight}`) are no unit. Nor are `x =` on one side,
    or brackets behind a letter.

    >>> settle("5 kg", "5 m"), settle("5 km", r"5000\text{ m}"), settle("7", "007"), settle("7", r"\sqrt{49}")
    (False, True, True, None)
    """
    gold, answer = _plain(gold), _plain(answer)
    if gold == answer:
        return True
    gold, answer = _unassigned(gold, answer)
    if _CAPITAL.fullmatch(answer) and _CHAIN.fullmatch(gold):
        return False
    if _DATE.fullmatch(gold) or _DATE.fullmatch(answer):
        return _date(gold) == _date(answer)
    if _RATIO.fullmatch(gold) and _RATIO.fullmatch(answer):
        return _parts(gold) == _parts(answer)
    same = _settle_measured(gold, answer)
    return _settle_words(gold, answer) if same is None else same


def _plain(text: str) -> str:
    text = text.strip().removesuffix(".").replace("−", "-")
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    wrapped = _TEXT.fullmatch(text)
    text = wrapped.group(1).strip().removesuffix(".") if wrapped else text
    option = _OPTION.fullmatch(text)
    return option[1] if option else text


def _unassigned(gold: str, answer: str) -> tuple[str, str]:
    """Both without `x =`, where only one of them has it or both have the same."""
    a, b = _ASSIGNED.fullmatch(gold), _ASSIGNED.fullmatch(answer)
    if a and (b[1] == a[1] if b else not _EQUALS.search(answer)):
        gold = a[2].strip()
    if b and (a[1] == b[1] if a else not _EQUALS.search(gold)):
        answer = b[2].strip()
    return gold, answer


def _date(text: str) -> list[int] | None:
    return [int(part) for part in re.split(r"[-/.]", text)] if _DATE.fullmatch(text) else None


def _parts(ratio: str) -> list[Fraction]:
    return [Fraction(part.strip().replace(",", "")) for part in re.split(r":|\\colon", ratio)]


def _settle_measured(gold: str, answer: str) -> bool | None:
    a, b = read_number(gold), read_number(answer)
    if a and b:
        return same_number(a, b)
    if (a and (_UNFINISHED.fullmatch(answer) or _CAPITAL.fullmatch(answer))) or (b and _CAPITAL.fullmatch(gold)):
        return False
    measured, claimed = read_quantity(gold), read_quantity(answer)
    if measured and claimed:
        return same_quantity(measured, claimed)
    if a and claimed:
        same = _settle_one_unit(a, claimed.number, claimed.unit)
        # math-verify would drop the text of `7 \text{ as far as known}`.
        return False if same is None and len(claimed.unit.split()) > 2 else same
    if measured and b:
        return _settle_one_unit(measured.number, b, measured.unit)
    return False if a and _CHANGING.intersection(w.casefold() for w in _LETTERS.findall(answer) if w[1:]) else None


def _settle_one_unit(gold: Number, answer: Number, unit: str) -> bool | None:
    """A number and a quantity. math-verify knows few units, takes 50% for 50, and drops any `\\text{}`."""
    if _NO_EXPONENT.search(unit) or _CHANGING.intersection(_LETTERS.findall(unit)):
        return False
    known = convertible(unit) or (_PLAIN_UNIT.fullmatch(unit) and not _ALGEBRA.search(unit))
    return same_number(gold, answer) if known or "scaled" in (gold.form, answer.form) else None


def _settle_words(gold: str, answer: str) -> bool | None:
    if _WORDS.fullmatch(gold) and _WORDS.fullmatch(answer):
        return gold.casefold().split() == answer.casefold().split()
    if _LETTER.fullmatch(gold) and _LETTER.fullmatch(answer):
        return False
    if gold.casefold() == answer.casefold():
        # math-verify takes Delta and delta, X and x for one symbol.
        pairs = zip(_NAME.findall(gold), _NAME.findall(answer), strict=False)
        if any(a != b and (a[0] == "\\" or len(a) == 1) for a, b in pairs):
            return False
    return None
