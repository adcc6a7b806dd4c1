"""The numeric verifier: what is one number, which tolerance holds, and that hedges are worth nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.number_text import read_numbers
from vtriune.verifiers.numeric import Numeric, NumericParams

VERIFIER, CONTEXT = Numeric(), Context(preset="modern", split="train")


def judge(response: str, gold: str, **parameters: Any) -> Outcome:
    params = NumericParams(**parameters)
    return VERIFIER.judge(response, VERIFIER.parse_gold(gold, params, CONTEXT), params, CONTEXT)


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        # ChartQA (arXiv 2203.10244, 5.1): within 5 % of gold
        ("105", "100", 1.0),
        ("95", "100", 1.0),
        ("105.01", "100", 0.0),
        ("94.99", "100", 0.0),
        ("3.15", "3", 1.0),
        ("-105", "-100", 1.0),
        ("100", "-100", 0.0),
    ],
)
def test_five_percent_of_gold_are_allowed_and_no_more(answer: str, gold: str, expected: float) -> None:
    assert judge(answer, gold).accuracy == expected


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\boxed{5}", "5"),
        ("The value is 5.", "5"),
        ("1,234,567", "1234567"),
        (r"1{,}234", "1234"),
        (r"1.5 \times 10^{3}", "1500"),
        ("1.5e3", "1500"),
        ("10^5", "100000"),
        ("$1.2 million", "1200000"),
        ("0.05", "5%"),
        (r"5\%", "5 percent"),
        ("−5", "-5"),
        ("-$5", "-5"),
        ("5 kilograms", "5 kg"),
        ("5", "5 kg"),
        ("**5**", "5"),
        ("m^2: 5", "5"),
    ],
)
def test_a_number_is_read_however_it_is_written(answer: str, gold: str) -> None:
    assert judge(answer, gold, relative_tolerance=0).correct


@pytest.mark.parametrize(
    "answer",
    [
        *("", "five", "5 or 6", "5 or six", "5, 6", "5-6", "5 5", "not 5", "> 5", r"5 \pm 1", "5 ± 1"),
        *(r"\sqrt{5}", "5/1", r"\frac{5}{1}", "5^2", "2+3=5", "5,0", "H5", "5.0.0", "<think>5"),
        *(
            "at least 5",
            "more than 5",
            "up to 5",
            "between 5 and six",
            "5 to six",
            "it could be 5, maybe six",
            "minus 5",
        ),
        *("5..6", "5²", "5 / two", "5-six", "5 thousandths", "5 and a half", "5 k", "5+", "5 squared", "5 times two"),
    ],
)
def test_no_number_several_hedges_and_calculations_are_0(answer: str) -> None:
    outcome = judge(answer, "5", relative_tolerance=10)
    assert (outcome.accuracy, outcome.correct) == (0.0, False)
    assert outcome.reason


@pytest.mark.parametrize(
    "answer",
    [
        *("5 apples", "about the picture: 5", "$5", "5 m²", "5 seconds", "5 K", "5 times", "five (5)", "5...", "5!"),
        *(
            "The difference between A and B is 5",
            "It adds up to 5",
            "5 more than last year",
            "The two lines differ by 5",
        ),
    ],
)
def test_prose_around_one_number_is_no_hedge(answer: str) -> None:
    assert judge(answer, "5").correct


@pytest.mark.parametrize(
    ("answer", "absolute", "expected"), [("0", 0, 1.0), ("0.0", 0, 1.0), ("0.001", 0, 0.0), ("0.001", 0.001, 1.0)]
)
def test_where_gold_is_0_only_the_absolute_tolerance_helps(answer: str, absolute: float, expected: float) -> None:
    assert judge(answer, "0", absolute_tolerance=absolute).accuracy == expected


def test_a_percent_sign_is_a_hundredth_or_ignored_as_the_parameter_says() -> None:
    assert [judge("50%", gold).accuracy for gold in ("50", "0.5")] == [0.0, 1.0]
    assert [judge("50%", gold, percent="unit").accuracy for gold in ("50", "0.5")] == [1.0, 0.0]


@pytest.mark.parametrize(("answer", "gold"), [("5 m", "5 kg"), ("5 MW", "5 mW"), ("€5", "$5")])
def test_another_unit_is_another_amount(answer: str, gold: str) -> None:
    assert judge(answer, gold).reason == "the unit is another one"


@pytest.mark.parametrize("gold", ["", "red", "3 or 4", "1/2", r"\sqrt{2}"])
def test_gold_that_is_not_one_number_is_unscorable(gold: str) -> None:
    with pytest.raises(Unscorable, match="not exactly one number"):
        judge("1", gold)


@given(st.integers(-(10**15), 10**15), st.floats(0, 1), st.floats(0, 1))
def test_a_wider_tolerance_never_takes_a_point_away(gold: int, a: float, b: float) -> None:
    narrow, wide = sorted((a, b))
    answer = str(gold + gold // 7)
    assert (
        judge(answer, str(gold), relative_tolerance=narrow).accuracy
        <= judge(answer, str(gold), relative_tolerance=wide).accuracy
    )
    assert judge(str(gold), str(gold), relative_tolerance=0).accuracy == 1


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators_change_no_number(number: int) -> None:
    assert [one.value for one in read_numbers(f"{number:,}")] == [number]


@given(st.text(st.sampled_from("0123456789 .,-+eE^$%{}\\x×*kgor<>"), max_size=40))
def test_every_answer_gets_a_verdict_with_the_same_report(answer: str) -> None:
    outcome = judge(answer, "12.5")
    assert list(outcome.report) == ["relative_error"]
    assert 0 <= outcome.report["relative_error"] <= 1
    assert outcome.accuracy in (0, 1)
    assert bool(outcome.reason) == (outcome.accuracy == 0)
