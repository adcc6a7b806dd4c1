r"""From text to numbers: what counts as one, and which texts are hedges or arithmetic. Linear, evaluating nothing.

What a number is worth is for numeric.py and counting.py; equality in mathematics is mathverify's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice

_NUMBER = re.compile(
    r"""
    (?<![\w.^])(?<!\^\{)(?<!\^[-+])(?<!\^\{[-+])           # digits within a word or an exponent (H2O, m^{-2}) are none
    (?P<sign>[-+])? \ ?(?P<currency>[$€£¥₹])? \ ?(?P<inner>[-+])?
    (?: 10 \s?\^\s? \{?\s? (?P<power>[-+]?\d{1,4}+) \s?\}?
      | (?P<digits> \d{1,3}+(?:,\d{3})++(?:\.\d{1,300}+)? | \d{1,300}+(?:\.\d{0,300}+)? | \.\d{1,300}+ )
        (?: [eE](?P<e>[-+]?\d{1,4}+)
          | \s?(?:×|x|\*|·|\\times|\\cdot)\s? 10 \s?\^\s? \{?\s? (?P<times>[-+]?\d{1,4}+) \s?\}? )?+
    )
    (?!\s?\^)(?!\.?\d)
    \s{0,3} (?: (?P<percent>%|(?:percent|per\ cent)\b) | (?P<scale>hundred|thousand|million|billion|trillion)\b )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
"""The words for 0 to 19."""
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
FRACTIONS = (
    *("half", "halve", "third", "quarter", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    *("twentieth", "hundredth", "thousandth", "millionth", "billionth", "trillionth"),
)
"""Words, singular, that divide the number before them; seconds are a unit."""

_SPELT = rf"(?:{'|'.join((*SMALL, *TENS))})\b"
_HEDGE = re.compile(
    rf"""
    \b(?:or|not|maybe|perhaps|possibly|at\ least|at\ most)\b
    # a bound or a guess, if the number follows: `the difference between A and B is 5` is none
    | \b(?:than|over|under|above|below|(?<!add\ )(?<!adds\ )up\ to|as\ (?:many|much|few|little)\ as|exceed(?:s|ing)?
          |(?:could|might|may)\ be) \s{{1,3}} (?:[-+$€£]{{0,2}}\d|{_SPELT})
    | \bbetween \s{{1,3}} (?:[-+$€£]{{0,2}}\d|{_SPELT}\ and\b)
    | [<>≤≥±√]=?\s?[-+$€£]?\d | \\(?:sqrt|pi|pm|leq?|geq?|lor|vee|frac|dfrac)(?![a-z])
    # what makes another number of the one before it: `5+`, `5..6`, `5²`, `5 thousandths`, `5 k`
    | \d\s{{0,3}} (?: \+(?!\d) | \.\.+\s?[\da-z] | [⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻¼½¾]
          | (?:plus|minus|squared|cubed|factorial|crore|lakh|gross|dozens?|(?-i:k)|bn)\b
          | (?:and\ an?\ )?(?:{"|".join(FRACTIONS)})s?\b | and\ (?:above|below|up|over|more|less)\b )
    | \b(?:plus|minus)\s{{1,3}}\d
    # a second number, spelt out, behind the first: `5 to six`, `5 / two`
    | \d[^\d.\n]{{0,20}}? (?:\b(?:to|and|times|divided\ by)\s|[-–,;/&~*×÷|]) \s{{0,3}} {_SPELT}(?!\ of)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PLAIN = ((r"\%", "%"), (r"\$", "$"), ("{,}", ","), ("−", "-"), ("–", "-"), (r"\,", " "), ("\u00a0", " "))


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a text."""

    value: Decimal
    """Thousands separators, powers of ten and words such as `million` applied; a percent sign is not."""
    percent: bool
    currency: str
    """Its sign, or empty."""
    behind: str
    """What follows it, up to the end of the text or 40 characters: a unit, or more prose."""


def read_numbers(text: str, most: int = 2) -> list[Number]:
    r"""The first `most` numbers of a text, in its order.

    A number is a sign, digits in groups of three separated by commas or in one run, a decimal point, and an exponent
    (`1e5`, `1.5 \times 10^{5}`, `10^5`); a word hundred ... trillion multiplies it. LaTeX's `\%`, `\$`, `{,}`, `\,` are
    read as they are set. Digits within a word (`H2O`) or an exponent of a unit (`m^2`) are none, nor are spelt numbers.

    >>> [str(one.value) for one in read_numbers(r"from -1{,}250.5 m^2 to $3 million")]
    ['-1250.5', '3E+6']
    """
    for written, meant in _PLAIN:
        text = text.replace(written, meant)
    if text.startswith("$") and text.endswith("$"):
        text = text.strip("$")
    return [_number(found, text) for found in islice(_NUMBER.finditer(text), most)]


def hedged(text: str) -> bool:
    r"""Does it offer a choice (`5 or 6`), deny (`not 5`), bound (`> 5`, `at least 5`, `5+`, `5 ± 1`) or calculate?

    Calculations are `\sqrt{5}`, `5²`, `5 / two`, `5 thousandths`, `5 k`; guesses (`maybe 5`, `could be 5`) are hedges.

    >>> hedged("5 or 6"), hedged("between 5 and six"), hedged("about 5 kg"), hedged("it adds up to 5")
    (True, True, False, False)
    """
    return _HEDGE.search(text) is not None


def _number(found: re.Match[str], text: str) -> Number:
    exponent = int(found["power"] or found["e"] or found["times"] or 0) + _SCALES.get((found["scale"] or "").lower(), 0)
    digits = found["digits"].replace(",", "") if found["digits"] else "1"
    negative = (found["sign"] == "-") != (found["inner"] == "-")
    return Number(
        value=Decimal(f"{'-' if negative else ''}{digits}e{exponent}"),
        percent=found["percent"] is not None,
        currency=found["currency"] or "",
        behind=text[found.end() : found.end() + 40],
    )
