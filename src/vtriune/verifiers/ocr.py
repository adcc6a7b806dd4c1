"""`ocr`: how near is the answer's text to what stands in the picture? Edit distance in three measures.

Unicode's normal form is item_text.py's job; single words or items are match.py's.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.answers import final_answer
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.item_text import nfc

TAU = 0.5
"""Of ANLS, DocVQA's."""

MAX_GOLD = 20_000
"""Characters of all references together: against them 400,000 of an answer take 0.5 s. A page has about 5,000."""


class OcrParams(BaseModel):
    """Which measure is the value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Literal["similarity", "anls", "cer"] = "similarity"
    """R_acc, see `Ocr`."""
    ignore_case: bool = True
    """As DocVQA and OCRBench do."""


class Ocr:
    """R_acc from the edit distance d (Levenshtein, characters) of answer p and reference g; correct means d = 0.

    `similarity`: 1 - NL with NL = d / max(|p|, |g|).
    `anls`: the same if NL < 0.5, else 0.
    `cer`: 1 - min(CER, 1) with CER = d / |g|.

    Texts are in Unicode's form C, each run of white space one blank, by default in lower case (case folded). The answer
    is the final one (see `final_answer`). Gold is one text, or a JSON array of texts of which the best one counts, for
    each measure.

    Report: `similarity`, `anls`, `cer` (not capped at 1).

    Source: ANLS: Biten et al., arXiv 1905.13648, eq. 1, and DocVQA, arXiv 2007.00398 (NL = 0.5 is worth 0; some
    scorers take it as 0.5). Normalised edit distance: OCRBench v2, arXiv 2501.00321.

    >>> verifier, params, context = Ocr(), OcrParams(), Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold('["Exit 12", "12"]', params, context)
    >>> verifier.judge("exit l2", gold, params, context).report["cer"]  # 1 of 7, and 1 + 5 of 2
    0.14285714285714285
    """

    name = "ocr"
    Params = OcrParams

    def parse_gold(self, gold: str, params: OcrParams, context: Context) -> tuple[str, ...]:
        """The references in their normal form.

        Raises:
            Unscorable: there is none, one is empty, or they are too long.
        """
        references = tuple(dict.fromkeys(_plain(text, params) for text in _references(final_answer(gold))))
        if not references or not all(references):
            raise Unscorable("gold must be a text, or a JSON array of texts, none of them empty")
        if sum(map(len, references)) > MAX_GOLD:
            raise Unscorable(f"gold has more than {MAX_GOLD} characters; ask for a part of the page")
        return references

    def judge(self, response: str, gold: tuple[str, ...], params: OcrParams, context: Context) -> Outcome:
        """Compare the final answer with each reference."""
        from rapidfuzz.distance import Levenshtein  # noqa: PLC0415

        text = _plain(final_answer(response), params)
        distances = [(Levenshtein.distance(text, reference), len(reference)) for reference in gold]
        nl = min(d / max(len(text), length) for d, length in distances)
        cer = min(d / length for d, length in distances)
        report = {"similarity": 1 - nl, "anls": 1 - nl if nl < TAU else 0.0, "cer": cer}
        accuracy = 1 - min(cer, 1.0) if params.value == "cer" else report[params.value]
        reason = "" if accuracy else ("the text is too far from gold" if text else "no answer found")
        return Outcome(accuracy, tag_score(response), nl == 0, report, reason)


def _references(gold: str) -> list[str]:
    if gold.startswith("["):
        try:
            texts = json.loads(gold)
        except (ValueError, RecursionError):
            return [gold]
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return texts
    return [gold]


def _plain(text: str, params: OcrParams) -> str:
    text = " ".join(nfc(text).split())
    return text.casefold() if params.ignore_case else text
