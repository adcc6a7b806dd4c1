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
_HEDGE = re.compile(
    r"\b(?:or|not)\b | [<>≤≥±√]=?\s?[-+$€£]?\d | \\(?:sqrt|pi|pm|leq?|geq?|lor|vee|frac|dfrac)(?![a-z])",
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
    r"""Does it offer a choice (`5 or 6`), deny (`not 5`), bound (`> 5`, `5 ± 1`) or calculate (`\sqrt{5}`)?

    >>> hedged("5 or 6"), hedged("about 5 kg")
    (True, False)
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
