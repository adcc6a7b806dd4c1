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


def _spelt(word: str) -> str:
    """`word` as it occurs in text: any white space for a space, also the two typographic hyphens for `-`."""
    return word.replace(" ", r"\s+").replace("-", "[-\u2010\u2011]")


_WORD = re.compile(rf"\b(?:{'|'.join(map(_spelt, WORDS))})\b")
# No text without one of these holds a word. Substring search is several times faster than the expression, and most
# answers of a perception source hold none.
_STEMS = ("wait", "yet", "verify", "again", "recheck", "rethink", "reeval", "reexam", "re-", "re\u2010", "re\u2011")


def reflects(text: str) -> bool:
    """Whether any of the fifteen words stands in `text` as a word of its own, in upper or lower case.

    The released code counts substrings, so that it finds "wait" in "waiter" and "yet" in "anyyet"; this does not.
    The time is linear in the length of the text.

    >>> reflects("Wait, let me re-check the left box.")
    True
    >>> reflects("The waiter anyyet rechecked nothing.")
    False
    """
    lowered = text.lower()
    return any(stem in lowered for stem in _STEMS) and _WORD.search(lowered) is not None
