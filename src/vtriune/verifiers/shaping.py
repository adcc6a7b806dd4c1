"""`shaping`: how an answer is written, whatever it says: not too long, not repeating itself. A part for `composite`.

Length in tokens comes with the item (`Context.response_tokens`); no tokenizer lives here.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]{{1,20}}")


class ShapingParams(BaseModel):
    """What is shaped, and where it begins to cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["soft_overlong", "repetition"]
    """`soft_overlong`: length, eq. 13 of DAPO. `repetition`: the share of n-grams that repeat earlier ones."""
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """L_max, for `soft_overlong`: an answer longer than that is worth 0."""
    buffer_tokens: Annotated[int, Field(gt=0)] | None = None
    """L_cache, for `soft_overlong`: the worth falls over so many tokens before `max_tokens`."""
    ngram: Annotated[int, Field(ge=1, le=10)] = 4
    """Words of an n-gram, for `repetition`."""

    @model_validator(mode="after")
    def _lengths_where_they_are_used(self) -> Self:
        lengths = (self.max_tokens, self.buffer_tokens)
        if self.kind == "repetition":
            if lengths != (None, None):
                raise ValueError("max_tokens and buffer_tokens are for kind soft_overlong")
        elif None in lengths or (self.buffer_tokens or 0) > (self.max_tokens or 0):
            raise ValueError("soft_overlong needs max_tokens, and buffer_tokens of at most that")
        return self


class Shaping:
    """R_acc falls with length or with repetition, gold is ignored and may be empty; correct means 1 (no fault at all).

    Kinds:
        `soft_overlong`: 1 + R_length of eq. 13: with |y| the length in tokens, R_length is 0 up to
            L_max - L_cache, (L_max - L_cache - |y|) / L_cache from there to L_max, and -1 beyond. The paper adds
            R_length (-1..0); here 1 is added, since R_acc is 0..1: a constant, which group-relative advantages do not
            see. As a part of weight w of a `composite`, its slope counts w / sum of weights.
        `repetition`: 1 - (repeated n-grams / all n-grams), which is distinct n-grams / all n-grams; 1 for an answer of
            fewer than n words. Words are what white space separates, in lower case; Chinese, Japanese and Korean
            characters are one each, and whatever is longer than 20 characters is split, lest text without spaces
            escape.

    The report: `tokens` and `penalty` (R_length), or `repetition` (the share). R_fmt is eq. 4.

    Source: DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 13; the share is seq-rep-n of Welleck et al. 2020, arXiv
    1908.04319, with its n of 4, as a linear penalty as in github.com/huggingface/open-r1.

    >>> verifier, params = Shaping(), ShapingParams(kind="soft_overlong", max_tokens=2048, buffer_tokens=512)
    >>> lengths = (1536, 1792, 2048, 2049)
    >>> contexts = [Context(preset="modern", split="train", response_tokens=n) for n in lengths]
    >>> [verifier.judge("", None, params, context).accuracy for context in contexts]
    [1.0, 0.5, 0.0, 0.0]
    >>> verifier.judge("no no no no no no", None, ShapingParams(kind="repetition", ngram=2), contexts[0]).accuracy
    0.2
    """

    name = "shaping"
    Params = ShapingParams

    def parse_gold(self, gold: str, params: ShapingParams, context: Context) -> None:
        """There is nothing to read."""

    def judge(self, response: str, gold: None, params: ShapingParams, context: Context) -> Outcome:
        """Measure length or repetition.

        Raises:
            Unscorable: the length in tokens is needed, and nobody has said it.
        """
        if params.max_tokens is None or params.buffer_tokens is None:
            accuracy = _distinct(response, params.ngram)
            report, reason = {"repetition": 1 - accuracy}, ""
        else:
            tokens = context.response_tokens
            if tokens is None:
                raise Unscorable("soft_overlong needs the answer's length; send response_tokens along with it")
            penalty = _soft_overlong(tokens, params.max_tokens, params.buffer_tokens)
            accuracy, report = 1 + penalty, {"tokens": float(tokens), "penalty": penalty}
            reason = f"{tokens} tokens, of at most {params.max_tokens}" if not accuracy else ""
        return Outcome(accuracy, tag_score(response), correct=accuracy == 1, report=report, reason=reason)


def _soft_overlong(tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """R_length of DAPO's eq. 13, -1..0."""
    return -min(max(tokens - (max_tokens - buffer_tokens), 0) / buffer_tokens, 1.0)


def _distinct(text: str, n: int) -> float:
    """Distinct n-grams / n-grams; 1 if there are none."""
    words = _WORD.findall(text.lower())
    total = len(words) - n + 1
    if total < 1:
        return 1.0
    distinct = len(set(zip(*(words[k:] for k in range(n)), strict=False)))
    return distinct / total
