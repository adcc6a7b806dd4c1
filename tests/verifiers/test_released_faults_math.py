r"""False verdicts of the released reward server on math, one row each: mended in `modern`, kept in `official_code`."""

from __future__ import annotations

import pytest

from vtriune.types import Preset
from vtriune.verifiers.base import Context, Unscorable
from vtriune.verifiers.mathverify import MathVerify, MathVerifyParams

CALLED_EQUAL = [
    pytest.param("meat", "team", id="products of letters: meat, team"),
    pytest.param("on", "no", id="products of letters: on, no"),
    pytest.param("2.718281828459045", "E", id="the letter E, lower-cased, is Euler's number"),
    pytest.param(r"\delta", r"\Delta", id="lower-casing: delta, Delta"),
    pytest.param("5 m", "5 M", id="lower-casing: 5 m, 5 M"),
    pytest.param("5 kg", "5 m", id="units dropped: 5 kg, 5 m"),
    pytest.param(r"5\text{ oranges}", r"5\text{ apples}", id="units dropped: oranges, apples"),
    pytest.param(r"1.6 \times 10^{-19}", r"6.626 \times 10^{-34}", id="an absolute tolerance: tiny numbers"),
    pytest.param("A=B=C=D", "D", id="the last side of a chain"),
    pytest.param("2022", "2024-01-01", id="a date as a difference"),
    pytest.param("50", r"50\%", id="the percent sign dropped"),
]
CALLED_DIFFERENT = [
    pytest.param(r"\frac12", r"\frac12", id="frac12 against itself"),
    pytest.param(r"\sqrt2", r"\sqrt2", id="sqrt2 against itself"),
    pytest.param(r"2\frac12", r"2\frac12", id="2frac12 against itself"),
    pytest.param("A.", "A", id="a full stop"),
    pytest.param("5000 m", "5 km", id="units are not converted"),
]


def verdict(answer: str, gold: str, preset: Preset) -> bool:
    verifier, params, context = MathVerify(), MathVerifyParams(), Context(preset=preset, split="train")
    response = f"<think>\nso\n</think>\n<answer>\n\\boxed{{{answer}}}\n</answer>"
    return verifier.judge(response, verifier.parse_gold(gold, params, context), params, context).correct


@pytest.mark.parametrize("boxed", [True, False], ids=["gold boxed", "gold bare"])
@pytest.mark.parametrize(("a", "b"), CALLED_EQUAL)
def test_what_was_called_equal_is_different_in_modern_in_both_directions(a: str, b: str, boxed: bool) -> None:
    for answer, gold in ((a, b), (b, a)):
        assert not verdict(answer, rf"\boxed{{{gold}}}" if boxed else gold, "modern")


@pytest.mark.parametrize("boxed", [True, False], ids=["gold boxed", "gold bare"])
@pytest.mark.parametrize(("a", "b"), CALLED_DIFFERENT)
def test_what_was_called_different_is_equal_in_modern_in_both_directions(a: str, b: str, boxed: bool) -> None:
    for answer, gold in ((a, b), (b, a)):
        assert verdict(answer, rf"\boxed{{{gold}}}" if boxed else gold, "modern")


@pytest.mark.parametrize(("answer", "gold"), CALLED_EQUAL)
def test_what_was_called_equal_still_is_in_official_code(answer: str, gold: str) -> None:
    # The percent sign is dropped from gold without a box.
    assert verdict(answer, gold if "%" in gold else rf"\boxed{{{gold}}}", "official_code")


@pytest.mark.parametrize(("answer", "gold"), CALLED_DIFFERENT)
def test_what_was_called_different_still_is_in_official_code(answer: str, gold: str) -> None:
    assert not verdict(answer, rf"\boxed{{{gold}}}", "official_code")


def test_a_word_as_bare_gold_can_be_judged_in_modern_and_is_no_silent_0_in_official_code() -> None:
    assert verdict("Paris", "Paris", "modern")
    with pytest.raises(Unscorable, match="cannot read gold 'Paris'"):
        verdict("Paris", "Paris", "official_code")


def test_letters_keep_their_case_in_modern_where_the_released_code_lower_cases_both() -> None:
    assert verdict(r"2\Delta", r"\boxed{2\delta}", "official_code")
    for a, b in ((r"2\Delta", r"2\delta"), ("X", "x"), ("x + 1", "X + 1"), ("E", "e")):
        assert not verdict(a, rf"\boxed{{{b}}}", "modern")
        assert not verdict(b, rf"\boxed{{{a}}}", "modern")
