r"""`mathverify`: is the answer in the box mathematically the gold answer? One class, three presets, one memory.

Finding the box is answers.py's job, what needs no algebra plain_answers.py's, math-verify algebra.py's, the layout
score format.py's; limits of time and memory are the judge's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from vtriune.types import Preset
from vtriune.verifiers import algebra
from vtriune.verifiers.answers import boxed, final_text, tagged
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import released_tag_score, tag_score
from vtriune.verifiers.plain_answers import settle, sprayed

MAX_ANSWER = 4000
"""Characters of a box (`paper`, `modern`). A longer one is no answer: the paper's golds end at 20."""

_MAX_REMEMBERED = 1000
"""Characters of an answer whose verdict is remembered: 8,192 of them are 8-32 MB at most."""

_HARMLESS = re.compile(r"-?(?:\d{1,15}(?:\.\d{1,15})?|\\frac\{\d{1,9}\}\{\d{1,9}\})(?:\\?%)?|[A-Za-z]{1,12}")
"""Gold that math-verify reads quickly, and that `modern` mostly settles without it."""

_SENTENCE = re.compile(r"answer|\$|\\\(|\\\[", re.IGNORECASE)
"""Gold that math-verify finds the answer in."""


class MathVerifyParams(BaseModel):
    """There are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class MathGold:
    """A gold answer: what stands in its box (or all of it), and what math-verify makes of it."""

    text: str
    source: str
    """What math-verify reads."""
    preset: Preset
    parsed: list[Any] | None = field(compare=False)
    """It follows from the other fields; None if it is read when it is needed."""


class MathVerify:
    r"""R_acc of eq. 3: 1 if math-verify finds the boxed answer equivalent to gold, else 0; correct means 1.

    Presets:
        `paper`: the last `\boxed{}` of the final text (after the last `</think>`) against gold, case kept; gold that
            math-verify cannot read is unscorable. R_fmt is eq. 4.
        `official_code`: the released code, reward for reward: the whole response and gold are lower-cased, math-verify
            finds the answer itself (boxes first, several of them make a set, text without a box can count). R_fmt
            wants line breaks around the tags. One difference: unreadable gold, there a silent 0, is unscorable.
        `modern`: as `paper`, but what needs no algebra is settled first, see `plain_answers.settle`: equal text is
            equal, numbers, words, letters, dates, ratios, percentages and units are compared as such, units converted
            (`meat` is not `team`, `Yes` is `yes`, `5 kg` is not `5 m`, `5000 m` is `5 km`, `50` is not `50\%`). Gold
            that is only text can be judged, `A or B or C` and `A=B=C` are no answers unless gold is of that kind, an
            `<answer>` tag without a box counts if its text is the gold's, `\frac12` in an answer is read as in gold,
            tiny numbers are compared relative to gold. A unit that only one side has is not looked at (`5` is `5 kg`):
            questions often name it. A percent sign, `million` and `tenths` are no such units, since the number makes no
            sense without them, nor are words that deny it or add another (`7 \text{ but not 8}`). Still open:
            `January 1, 2024` is not `2024-01-01`; products of one-letter variables are taken for words (`xy` is not
            `yx`); units that are neither known nor plain words (`5 \mathrm{Tm}`).

    Verdicts are remembered by gold and answer, since the G answers of a group repeat; in `official_code` by the part
    of the response that math-verify looks at. What ran out of time or memory leaves nothing behind.

    Source: arXiv 2505.18129 eq. 3-4; github.com/MiniMax-AI/One-RL-to-See-Them-All, reward_server/verify.py;
    equivalence is decided by github.com/huggingface/Math-Verify, its own time limits off.

    >>> verifier, params = MathVerify(), MathVerifyParams()
    >>> context = Context(preset="paper", split="train")
    >>> gold = verifier.parse_gold(r"\boxed{\frac{1}{2}}", params, context)
    >>> outcome = verifier.judge(r"<think>half</think><answer>\boxed{0.5}</answer>", gold, params, context)
    >>> outcome.accuracy, outcome.format, outcome.correct
    (1.0, 1.0, True)
    >>> verifier.judge("0.5", gold, params, context).reason
    'no \\boxed{} answer found'
    """

    name = "mathverify"
    Params = MathVerifyParams

    def parse_gold(self, gold: str, params: MathVerifyParams, context: Context) -> MathGold:
        """Read gold, boxed or not.

        Raises:
            Unscorable: gold is empty, or math-verify cannot read it and the preset knows no other comparison.
        """
        content = boxed(gold)
        text = (gold if content is None else content).strip()
        if not text:
            raise Unscorable("gold is empty")
        if context.preset == "official_code":
            source = gold.lower()
        elif context.preset == "modern" and not _SENTENCE.search(gold):
            source = rf"\boxed{{{text}}}"  # of bare text math-verify reads the first number: 10 of 10\sqrt{3}
        else:
            source = gold
        if context.preset == "modern" and _HARMLESS.fullmatch(text):
            return MathGold(text, source, context.preset, parsed=None)
        parsed = _parse_gold(source, text, context.preset)
        if not parsed and context.preset != "modern":
            raise Unscorable(f"math-verify cannot read gold {gold[:80]!r}; put the answer into \\boxed{{}}")
        return MathGold(text, source, context.preset, parsed)

    def judge(self, response: str, gold: MathGold, params: MathVerifyParams, context: Context) -> Outcome:
        """Compare the final answer with gold. Runs as long as sympy needs: the judge limits it."""
        if context.preset == "official_code":
            return _outcome(_fault(gold, algebra.scope(response.lower())), released_tag_score(response))
        layout = tag_score(response)
        final = final_text(response)
        answer = boxed(final)
        if answer is None:
            tag = tagged(final) if context.preset == "modern" else None
            equal = tag is not None and len(tag) <= MAX_ANSWER and settle(gold.text, tag) is True
            return _outcome("" if equal else r"no \boxed{} answer found", layout)
        if len(answer) > MAX_ANSWER:
            return _outcome(f"the boxed answer is longer than {MAX_ANSWER} characters", layout)
        return _outcome(_fault(gold, answer), layout)


def _outcome(fault: str, layout: float) -> Outcome:
    return Outcome(accuracy=float(not fault), format=layout, correct=not fault, reason=fault)


def _fault(gold: MathGold, answer: str) -> str:
    """Why the answer is not gold's equal; empty if it is. `answer`: the box's content, or the released code's scope."""
    return (_fault_remembered if len(answer) <= _MAX_REMEMBERED else _find_fault)(gold, answer)


def _find_fault(gold: MathGold, answer: str) -> str:
    modern = gold.preset == "modern"
    if modern:
        if sprayed(gold.text, answer):
            return "several answers in one box"
        settled = settle(gold.text, answer)
        if settled is not None:
            return "" if settled else "not equivalent to gold"
    expected = _parse_harmless(gold.source, gold.text) if gold.parsed is None else gold.parsed
    source = answer if gold.preset == "official_code" else rf"\boxed{{{answer}}}"
    parsed = algebra.parse_answer(source, lenient=modern)
    equal = algebra.equivalent(expected, parsed) and not (modern and algebra.only_tiny(expected, parsed))
    return "" if equal else "not equivalent to gold"


_fault_remembered = lru_cache(maxsize=8192)(_find_fault)


def _parse_gold(source: str, text: str, preset: Preset) -> list[Any]:
    parsed = algebra.parse_gold(source)
    return parsed if parsed or preset != "modern" else algebra.parse_answer(rf"\boxed{{{text}}}", lenient=True)


@lru_cache(maxsize=1024)
def _parse_harmless(source: str, text: str) -> list[Any]:
    return _parse_gold(source, text, "modern")
