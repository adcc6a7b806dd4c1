r"""`multiple_choice`: does the answer choose gold's letter, and no other?

Where the answer stands is answers.py's to say.
"""

from __future__ import annotations

import re
from string import ascii_uppercase

from pydantic import BaseModel, ConfigDict, Field

from vtriune.verifiers.answers import final_answer
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score

# Letters that stand alone. `A cat` and `I think` are an article and a pronoun: before a word of two letters and more,
# a and i are choices only if that word speaks of them (`A is right`, `A or B`) or `option` goes before.
_LETTER = re.compile(
    r"""
    (?<![\w'’\\]) (?:
        (?<![a-z])(?:option|choice|letter)\s{1,3}[("'*_$]{0,3}(?P<named>[A-Z])(?![\w'’])
      | (?P<a>[AI])(?![\w'’])(?!\s++(?!(?:is|or|and|was|because|since|as|but|nor|not)\b)\w\w)
      | (?P<other>[B-HJ-Z])(?![\w'’])
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\bnot|n['’]t(?:\s+be)?)\s{1,3}(?:option\s{1,3}|choice\s{1,3})?[(*]{0,3}[A-Z](?![\w'’])", re.IGNORECASE
)
_LABELLED = re.compile(r"[(\[]?([A-Z])(?:[)\].:]+|\s*[-–—]\s)\s*(\S.*)", re.IGNORECASE | re.DOTALL)
_GLUED = re.compile(r"[A-Z]{2,26}")
_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf)(?=\{)")


class MultipleChoiceParams(BaseModel):
    """What can be chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: tuple[str, ...] = Field(default=(), max_length=26)
    """The texts of A, B, ... in order: an answer that equals one of them is its letter. Empty: they are not known."""
    letters: int = Field(default=10, ge=2, le=26)
    """How many letters can be chosen where `options` is empty; others (x, y, a unit) are no choice."""
    several: bool = False
    """Gold may be several letters (`A, C`), all of which, and no other, must be chosen."""

    @property
    def choices(self) -> str:
        """The letters that can be chosen."""
        return ascii_uppercase[: len(self.options) or self.letters]


class MultipleChoice:
    r"""1 if the letter chosen is gold's, else 0; correct means 1.

    The answer (see `final_answer`) chooses what is the first to hold of:
        - it is one letter, brackets, full stop and emphasis aside: `B`, `(b)`, `B.`, `**B**`, `\text{B}`;
        - it equals exactly one of the `options`, case, white space and a full stop aside;
        - it is a letter and its option's text: `B) red`; a letter with another option's text chooses nothing;
        - of all letters that stand alone in it there is one only, however often: `The answer is B`, `option B`.
    Two letters (`A or B`, `A, B`, `A B`), none, a denied one (`not B`), and an option beyond the choices (`option B or
    option Z`) are 0. The article in `A cat` and the
    pronoun in `I think` are no choice. Without `options` a lone letter in an option's text is a second one
    (`B) vitamin C`).
    `several`: the letters that stand alone, or are written as one word in capitals (`AC`), are the set chosen; it must
    be gold's.

    Report: `n_chosen`, the number of letters chosen.

    Source: ours. Peers search an answer for gold's letter, so that `A or B or C` scores 1 (Visual-RFT#79).

    >>> verifier, params, context = MultipleChoice(), MultipleChoiceParams(), Context(preset="modern", split="test")
    >>> gold = verifier.parse_gold("B", params, context)
    >>> answers = (r"\boxed{\text{B}}", "I think it is (b).", "A or B", "A bird")
    >>> [verifier.judge(answer, gold, params, context).accuracy for answer in answers]
    [1.0, 1.0, 0.0, 0.0]
    """

    name = "multiple_choice"
    Params = MultipleChoiceParams

    def parse_gold(self, gold: str, params: MultipleChoiceParams, context: Context) -> frozenset[str]:
        """Gold's letter, or letters.

        Raises:
            Unscorable: gold chooses nothing, or several letters where one is asked for.
        """
        chosen = _chosen(final_answer(gold), params)
        if not chosen or (len(chosen) > 1 and not params.several):
            raise Unscorable(
                f"gold {gold[:80]!r} must be one of the letters {params.choices[0]} to {params.choices[-1]}; "
                'set "several" for more than one, "letters" or "options" for other choices'
            )
        return chosen

    def judge(self, response: str, gold: frozenset[str], params: MultipleChoiceParams, context: Context) -> Outcome:
        """Compare what the answer chooses with gold."""
        chosen = _chosen(final_answer(response), params)
        right = chosen == gold
        reason = "" if right else "another choice"
        if not chosen:
            reason = "no choice found in the answer"
        elif len(chosen) > 1 and not params.several:
            reason = "several choices in the answer"
        return Outcome(float(right), tag_score(response), right, {"n_chosen": float(len(chosen))}, reason)


def _chosen(text: str, params: MultipleChoiceParams) -> frozenset[str]:
    """Gold and answers alike."""
    text = _COMMAND.sub("", text).strip()
    letter = text.strip(" \t\n()[]{}.:*_$\"'`").upper()
    if len(letter) == 1:
        return frozenset(letter) & frozenset(params.choices)
    texts = [_plain(option) for option in params.options]
    if texts.count(_plain(text)) == 1:
        return frozenset(ascii_uppercase[texts.index(_plain(text))])
    labelled = _LABELLED.fullmatch(text)
    if labelled and _plain(labelled[2]) in texts:
        label = labelled[1].upper()
        own = label in params.choices and texts[params.choices.index(label)] == _plain(labelled[2])
        return frozenset(label) if own else frozenset()
    if params.several and _GLUED.fullmatch(letter) and letter in text and set(letter) <= set(params.choices):
        return frozenset(letter)
    letters = list(_LETTER.finditer(text))
    beyond = any(one["named"] and one["named"].upper() not in params.choices for one in letters)
    if beyond or _DENIED.search(text):
        return frozenset()
    found = {(one["named"] or one["a"] or one["other"]).upper() for one in letters}
    return frozenset(found) & frozenset(params.choices)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
