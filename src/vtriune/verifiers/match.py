"""`match`: is the answer gold's text, list or set, exactly or in part?

How texts are brought to one form and lists are read is item_text.py's job; the order of a permutation ordering.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.answers import final_answer
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.item_text import normal, read_items

MAX_ITEMS = 10_000
"""Words or items of gold, and of an answer those that can match; every further one still costs precision."""


class MatchParams(BaseModel):
    """What is compared, and up to which differences."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["string", "list", "set"] = "string"
    """`string`: one text. `list`: items in an order. `set`: items in any order."""
    value: Literal["exact", "f1"] | None = None
    """R_acc; None: `exact` for strings, `f1` for lists and sets."""
    ignore_case: bool = True
    """`Red` is `red`."""
    ignore_punctuation: bool = True
    """`U.S.` is `US`; marks within a number stay."""
    ignore_articles: bool = True
    """`the fox` is `fox`: a, an, the."""


class Match:
    """Exact match or F1 = 2 * matches / (n_pred + n_gold), in words or items; correct means an exact match.

    Kinds:
        `string`: n counts words, matches are words that both have, as often as both have them (SQuAD).
        `list`: n counts items, matches are the longest common subsequence, so that order counts.
        `set`: n_gold counts gold's different items, n_pred all that the answer names: naming one twice, or many that
            are not there, costs precision. No order matters.

    White space never counts; case, punctuation and articles as the parameters say, see `normal` for what remains of
    `-5` or `A`. Lists are read by `read_items`, from the final answer (see `final_answer`). `[]` is right where gold is
    `[]`; else an empty answer is 0. A hedge (`red or blue`) is another text, and in F1 costs precision.

    Report: `exact`, `f1`, `precision`, `recall`, `n_pred`, `n_gold`.

    Source: SQuAD, arXiv 1606.05250, and its evaluate-v1.1.py, for strings; F1 over items is the same with items.

    >>> verifier, params = Match(), MatchParams(kind="set")
    >>> context = Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold('["cat", "dog"]', params, context)
    >>> outcome = verifier.judge("a dog, a cow and a cat, a pig", gold, params, context)
    >>> outcome.accuracy, outcome.correct
    (0.4, False)
    """

    name = "match"
    Params = MatchParams

    def parse_gold(self, gold: str, params: MatchParams, context: Context) -> tuple[str, ...]:
        """Gold's words or items in their normal form.

        Raises:
            Unscorable: there are none (but `[]` is a list), or too many.
        """
        units = _units(final_answer(gold), params)
        if params.kind == "set":
            units = list(dict.fromkeys(units))
        if not units and (params.kind == "string" or not _says_empty(gold)):
            raise Unscorable(f"gold {gold[:80]!r} is empty; write an empty list or set as []")
        if len(units) > MAX_ITEMS:
            raise Unscorable(f"gold has more than {MAX_ITEMS} words or items")
        return tuple(units)

    def judge(self, response: str, gold: tuple[str, ...], params: MatchParams, context: Context) -> Outcome:
        """Compare the final answer with gold."""
        text = final_answer(response)
        units = _units(text, params)
        if not units and not gold:
            matches, precision, recall, f1 = 0, *3 * (float(_says_empty(text)),)
        else:
            matches = _matches(units[:MAX_ITEMS], gold, params.kind)
            precision = matches / len(units) if units else 0.0
            recall = matches / len(gold) if gold else 0.0
            f1 = 2 * matches / (len(units) + len(gold))
        # Words in another order have an F1 of 1, too.
        exact = float(f1 == 1 and (params.kind != "string" or tuple(units) == gold))
        value = params.value or ("exact" if params.kind == "string" else "f1")
        accuracy = exact if value == "exact" else f1
        report = {"exact": exact, "f1": f1, "precision": precision, "recall": recall}
        report |= {"n_pred": float(len(units)), "n_gold": float(len(gold))}
        reason = "" if accuracy else ("not gold's" if units else "no answer found")
        return Outcome(accuracy, tag_score(response), exact == 1, report, reason)


def _units(text: str, params: MatchParams) -> list[str]:
    def plain(part: str) -> str:
        return normal(
            part, case=params.ignore_case, punctuation=params.ignore_punctuation, articles=params.ignore_articles
        )

    if params.kind == "string":
        return plain(text).split()
    return [plain(item) for item in read_items(text)]


def _says_empty(text: str) -> bool:
    return "".join(final_answer(text).split()) in ("[]", "{}")


def _matches(units: Sequence[str], gold: Sequence[str], kind: str) -> int:
    if kind == "list":
        from rapidfuzz.distance import LCSseq  # noqa: PLC0415

        return LCSseq.similarity(units, gold)
    return (Counter(units) & Counter(gold)).total()
