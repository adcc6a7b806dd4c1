"""Numbers and quantities: what is read as one, and which of them are the same after conversion."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtriune.verifiers.quantities import _UNITS, Quantity, read_number, read_quantity, same_quantity

LENGTHS = ("um", "mm", "cm", "m", "km")


def quantity(text: str) -> Quantity:
    found = read_quantity(text)
    assert found is not None, text
    return found


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("5 km", "5000 m"),
        ("36 km/h", "10 m/s"),
        ("1.5 hours", "90 minutes"),
        (r"\frac{1}{2}\text{ km}", r"500\text{ m}"),
        (r"1\text{ m}^2", "10,000 cm^2"),
        ("1 g/cm^3", "1000 kg/m^3"),
        ("2 L", "2000 mL"),
        (r"10\ \mu m", "0.01 mm"),
        ("1 kWh", "3.6e6 J"),
        ("25 °C", "298.15 K"),
        (r"0^\circ\text{C}", "273.15 K"),
        (r"25^{\circ}C", r"77^\circ F"),
        ("4.2 J/K", "4.2 J/celsius"),
        ("180 degrees", "3.14159265358979 rad"),
    ],
)
def test_equal_quantities_in_different_units(a: str, b: str) -> None:
    assert same_quantity(quantity(a), quantity(b)) is True
    assert same_quantity(quantity(b), quantity(a)) is True


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("5 km", "500 m"),
        ("5 kg", "5 m"),
        ("5 kg", "5 kg m"),
        ("5 mW", "5 MW"),
        ("1 mi", "1.6 km"),
        ("25 °C", "25 K"),
        ("10 rad/s", "10 Hz"),
        ("5 apples", "5 oranges"),
        ("5 apples", "5 kg"),
    ],
)
def test_different_quantities(a: str, b: str) -> None:
    assert same_quantity(quantity(a), quantity(b)) is False
    assert same_quantity(quantity(b), quantity(a)) is False


@given(st.integers(-(10**6), 10**6), st.sampled_from(LENGTHS), st.sampled_from(LENGTHS))
@settings(deadline=None)
def test_a_length_equals_itself_in_any_other_unit_and_no_other_length(number: int, here: str, there: str) -> None:
    powers = dict(zip(LENGTHS, (-6, -3, -2, 0, 3), strict=True))
    converted = f"{float(number * Fraction(10) ** (powers[here] - powers[there])):.12f}"
    assert same_quantity(quantity(f"{number} {here}"), quantity(f"{converted} {there}")) is True
    assert same_quantity(quantity(f"{number} {here}"), quantity(f"{number + 10} {here}")) is not True


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"50\%", Fraction(1, 2)),
        ("50 percent", Fraction(1, 2)),
        ("50 %", Fraction(1, 2)),
        ("5 million", Fraction(5_000_000)),
        (r"\frac12", Fraction(1, 2)),
        ("-3/4", Fraction(-3, 4)),
        ("1{,}200", Fraction(1200)),
        (".5", Fraction(1, 2)),
        ("3e-2", Fraction(3, 100)),
    ],
)
def test_a_number_is_read_exactly(text: str, value: Fraction) -> None:
    number = read_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize("text", ["", "x", "2x", "1/0", r"2\pi", "5 kg", "1 2", "--1", "1.2.3", "9" * 4000])
def test_anything_else_is_no_number(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    "unit", ["km^0", "km^00", "m^9^9^9", "m**99999999", "m^99999999", "__import__", "m;m", "m" * 41]
)
def test_what_looks_unlike_a_unit_never_reaches_pint(unit: str) -> None:
    script = (
        "import sys; from vtriune.verifiers.plain_answers import settle;"
        f"settle('5 km', '5 ' + {unit!r}); settle('5 ' + {unit!r}, '5 km'); sys.exit('pint' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@given(st.text(st.sampled_from("0123456789.,-/^{}\\% $°emkgst~") | st.characters(exclude_categories=["Cs"])))
def test_no_text_breaks_the_reading(text: str) -> None:
    for found in (read_number(text), read_quantity(text), read_quantity("5 " + text)):
        assert found is None or found


@given(
    st.sampled_from(["5 km", "0 celsius", "-5 kg^9 m^9", "1e9999 m", r"\frac{1}{2}\text{ m}"]),
    st.sampled_from(["5 ", "0 ", "-300 ", "1e-9999 ", r"1e9999\text{ "]),
    st.lists(st.sampled_from([*_UNITS, *"^/*- 029{}", "^-9", "^9", "^0", "per ", "square ", "degrees C"]), max_size=9),
)
@settings(deadline=None)
def test_no_pair_of_quantities_breaks_the_comparison(gold: str, number: str, unit: list[str]) -> None:
    answer = read_quantity(number + "".join(unit) + "}" * number.count("{"))
    if answer:
        assert same_quantity(quantity(gold), answer) in (True, False, None)
