"""`numeric`: is the answer's one number gold's, within a tolerance?

Reading numbers is number_text.py's job; fractions, roots and other mathematics are mathverify's.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vtriune.verifiers.answers import final_answer
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.number_text import Number, hedged, read_numbers
from vtriune.verifiers.plain_answers import settle

Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class NumericParams(BaseModel):
    """How near is near enough."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relative_tolerance: Tolerance = 0.05
    """Share of |gold| by which the answer may differ, the bound included. ChartQA's 5 %."""
    absolute_tolerance: Tolerance = 0.0
    """Difference that is accepted whatever gold is, the bound included; the only one that helps where gold is 0."""
    percent: Literal["fraction", "unit"] = "fraction"
    """`fraction`: 5% is 0.05, and not 5, on both sides. `unit`: the sign is ignored, 5% is 5."""


class Numeric:
    r"""1 if |p - g| <= max(relative_tolerance * |g|, absolute_tolerance), else 0; correct means 1.

    p is the one number of the final answer (see `final_answer`), prose around it allowed. None, or more than one
    (`5, 6`, `5-6`, `1/2`, `2+3=5`), is 0, and so is a hedge, a denial, a bound or a calculation (`5 or six`, `not 5`,
    `at least 5`, `5 ± 1`, `\sqrt{5}`, `5 tenths`), see `hedged`. Where gold is 0 only 0 itself is right, unless
    `absolute_tolerance` is given.
    What is a number: see `read_numbers`. Percent signs: see `percent`. A unit or currency counts only where both sides
    have one: `5 kg` is neither `5 m` nor `$5` `€5`, but `5 kg` is `5`; nothing is converted; symbols keep their case.
    Decimal commas are not read: `3,14` is two numbers.

    Report: `relative_error` = min(|p - g| / |g|, 1), where gold is 0 whether p is another number; 1 without a number.

    Source: ChartQA's relaxed accuracy, arXiv 2203.10244, 5.1 (after PlotQA); percent as in
    github.com/google-research/pix2struct, metrics.py. There an answer 3.15 to gold 3 is wrong by float rounding.

    >>> verifier, params, context = Numeric(), NumericParams(), Context(preset="modern", split="test")
    >>> gold = verifier.parse_gold("1,200 million", params, context)
    >>> [verifier.judge(text, gold, params, context).accuracy for text in ("1.26e9", "1.27e9", "1.2e9 or 1.3e9")]
    [1.0, 0.0, 0.0]
    """

    name = "numeric"
    Params = NumericParams

    def parse_gold(self, gold: str, params: NumericParams, context: Context) -> Number:
        """Gold's number.

        Raises:
            Unscorable: gold is not exactly one number.
        """
        text = final_answer(gold)
        numbers = read_numbers(text)
        if len(numbers) != 1 or hedged(text):
            raise Unscorable(
                f"gold {gold[:80]!r} is not exactly one number, such as 1,200.5 or 5%; "
                "mathverify judges fractions and formulas"
            )
        return numbers[0]

    def judge(self, response: str, gold: Number, params: NumericParams, context: Context) -> Outcome:
        """Compare the answer's number with gold's."""
        text = final_answer(response)
        numbers = read_numbers(text)
        error, reason = 1.0, ""
        if len(numbers) != 1:
            reason = "several numbers in the answer" if numbers else "no number in the answer"
        elif hedged(text):
            reason = "the answer is a hedge or a calculation"
        else:
            p, g = _value(numbers[0], params), _value(gold, params)
            difference = abs(p - g)
            error = float(min(difference / abs(g), Decimal(1))) if g else float(difference != 0)
            allowed = max(Decimal(str(params.relative_tolerance)) * abs(g), Decimal(str(params.absolute_tolerance)))
            if difference > allowed:
                reason = "the number is beyond the tolerance"
            elif not _same_unit(numbers[0], gold):
                reason = "the unit is another one"
        accuracy = float(not reason)
        return Outcome(accuracy, tag_score(response), bool(accuracy), {"relative_error": error}, reason)


def _value(number: Number, params: NumericParams) -> Decimal:
    return number.value / 100 if number.percent and params.percent == "fraction" else number.value


def _same_unit(answer: Number, gold: Number) -> bool:
    if answer.currency and gold.currency and answer.currency != gold.currency:
        return False
    # Two amounts of 1 are settled by their units alone: False only if both have one and they differ.
    return settle("1" + gold.behind, "1" + answer.behind) is not False or not (gold.behind and answer.behind)
