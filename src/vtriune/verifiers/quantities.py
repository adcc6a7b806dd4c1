r"""Reading numbers and quantities (`5 km/h`, `50\%`, `\frac{1}{2}\text{ m}`), and converting between units with pint.

When two answers count as equal is plain_answers.py's. Linear in the length; a number has at most 80 digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal

_PLAIN = r"[-+]?(?:\d{1,3}(?:,\d{3}){1,9}(?:\.\d{1,40})?|\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})"
_SCIENTIFIC = (
    rf"(?P<mantissa>{_PLAIN})\s*(?:(?:\\times|\\cdot|\\ast|\*|×|·|x)\s*10\s*\^\s*|[eE])"
    r"(?:\{\s*(?P<braced>[-+]?\d{1,4})\s*\}|(?P<bare>[-+]?\d{1,4}))"
)
_FRACTION = (
    r"(?P<sign>[-+]?)(?:\\[dt]?frac\s*(?:\{\s*(?P<over>[-+]?\d{1,40})\s*\}\s*\{\s*(?P<under>\d{1,40})\s*\}"
    r"|(?P<digit_over>\d)\s*(?P<digit_under>\d))|(?P<slash_over>\d{1,40})\s*/\s*(?P<slash_under>\d{1,40}))"
)
_NUMBER = re.compile(rf"(?P<scientific>{_SCIENTIFIC})|(?P<fraction>{_FRACTION})|(?P<plain>{_PLAIN})")
PLAIN_NUMBER = _PLAIN
"""The pattern of an integer or a decimal, signed, with or without commas between thousands."""

_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}")
_SPACE = re.compile(r"(?:\s|~|\\[,;:! ])+")
_CURRENCY = re.compile(r"([-+]?)(\\?\$|€|£|¥)\s*(\d[^$€£¥]*)\$?")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}
_PERCENT = re.compile(r"\s*(?:\\?[%％]|(?:per ?cent(?:age)?|pct)\b)")
_TEMPERATURE = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\bdeg(?:rees?)?\b)\s*(C|F|[Cc]elsius|[Ff]ahrenheit)\b")
_MICRO = re.compile(r"(?:\\mu\s?|[µμ])(?=[A-Za-z])")
_OHM = re.compile(r"^\s*(?:\\Omega|[ΩΩ])(?![A-Za-z])")
_SCALE = re.compile(r" ?(percent|hundred|thousand|million|billion|trillion|dozen)s?\b")
_SCALES = {
    **{"percent": Fraction(1, 100), "dozen": Fraction(12), "hundred": Fraction(100), "thousand": Fraction(10**3)},
    **{"million": Fraction(10**6), "billion": Fraction(10**9), "trillion": Fraction(10**12)},
}

_UNIT = re.compile(r"[A-Za-z][A-Za-z0-9 */^-]{0,39}")
_UNIT_WORD = re.compile(r"[A-Za-z]+")
_POWER = re.compile(r"\b(square|sq|cubic|cu) ([A-Za-z]+)")
_CONVERTIBLE = re.compile(r"[A-Za-z]+(?:\^-?[1-9])?(?:(?: | ?[*/] ?)[A-Za-z]+(?:\^-?[1-9])?){0,5}")
"""What pint may see: six words at most, one-digit powers. It evaluates what it is given, and stumbles over km^0."""
_SAME_UNITS = """
    nm nanometer nanometre; um micrometer micrometre micron; mm millimeter millimetre; cm centimeter centimetre; dm;
    m meter metre; km kilometer kilometre; inch in; ft foot feet; yd yard; mi mile; ha hectare; acre;
    mg milligram; g gram; kg kilogram; lb pound; oz ounce; t ton tonne;
    ml mL milliliter millilitre; L l liter litre; gallon; ms millisecond; s sec second; min minute; h hr hour; day;
    week; month; yr year; Hz hertz; kHz; MHz; N newton; kN; J joule; kJ; cal calorie; kcal; kWh; eV; W watt; kW; mW; MW;
    V volt; mV; kV; A amp ampere; mA; ohm; C coulomb; Pa pascal; kPa; MPa; bar; atm; K kelvin; celsius; fahrenheit;
    mol mole; deg degree; rad radian; mph; kph kmh kmph
"""
_UNITS = {name: names.split()[0] for names in _SAME_UNITS.split(";") for name in names.split()}
"""Each spelling, singular, to the unit's first, which pint knows; symbols keep their case (mW is not MW)."""
_KNOWN = frozenset(_UNITS.values())
_IES, _ES = re.compile(r"(?<=\w)ies?$"), re.compile(r"(?<=[sxzo])es?$|(?<=[cs]h)es?$")
_PLURALS = {"people": "person", "children": "child", "men": "man", "women": "woman"}

_TOLERANCE = Fraction(1, 10**6)
"""Relative; of numbers in scientific notation, scaled or converted ones."""
_NO_ROUNDING = Fraction(1, 1000)
"""Of two decimals: what differs by a larger share of gold is no matter of rounding."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number, and how it was written."""

    value: Fraction
    form: Literal["integer", "decimal", "fraction", "scientific", "scaled"]
    """`scaled`: with a percent sign or a word such as `million`, which `value` includes."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and a unit, its spelling unified, e.g. `m/s^2`."""

    number: Number
    unit: str


def read_number(text: str) -> Number | None:
    r"""The number that `text` is, a percent sign or a word such as `million` included; None if it is anything else.

    >>> read_number("50 percent") == read_number(r"50\%"), read_number("1,200"), read_number("2x")
    (True, Number(value=Fraction(1200, 1), form='integer'), None)
    """
    found = _read(text)
    return found[0] if found and not found[1] else None


def read_quantity(text: str) -> Quantity | None:
    """The quantity that `text` is; None if it has no unit, or if its letters may be variables.

    A unit is a word that is known as one, stands in a text command, or has three letters and a space before it;
    plurals are recognised if they end in s.

    >>> read_quantity("5 km per hour").unit, read_quantity("2 xy")
    ('km/h', None)
    """
    found = _read(text)
    if not found or not found[1]:
        return None
    number, written = found
    unit = written.strip().replace("{", "").replace("}", "")
    words = _UNIT_WORD.findall(unit)
    known = all(_unit_word(word) in _KNOWN or word in ("per", "square", "sq", "cubic", "cu") for word in words)
    plain_words = written.startswith(" ") and all(len(word) >= 3 for word in words)
    if not _UNIT.fullmatch(unit) or not (known or plain_words or _TEXT.search(text)):
        return None
    unit = _POWER.sub(lambda power: f"{power[2]}^{2 if power[1][0] == 's' else 3}", unit)
    unit = re.sub(r"(?<=[A-Za-z])(?=[23]\b)", "^", unit)
    return Quantity(number, _UNIT_WORD.sub(lambda word: _unit_word(word[0]), unit).replace(" per ", "/"))


def same_number(gold: Number, answer: Number) -> bool | None:
    """Whole numbers are compared exactly; None if two decimals or fractions differ by no more than rounding may."""
    difference = abs(gold.value - answer.value)
    if not difference:
        return True
    forms = {gold.form, answer.form}
    if forms & {"scientific", "scaled"}:
        return difference <= _TOLERANCE * abs(gold.value)
    return False if forms == {"integer"} or difference > _NO_ROUNDING * abs(gold.value) > 0 else None


def same_quantity(gold: Quantity, answer: Quantity) -> bool | None:
    """Are they equal? None if that takes more than numbers and units: `5 apples` may well be `5 red apples`.

    Known units are converted, with a relative tolerance of 1e-6, so that only exact conversions count: 1 mi is
    1.609344 km, not 1.6 km. A temperature is a point on its scale and no difference: 25 degrees Celsius are 298.15 K;
    as part of another unit (J/K) it is a difference.
    """
    if gold.unit == answer.unit or {gold.unit, answer.unit} in ({"C", "celsius"}, {"F", "fahrenheit"}):
        return same_number(gold.number, answer.number)
    if convertible(gold.unit) and convertible(answer.unit):
        line = _line(answer.unit, gold.unit)
        if line is None:
            return False
        slope, offset = line
        difference = abs(gold.number.value - (answer.number.value * slope + offset))
        return difference <= _TOLERANCE * max(abs(gold.number.value), abs(offset))
    a, b = set(gold.unit.split()), set(answer.unit.split())
    return None if a <= b or b <= a else False


def _read(text: str) -> tuple[Number, str] | None:
    """A number and what follows it, spaces and text commands simplified."""
    plain = _SPACE.sub(" ", _TEXT.sub(r"\1", text)).strip().replace("{,}", ",")
    plain = _CURRENCY.sub(lambda found: f"{found[1]}{found[3].strip()} {_CURRENCIES[found[2][-1]]}", plain, count=1)
    found = _NUMBER.match(plain)
    if not found:
        return None
    number = _value(found)
    rest = _MICRO.sub("u", _TEMPERATURE.sub(lambda t: f" {_SHORT[t[1][0].upper()]}", plain[found.end() :]))
    rest = _OHM.sub(" ohm", _PERCENT.sub(" percent", rest, count=1), count=1)
    scale = _SCALE.match(rest)
    if number and scale:
        number = replace(number, value=number.value * _SCALES[scale[1]], form="scaled")
        rest = rest[scale.end() :]
    if number is None or (rest and not re.match(" ?[A-Za-z]", rest)):
        return None
    return number, rest


_SHORT = {"C": "celsius", "F": "fahrenheit"}


def _value(found: re.Match[str]) -> Number | None:
    if found["scientific"]:
        exponent = int(found["braced"] or found["bare"])
        return Number(Fraction(found["mantissa"].replace(",", "")) * Fraction(10) ** exponent, "scientific")
    if found["fraction"]:
        over = found["over"] or found["digit_over"] or found["slash_over"]
        under = int(found["under"] or found["digit_under"] or found["slash_under"])
        return Number(Fraction(int(found["sign"] + "1") * int(over), under), "fraction") if under else None
    plain = found["plain"].replace(",", "")
    return Number(Fraction(plain), "decimal" if "." in plain else "integer")


def _unit_word(word: str) -> str:
    """Singular, and the one spelling of a known unit; single letters keep their case."""
    if word in _UNITS or len(word) == 1:
        return _UNITS.get(word, word)
    word = word.casefold()
    stem = _PLURALS.get(word) or _stem(word)
    return _UNITS.get(word) or _UNITS.get(stem, stem)


def _stem(word: str) -> str:
    """Singular, mostly; `boxes` and `box`, `houses` and `house`, `movies` and `movie` come to the same."""
    if _IES.search(word):
        return _IES.sub("y", word)
    return _ES.sub("", word) if _ES.search(word) else re.sub(r"(?<!s)s$", "", word)


def convertible(unit: str) -> bool:
    """Is the unit, as `read_quantity` writes it, made of units that pint knows?

    >>> convertible("km/h"), convertible("apple")
    (True, False)
    """
    return bool(_CONVERTIBLE.fullmatch(unit)) and all(word in _KNOWN for word in _UNIT_WORD.findall(unit))


@cache
def _registry() -> Any:
    """pint's units: 0.7 s of CPU time, 20 MB."""
    import pint  # noqa: PLC0415

    return pint.UnitRegistry()


@lru_cache(maxsize=1024)
def _line(source: str, target: str) -> tuple[Fraction, Fraction] | None:
    """Slope and offset that take a number of `source` to one of `target`; None if they measure different things."""
    # pint's angles have no dimension: to it, rad/s would be Hz.
    if any(("rad" in unit or "deg" in unit) for unit in (source, target)) and not all(
        ("rad" in unit or "deg" in unit) for unit in (source, target)
    ):
        return None
    import pint  # noqa: PLC0415

    quantity = _registry().Quantity
    try:
        at_0, at_1 = (Fraction(quantity(float(x), source).to(target).magnitude) for x in (0, 1))
    except (pint.PintError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return at_1 - at_0, at_0
