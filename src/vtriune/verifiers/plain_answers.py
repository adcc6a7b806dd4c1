r"""Equality of short answers that needs no computer algebra: numbers, words, dates, units, and choices in one box.

Whatever can't be settled here is left to math-verify by mathverify.py, which alone knows it. Linear in the length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

_RELATIVE_TOLERANCE = Decimal("1e-6")
"""Of numbers of which one is in scientific notation: math-verify's is absolute, so that all tiny ones are equal."""
_TINY_DIFFERENCE = Decimal("1e-3")
"""Of two decimals: what differs by a larger share of gold is no matter of rounding."""

_NUMBER = r"[-+]?\d{1,40}(?:\.\d{1,40})?"
_INTEGER = re.compile(r"[-+]?\d{1,40}")
_DECIMAL = re.compile(_NUMBER)
_SCIENTIFIC = re.compile(
    rf"(?P<mantissa>{_NUMBER}) \s* (?:(?:\\times|\\cdot|\\ast|\*|×|·|x)\s*10\s*\^\s*|[eE])"
    r"(?: \{\s*(?P<braced>[-+]?\d{1,4})\s*\} | (?P<bare>[-+]?\d{1,4}) )",
    re.VERBOSE,
)
_WORDS = re.compile(r"[^\W\d_]{2,}(\s+[^\W\d_]+)*")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf)\{([^{}\\]*)\}")
_OR = re.compile(r"\bor\b|\\lor\b|\\vee\b", re.IGNORECASE)
_LETTER = re.compile(r"[A-Z]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_EQUALS = re.compile(r"(?<![\\<>!:])=")
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{4}")

_SPACE = re.compile(r"(?:\s|~|\\[,;:! ])+")
_QUANTITY = re.compile(
    rf"(?P<number>{_SCIENTIFIC.pattern}|\d{{1,3}}(?:,\d{{3}}){{1,9}}(?:\.\d{{1,40}})?|{_NUMBER})"
    r"(?P<unit>\ *[A-Za-z].*)",
    re.VERBOSE | re.DOTALL,
)
_UNIT = re.compile(r"[A-Za-z][A-Za-z0-9 */^-]{0,39}")
_UNIT_WORD = re.compile(r"[A-Za-z]+")
_POWER = re.compile(r"\b(square|sq|cubic|cu) ([A-Za-z]+)")
_SAME_UNITS = """
    mm millimeter millimetre; cm centimeter centimetre; dm; m meter metre; km kilometer kilometre;
    inch in; ft foot feet; yd yard; mi mile; mg milligram; g gram; kg kilogram; lb pound; oz ounce; t ton tonne;
    ml mL milliliter millilitre; L l liter litre; ms millisecond; s sec second; min minute; h hr hour; day; week; month;
    yr year; Hz hertz; kHz; MHz; N newton; kN; J joule; kJ; cal calorie; kcal; W watt; kW; mW; MW; V volt; mV; kV;
    A amp ampere; mA; C coulomb; Pa pascal; kPa; MPa; K kelvin; mol mole; deg degree; rad radian; mph
"""
_UNITS = {name: names.split()[0] for names in _SAME_UNITS.split(";") for name in names.split()}
"""Each spelling, singular, to the unit's first; symbols keep their case (mW is not MW)."""


@dataclass(frozen=True, slots=True)
class _Quantity:
    number: str
    unit: str
    """Spellings unified, e.g. `m/s^2`."""


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
    if len(sides) == 2 and _LETTER.fullmatch(sides[0]) and _DECIMAL.fullmatch(sides[1]):
        return _LETTER.fullmatch(gold) is not None
    options = all(_LETTER.fullmatch(side) or _DECIMAL.fullmatch(side) for side in sides)
    return len(sides) > 2 or (options and len(set(sides)) > 1)


def settle(gold: str, answer: str) -> bool | None:
    r"""Are they equal? None if that takes computer algebra.

    Equal text is equal, a `\text{}` around it and a full stop behind it aside. Whole numbers are compared exactly;
    numbers of which one is in scientific notation with a relative tolerance of 1e-6; words regardless of case;
    dates by their parts. Of two quantities in different units the answer is wrong, whatever the numbers: nothing is
    converted. A unit is a word that is known as one, stands in `\text{}`, or has three letters and a space before it;
    plurals are recognised if they end in s.

    >>> settle("5 kg", "5 m"), settle("5 meters", r"5\text{ m}"), settle("7", "007"), settle("7", r"\frac{14}{2}")
    (False, True, True, None)
    """
    gold, answer = _plain(gold), _plain(answer)
    if gold == answer:
        return True
    if _DATE.fullmatch(gold) or _DATE.fullmatch(answer):
        return _date(gold) == _date(answer)
    measured, claimed = _quantity(gold), _quantity(answer)
    if measured and claimed:
        return _settle_quantities(measured, claimed)
    same = _settle_words(gold, answer)
    return _settle_numbers(gold, answer) if same is None else same


def _plain(text: str) -> str:
    text = text.strip().removesuffix(".")
    wrapped = _TEXT.fullmatch(text)
    return wrapped.group(1).strip() if wrapped else text


def _date(text: str) -> list[int] | None:
    return [int(part) for part in re.split(r"[-/.]", text)] if _DATE.fullmatch(text) else None


def _settle_quantities(gold: _Quantity, answer: _Quantity) -> bool | None:
    if gold.unit == answer.unit:
        return _settle_numbers(gold.number, answer.number)
    a, b = set(gold.unit.split()), set(answer.unit.split())
    # `5 apples` and `5 red apples` may well be the same.
    return None if a <= b or b <= a else False


def _settle_words(gold: str, answer: str) -> bool | None:
    if _WORDS.fullmatch(gold) and _WORDS.fullmatch(answer):
        return gold.casefold().split() == answer.casefold().split()
    if _COMMAND.fullmatch(gold) and _COMMAND.fullmatch(answer) and gold.lower() == answer.lower():
        return False  # math-verify takes Delta and delta for one symbol
    return None


def _settle_numbers(gold: str, answer: str) -> bool | None:
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    a, b = _number(gold), _number(answer)
    if a is None or b is None:
        return None
    difference = abs(a - b)
    if _SCIENTIFIC.fullmatch(gold) or _SCIENTIFIC.fullmatch(answer):
        return difference <= _RELATIVE_TOLERANCE * abs(a)
    if not difference:
        return True
    return False if difference > _TINY_DIFFERENCE * abs(a) > 0 else None


def _number(text: str) -> Decimal | None:
    if _DECIMAL.fullmatch(text):
        return Decimal(text)
    power = _SCIENTIFIC.fullmatch(text)
    if power:
        return Decimal(f"{power['mantissa']}e{power['braced'] or power['bare']}")
    return None


def _quantity(text: str) -> _Quantity | None:
    """A number with a unit behind it; None if it is none, or if the letters may be variables."""
    marked = _TEXT.search(text) is not None
    plain = _SPACE.sub(" ", _TEXT.sub(r"\1", text)).strip()
    found = _QUANTITY.fullmatch(plain)
    if not found:
        return None
    written = found["unit"].replace("{", "").replace("}", "")
    unit = written.strip()
    words = _UNIT_WORD.findall(unit)
    known = all(_unit_word(word) in _UNITS.values() or word in ("per", "square", "sq", "cubic", "cu") for word in words)
    plain_words = written.startswith(" ") and all(len(word) >= 3 for word in words)
    if not _UNIT.fullmatch(unit) or not (marked or known or plain_words):
        return None
    unit = _POWER.sub(lambda power: f"{power[2]}^{2 if power[1][0] == 's' else 3}", unit)
    unit = _UNIT_WORD.sub(lambda word: _unit_word(word[0]), unit).replace(" per ", "/")
    return _Quantity(found["number"].replace(",", "").strip(), unit)


def _unit_word(word: str) -> str:
    """Singular, and the one spelling of a known unit; single letters keep their case."""
    if word in _UNITS or len(word) == 1:
        return _UNITS.get(word, word)
    word = word.casefold()
    # Both `boxes` and `box`, `houses` and `house` come to the same.
    stem = re.sub("i$", "y", word.rstrip("es"))
    return _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or _UNITS.get(word.removesuffix("es")) or stem
