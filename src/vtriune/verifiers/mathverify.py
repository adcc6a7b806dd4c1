r"""`mathverify`: is the answer in the box mathematically the gold answer? One class, three presets.

Finding the box is answers.py's job, what needs no algebra plain_answers.py's, the layout score format.py's; limits of
time and memory are the judge's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.answers import boxed, final_text, tagged
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import released_tag_score, tag_score
from vtriune.verifiers.plain_answers import settle, sprayed

MAX_ANSWER = 4000
"""Characters of a box (`paper`, `modern`). A longer one is no answer: the paper's golds end at 20."""


class MathVerifyParams(BaseModel):
    """There are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class MathGold:
    """A gold answer: what stands in its box (or all of it), and what math-verify makes of it."""

    text: str
    parsed: list[Any]


class MathVerify:
    r"""R_acc of eq. 3: 1 if math-verify finds the boxed answer equivalent to gold, else 0; correct means 1.

    Presets:
        `paper`: the last `\boxed{}` of the final text (after the last `</think>`) against gold, case kept; gold that
            math-verify cannot read is unscorable. R_fmt is eq. 4.
        `official_code`: the released code, reward for reward: the whole response and gold are lower-cased, math-verify
            finds the answer itself (boxes first, several of them make a set, text without a box can count). R_fmt
            wants line breaks around the tags. One difference: unreadable gold, there a silent 0, is unscorable.
        `modern`: as `paper`, but what needs no algebra is settled first, see `plain_answers.settle`: equal text is
            equal, numbers, words, dates, units and Greek letters are compared as such (`meat` is not `team`, `Yes` is
            `yes`, `5 kg` is not `5 m`, `2022` is not `2024-01-01`). Gold that is only text can be judged, `A or B or C`
            and `A=B=C` are no answers unless gold is of that kind, and an `<answer>` tag without a box counts if its
            text is the gold's. Still open, since algebra or conversion would be needed: `5000 m` is not `5 km`; a unit
            on one side only is ignored (`5` is `5 kg`), as is a percent sign on gold's side alone where gold has no
            box; unfinished arithmetic is an answer (`2000+22` is `2022`); a tiny number that is no decimal
            (`\frac{1}{10^{19}}`) is compared with an absolute tolerance; ratios are quotients (`1:2` is `2:4`).

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
        parsed = _parse_gold(gold.lower() if context.preset == "official_code" else gold)
        if not parsed and context.preset == "modern":
            return MathGold(text, _parse_answer(rf"\boxed{{{text}}}"))
        if not parsed:
            raise Unscorable(f"math-verify cannot read gold {gold[:80]!r}; put the answer into \\boxed{{}}")
        return MathGold(text, parsed)

    def judge(self, response: str, gold: MathGold, params: MathVerifyParams, context: Context) -> Outcome:
        """Compare the final answer with gold. Runs as long as sympy needs: the judge limits it."""
        if context.preset == "official_code":
            equal = _equivalent(gold.parsed, _parse_answer(response.lower()))
            return _outcome(equal, released_tag_score(response), "" if equal else "not equivalent to gold")
        layout = tag_score(response)
        final = final_text(response)
        answer = boxed(final)
        if answer is None:
            tag = tagged(final) if context.preset == "modern" else None
            equal = tag is not None and settle(gold.text, tag) is True
            return _outcome(equal, layout, "" if equal else r"no \boxed{} answer found")
        if len(answer) > MAX_ANSWER:
            return _outcome(False, layout, f"the boxed answer is longer than {MAX_ANSWER} characters")
        if context.preset == "modern":
            if sprayed(gold.text, answer):
                return _outcome(False, layout, "several answers in one box")
            settled = settle(gold.text, answer)
            if settled is not None:
                return _outcome(settled, layout, "" if settled else "not equivalent to gold")
        equal = _equivalent(gold.parsed, _parse_answer(rf"\boxed{{{answer}}}"))
        return _outcome(equal, layout, "" if equal else "not equivalent to gold")


def _outcome(equal: bool, layout: float, reason: str) -> Outcome:
    return Outcome(accuracy=float(equal), format=layout, correct=equal, reason=reason)


@cache
def _math_verify() -> Any:
    """math-verify, imported when first needed: sympy takes most of a second, the registry must not."""
    import math_verify  # noqa: PLC0415

    # It warns once that its time limits are off. They must be: they use signals and count wall-clock time.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


@cache
def _answer_config() -> list[Any]:
    """How the released code has math-verify find an answer: boxes first, never bare numbers."""
    from latex2sympy2_extended import NormalizationConfig  # noqa: PLC0415

    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all"
    )
    return [
        _math_verify().LatexExtractionConfig(
            normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
        )
    ]


def _parse_gold(text: str) -> list[Any]:
    parsed: list[Any] = _math_verify().parse(text, extraction_mode="first_match", parsing_timeout=None)
    return parsed


def _parse_answer(text: str) -> list[Any]:
    parsed: list[Any] = _math_verify().parse(
        text, extraction_config=_answer_config(), extraction_mode="first_match", parsing_timeout=None
    )
    return parsed


def _equivalent(gold: list[Any], answer: list[Any]) -> bool:
    return bool(_math_verify().verify(gold, answer, timeout_seconds=None))
