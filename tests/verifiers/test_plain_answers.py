"""What is equal without algebra, what is not, and what is left to math-verify."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.verifiers.plain_answers import settle, sprayed

numbers = st.decimals(-1000, 1000, places=3).map(str)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("7", "007"),
        ("2.5", "+2.50"),
        ("1000 kg", "1,000kg"),
        ("3 m", "3 Meters"),
        ("5 km/h", "5 km per hour"),
        ("5 m^2", "5 square meters"),
        (r"9.8\text{ m/s}^{2}", "9.8 m/s^2"),
        ("2 boxes", "2 box"),
        ("2 houses", "2 house"),
        ("2 cities", "2 city"),
        ("2 potatoes", "2 potato"),
        ("2 classes", "2 class"),
        ("5 inches", "5 in"),
        ("300", "3e2"),
        (r"1.6\times10^{-19}", r"1.6000001 \cdot 10^{-19}"),
        ("2024-01-01", "2024/1/1"),
        (r"\text{Paris}", "paris."),
        ("5 km", "5000 m"),
        ("5", "5 kg"),
        ("50%", r"\frac12"),
        ("3/4", "0.75"),
        ("x = 5 m", "5 m"),
        ("1:2", "1 : 2"),
        ("A", "(A)"),
        ("A", r"\text{A.}"),
        ("$5$", "5"),
    ],
)
def test_equal_without_algebra(gold: str, answer: str) -> None:
    assert settle(gold, answer) is True
    assert settle(answer, gold) is True


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5 mW", "5 MW"),
        ("5 cm", "5 cm^2"),
        ("90 degrees", "90 radians"),
        ("5 km", "500 m"),
        ("50", r"50\%"),
        ("1:2", "2:4"),
        ("E", "2.718281828459045"),
        ("x", "X"),
        (r"2\Delta", r"2\delta"),
        (r"1.6\times10^{-19}", r"1.60001\times10^{-19}"),
        ("0.0001", r"1\times10^{-5}"),
        ("1/2/2024", "2/1/2024"),
        (r"\Delta", r"\delta"),
        ("meat", "team"),
        ("3 plans", "3 planes"),
        ("5 cubs", "5 cubes"),
        ("2 cars", "2 cares"),
        ("5 tons", "5 tones"),
    ],
)
def test_different_without_algebra(gold: str, answer: str) -> None:
    assert settle(gold, answer) is False
    assert settle(answer, gold) is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("2xy", "2yx"),
        ("2 x y", "2 y x"),
        ("2ab", "2ba"),
        ("2pi", r"2\pi"),
        ("2 sin x", "2 cos x"),
        ("5 apples", "5 red apples"),
        (r"\sqrt{49}", "7"),
        ("0.3333", "1/3"),
        ("0.333333", "0.3333333"),
        (r"90^\circ", "90 degrees"),
    ],
)
def test_what_may_be_algebra_is_left_to_math_verify(gold: str, answer: str) -> None:
    assert settle(gold, answer) is None
    assert settle(answer, gold) is None


@pytest.mark.parametrize(
    "unit",
    [
        *("tenths", "millionths", "crore", "gross", "factorial", "squared", "halves", "pairs", "wrong", "point five"),
        *(r"\text{ but not eight}", r"\text{ maybe eight}", r"\text{ apples and 8 pears}", r"\text{ as far as seen}"),
        *(r"\text{ (not eight)}", r"\textit{ maybe eight}", r"\text{ k}", r"\mathrm{e}", r"\text{ times } x"),
    ],
)
def test_words_that_change_deny_or_add_a_number_are_no_unit(unit: str) -> None:
    assert settle("7", f"7 {unit}") is False


@pytest.mark.parametrize("bound", ["at least", "more than", "not"])
def test_a_bound_or_a_denial_before_the_number_makes_it_another(bound: str) -> None:
    assert settle("7", rf"\text{{{bound} }} 7") is False


@pytest.mark.parametrize(
    "unit", ["km/h", "m^2", "red cars", "times", r"\text{ cups of tea}", r"\text{ m/s}^2", "people"]
)
def test_a_known_unit_or_two_plain_words_on_one_side_are_not_looked_at(unit: str) -> None:
    assert settle("7", f"7 {unit}") is True
    assert settle(f"7 {unit}", "7") is True
    assert settle("7", f"8 {unit}") is False


@given(numbers, numbers, st.sampled_from(["", " kg", r"\text{ m/s}", " red cubes"]))
def test_numbers_of_one_unit_are_never_equal_unless_they_are(a: str, b: str, unit: str) -> None:
    assert settle(a + unit, a + unit) is True
    if settle(a + unit, b + unit):
        assert Decimal(a) == Decimal(b)


@given(st.text(st.sampled_from("0123456789.-/^{}\\ emkgstx,~") | st.characters(exclude_categories=["Cs"])), st.text())
def test_no_text_breaks_the_comparison(a: str, b: str) -> None:
    assert settle(a, a) is True
    assert settle(a, b) in (True, False, None)


@pytest.mark.parametrize(
    ("gold", "answer", "choice"),
    [
        ("5", "A=5", False),
        ("12", "N = 12", False),
        ("-5.5", "A=-5.5", False),
        ("A", "A", False),
        ("x=2", "x=2", False),
        ("A or B", "A or B", False),
        ("D", "A=D", True),
        ("D", "D=5", True),
        ("4", "3=4", True),
        ("4", "4=A", True),
        ("5", "A=4=5", True),
        ("5", "A=4 or A=5", True),
        ("x=2", "x=1=2", True),
        ("D", "A or D", True),
    ],
)
def test_a_choice_is_a_spray_and_an_assignment_is_none(gold: str, answer: str, choice: bool) -> None:
    assert sprayed(gold, answer) is choice
