"""From text to items that can be compared: one normal form of words, and lists as models write them. Near-linear.

What equal items are worth is for match.py, ordering.py, ocr.py and multiple_choice.py.
"""

from __future__ import annotations

import json
import re
import unicodedata

_RUN = 30
_MARK = re.compile(r"[^\w\s]|_")
_NUMERAL_MARKS = "-.,:/"
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_SEPARATOR = re.compile(r"[,;\n]")
_ARROW = re.compile(r"[,;\n]|-{1,3}>|={1,3}>|→|⇒|>|<(?!-)|\\(?:rightarrow|to)(?![a-z])")
_QUOTED = re.compile(r"""\s*+(?:"([^"\n]*+)"|'([^'\n]*+)')\s*+(?:,|$)""")
_LEAD = re.compile(r"\A\s*+(?:(?:[-*•]|\d{1,3}[.)])\s++)?(?:(?:and|&)\s++)?", re.IGNORECASE)


def nfc(text: str) -> str:
    """Unicode's normal form C, at most 30 combining marks on a letter (UAX #15, stream-safe).

    Python's own sorting of such marks is quadratic in the length of a run: 400,000 would take minutes.

    >>> nfc("e\\u0301") == "\\u00e9"
    True
    """
    if text.isascii():
        return text
    kept: list[str] = []
    run = 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= _RUN:
            kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def normal(text: str, *, case: bool = True, punctuation: bool = True, articles: bool = True) -> str:
    """A text up to white space and, as asked, case, punctuation and the articles a, an, the: SQuAD's normal form.

    Two differences to SQuAD: marks that belong to a number stay (`-5`, `3.5`, `1/2`, `10:30`), as do mathematical and
    currency signs; and where nothing would be left (`A`, `...`), marks and articles stay. Unicode is in form C.

    >>> normal("The  big, red fox!"), normal("-3.5"), normal("A")
    ('big red fox', '-3.5', 'a')
    """
    whole = " ".join(nfc(text).split())
    if case:
        whole = whole.casefold()
    bare = _MARK.sub(_unless_in_number, whole) if punctuation else whole
    bare = _ARTICLE.sub(" ", bare) if articles else bare
    return " ".join(bare.split()) or whole


def _unless_in_number(mark: re.Match[str]) -> str:
    following = mark.string[mark.end() : mark.end() + 1]
    keep = (mark[0] in _NUMERAL_MARKS and following.isdigit()) or not unicodedata.category(mark[0]).startswith("P")
    return mark[0] if keep else ""


def read_items(text: str, *, arrows: bool = False) -> list[str]:
    """The items of a list, as written, in order, empty ones left out.

    Reads what stands between the first `[` (or else `{`) and the last `]` (`}`), or all of the text without brackets:
    as JSON if it is an array of scalars, else as items in quotes or bare, separated by commas, semicolons or line
    breaks (`arrows`: also by `>`, `<`, `->`, and, if there is none of these, by white space). Bullets, numbering and an
    `and` before an item go.

    >>> read_items('["red, dark", "blue"]'), read_items("red, green, and blue"), read_items("B > A", arrows=True)
    (['red, dark', 'blue'], ['red', 'green', 'blue'], ['B', 'A'])
    """
    text = text.strip()
    for opening, closing in ("[]", "{}"):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end:
            scalars = _json_scalars(text[start : end + 1])
            if scalars is not None:
                return scalars
            text = text[start + 1 : end]
            break
    separator = _ARROW if arrows else _SEPARATOR
    items = _quoted_items(text)
    if items is None:
        items = separator.split(text)
        if arrows and len(items) == 1:
            items = text.split()
        items = [_LEAD.sub("", item).strip(" \t\r\"'`*.") for item in items]
    return [item for item in items if item]


def _json_scalars(array: str) -> list[str] | None:
    """The items of a JSON array as text, numbers as written; None if it is none or holds more than scalars."""
    try:
        items = json.loads(array, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or any(isinstance(item, list | dict) for item in items):
        return None
    return [item.strip() if isinstance(item, str) else json.dumps(item) for item in items if item != ""]


def _quoted_items(text: str) -> list[str] | None:
    """Items that all stand in quotes, so that commas within them do no harm; None if they don't."""
    items: list[str] = []
    position = 0
    while position < len(text):
        found = _QUOTED.match(text, position)
        if found is None:
            return None
        items.append((found[1] if found[1] is not None else found[2]).strip())
        position = found.end()
    return items
