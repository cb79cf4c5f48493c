"""Exact values and the bounds before them."""

from fractions import Fraction

import pytest

from posttrain.rewards.numbers import OutOfBounds, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", Fraction(7)),
        ("-3.50", Fraction(-7, 2)),
        (".5", Fraction(1, 2)),
        ("5.", Fraction(5)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("2.5e-3", Fraction(1, 400)),
        ("3\\times10^{2}", Fraction(300)),
        ("10^-2", Fraction(1, 100)),
        ("-6/4", Fraction(-3, 2)),
        ("\\frac{-0.5}{2}", Fraction(-1, 4)),
        ("2\\frac{1}{3}", Fraction(7, 3)),
        ("-2 1/3", Fraction(-7, 3)),
        ("123456789012345678901234567890", Fraction(123456789012345678901234567890)),
    ],
)
def test_values_are_exact(text: str, value: Fraction) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text", ["", "-", ".", "1/0", "\\frac{1}{0}", "1 2", "1,23", "12,345,6", "1.2.3", "x", "1e", "٤٢", "--1"]
)
def test_other_text_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize("text", ["9" * 4001, "1e5000", "1e-5000", "1e" + "9" * 50, "1/" + "9" * 4001])
def test_bounds_come_before_the_number(text: str) -> None:
    with pytest.raises(OutOfBounds):
        parse_number(text)
