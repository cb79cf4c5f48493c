"""The tiers by themselves: exact values and their bounds, residues, decimals against known digits."""

import decimal
import math
from fractions import Fraction

import pytest

from posttrain.rewards.math_answers import exact_value, grade_answer
from posttrain.rewards.math_answers.decimals import Arithmetic, pi
from posttrain.rewards.math_answers.exact import Undefined, exact, perfect_root, power
from posttrain.rewards.math_answers.limits import MAX_STEPS, GaveUp, Steps
from posttrain.rewards.math_answers.modular import identical, opaque
from posttrain.rewards.math_answers.numerics import numerically_equal
from posttrain.rewards.math_answers.parser import parse
from posttrain.rewards.math_answers.tokens import tokenize
from posttrain.rewards.math_answers.tree import Node

PI_50 = "3.1415926535897932384626433832795028841971693993751"


def tree(text: str) -> Node:
    return parse(tokenize(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", Fraction(7)),
        ("-3.50", Fraction(-7, 2)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("2.5e-3", Fraction(1, 400)),
        ("3\\times10^{2}", Fraction(300)),
        ("10^-2", Fraction(1, 100)),
        ("-2 1/3", Fraction(-7, 3)),
        ("2^{10}-24", Fraction(1000)),
        ("\\sqrt{\\frac{4}{9}}", Fraction(2, 3)),
        ("\\binom{5}{2}+3!", Fraction(16)),
        ("7!!", Fraction(105)),
        ("$18.00", Fraction(18)),
        ("0.1\\overline{09}", Fraction(12, 110)),
    ],
)
def test_rational_values_are_exact(text: str, value: Fraction) -> None:
    assert exact_value(text) == value


@pytest.mark.parametrize("text", ["", "-", ".", "1/0", "0^0", "1 2", "1.2.3", "x", "٤٢", "\\sqrt2", "1e99999", "50\\%"])
def test_other_text_has_no_exact_value(text: str) -> None:
    assert exact_value(text) is None


@pytest.mark.parametrize(
    "text",
    ["10^{10001}", "10^{-10001}", "9^{9^{9^9}}", "5000!", "\\binom{100000}{50000}", "7^{9999} 7^{9999} 7^{9999}"],
)
def test_sizes_are_estimated_before_numbers_are_built(text: str) -> None:
    with pytest.raises(GaveUp):
        exact(tree(text), Steps())


def test_powers_and_roots() -> None:
    assert power(Fraction(8), Fraction(-2, 3)) == Fraction(1, 4)
    assert power(Fraction(2), Fraction(1, 2)) is None
    assert power(Fraction(-1), Fraction(10**50)) == 1
    assert perfect_root(Fraction(-27, 8), 3) == Fraction(-3, 2)
    assert perfect_root(Fraction(10**300), 3) == 10**100
    assert perfect_root(Fraction(10**300 + 1), 3) is None
    with pytest.raises(Undefined):
        power(Fraction(0), Fraction(-1))


def test_steps_run_out() -> None:
    steps = Steps(3)
    steps.spend(3)
    with pytest.raises(GaveUp, match="too many steps"):
        steps.spend(1)
    with pytest.raises(GaveUp, match="too many steps"):
        exact(tree("+".join(["1"] * 9)), Steps(1))
    assert Steps().left == MAX_STEPS


def test_residues_know_identities_and_what_they_do_not_know() -> None:
    assert identical(tree("(x+y)^3"), tree("x^3+3x^2y+3xy^2+y^3"), Steps())
    assert not identical(tree("(x+y)^3"), tree("x^3+y^3"), Steps())
    assert identical(tree("(1+i)^2"), tree("2i"), Steps())
    assert opaque(tree("x^2+\\pi"), Steps()) == set()
    assert opaque(tree("\\sqrt x+n!"), Steps()) == {"analytic", "discrete"}
    assert opaque(tree("f(x)"), Steps()) == {"unknown"}
    with pytest.raises(Undefined):
        identical(tree("\\frac{1}{x-x}"), tree("1"), Steps())


def test_decimals_against_known_digits() -> None:
    assert str(pi(60)).startswith(PI_50)
    arithmetic = Arithmetic(40)
    for x in (-7.5, -0.3, 0.001, 0.785, 2.0, 100.25):
        sine, cosine = arithmetic.sine_and_cosine(decimal.Decimal(x))
        assert float(sine) == pytest.approx(math.sin(x), abs=1e-15)
        assert float(cosine) == pytest.approx(math.cos(x), abs=1e-15)
        assert float(arithmetic.arctan(decimal.Decimal(x))) == pytest.approx(math.atan(x), abs=1e-15)
    minus_one = (decimal.Decimal(-1), decimal.Decimal(0))
    assert arithmetic.sqrt(minus_one) == (0, 1)
    assert arithmetic.rational_power(minus_one, Fraction(1, 3))[0] == -1


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}", True),
        ("\\sqrt{2}", "\\sqrt{2}+10^{-300}", False),
        ("\\sqrt{2}", "\\sqrt{2}+e^{-200}", False),
        ("4\\arctan\\frac15-\\arctan\\frac1{239}", "\\frac{\\pi}{4}", True),
        ("e^{\\pi\\sqrt{163}}", "262537412640768744", False),
        ("\\sin^2 x+\\cos^2 x", "1", True),
        ("|x|", "x", False),
        ("\\ln(xy)", "\\ln x+\\ln y", False),
        ("\\arcsin(2+x^2)", "\\arcsin(2+x^2)+1", None),
        ("\\sinh x", "\\frac{e^x-e^{-x}}{2}", True),
        ("\\sin(10^{40})", "0", None),
    ],
)
def test_numbers_at_two_precisions(first: str, second: str, same: bool | None) -> None:
    assert numerically_equal(tree(first), tree(second), Steps()) is same


def test_the_decimal_context_of_the_caller_does_not_matter() -> None:
    pairs = [("\\sqrt8", "2\\sqrt2"), ("\\arctan 1", "\\frac\\pi4"), ("\\sin 2x", "2\\sin x\\cos x"), ("e^{1000}", "2")]
    expected = [grade_answer(*pair) for pair in pairs]
    with decimal.localcontext() as context:
        context.prec, context.Emax, context.Emin = 1, 2, -2
        context.traps[decimal.Inexact] = context.traps[decimal.Rounded] = True
        assert [grade_answer(*pair) for pair in pairs] == expected
