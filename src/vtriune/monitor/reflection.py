"""The fifteen words by which section 3.3 of the paper recognises an answer that reflects on itself.

Only the recognition stands here; shares and ratios are in metrics.py.
"""

from __future__ import annotations

import re

WORDS = (
    "re-check",
    "re-evaluate",
    "re-examine",
    "re-think",
    "recheck",
    "reevaluate",
    "reexamine",
    "reevaluation",
    "rethink",
    "check again",
    "think again",
    "try again",
    "verify",
    "wait",
    "yet",
)


_LETTERS = "wvxky"
"""Each of the words has one of these rare letters, by which it is looked for: what stands before it is checked behind
it. An expression that begins with one letter is searched many times faster than one with a boundary and fifteen words.
"""


def _behind(word: str, letter: str) -> str:
    """The expression for `word` from behind `letter` on: any white space for a space, also typographic hyphens."""
    head, _, tail = word.replace("-", "[-\u2010\u2011]").replace(" ", r"\s+").partition(letter)
    return rf"(?<=\b{head}{letter}){tail}\b"


def _finders(letter: str) -> tuple[re.Pattern[str], dict[str, re.Pattern[str]]]:
    """Finds any of the words that are looked for by `letter`; and each of them."""
    words = [word for word in WORDS if letter == next(one for one in _LETTERS if one in word)]
    any_of_them = re.compile(f"{letter}(?:{'|'.join(_behind(word, letter) for word in words)})")
    return any_of_them, {word: re.compile(letter + _behind(word, letter)) for word in words}


_FINDERS = [_finders(letter) for letter in _LETTERS]


def words_in(text: str) -> frozenset[str]:
    """Those of the fifteen words that stand in `text` as words of their own, in upper or lower case.

    The released code counts substrings, so that it finds "wait" in "waiter" and "yet" in "anyyet"; this does not.
    The time is linear in the length of the text.

    >>> sorted(words_in("Wait, let me re\u2011check the left box."))
    ['re-check', 'wait']
    >>> words_in("The waiter anyyet rechecked nothing.")
    frozenset()
    """
    lowered = text.lower()
    present = [finders for any_of_them, finders in _FINDERS if any_of_them.search(lowered)]
    return frozenset([word for finders in present for word, finder in finders.items() if finder.search(lowered)])
