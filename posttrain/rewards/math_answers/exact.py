"""The exact tier: rational values of expressions, every size estimated before a number is built.

Pure `Fraction` arithmetic; what is not rational by these rules is None, and for the later tiers.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from posttrain.rewards.math_answers.limits import MAX_LOG10, GaveUp, Steps
from posttrain.rewards.math_answers.tree import Node, fold, number, replace

MAX_BITS = int(MAX_LOG10 * math.log2(10))
MAX_ROOT = 64
NO_VALUES: Mapping[str, Fraction] = {}

Value = Fraction | None


class Undefined(Exception):
    """The expression has no value, as 1/0 has none: it equals nothing."""


def exact(root: Node, steps: Steps, values: Mapping[str, Fraction] = NO_VALUES) -> Value:
    """Return the rational value of an expression, or None; raises Undefined, and GaveUp where it would be too large.

    `values` are those of the variables.
    """
    if root.head == "number":
        return _fraction(root)

    def visit(each: Node, parts: list[Value]) -> Value:
        if each.head == "number":
            return _fraction(each)
        if each.head == "symbol":
            return values.get(str(each.value))
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not parts:
            return None
        steps.spend(_cost(known))
        operation = OPERATIONS.get(each.head if each.head != "call" else str(each.value))
        return None if operation is None else operation(known)

    return fold(root, visit)


def folded(root: Node, steps: Steps) -> Node:
    """Return the expression with its rational parts as numbers; raises as `exact` does."""

    def change(each: Node) -> Node:
        if not each.args or any(arg.head != "number" for arg in each.args):
            return each
        value = exact(each, steps)
        return each if value is None else number(value)

    return replace(root, change)


def bits(value: Fraction) -> int:
    """Return the size of a fraction: the bits of its larger part."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def power(base: Fraction, exponent: Fraction) -> Value:
    """Return a rational power, None where it is irrational or not real."""
    if exponent.denominator != 1:
        root = perfect_root(base, exponent.denominator)
        return None if root is None else power(root, Fraction(exponent.numerator))
    if base == 0 and exponent <= 0:
        raise Undefined
    if abs(base) not in (0, 1) and abs(exponent) * bits(base) > MAX_BITS:
        raise GaveUp(f"a power of more than {MAX_LOG10} digits")
    if abs(base) in (0, 1):
        return base if exponent % 2 else abs(base)
    return base ** int(exponent)


def perfect_root(base: Fraction, degree: int) -> Value:
    """Return the rational root of that degree, of a negative number where the degree is odd; None if there is none."""
    if degree > MAX_ROOT or degree < 1 or (base < 0 and degree % 2 == 0):
        return None
    above, below = _integer_root(abs(base.numerator), degree), _integer_root(base.denominator, degree)
    if above is None or below is None:
        return None
    return Fraction(above if base >= 0 else -above, below)


def _fraction(leaf: Node) -> Fraction:
    assert isinstance(leaf.value, Fraction)
    return leaf.value


def _cost(parts: list[Fraction]) -> int:
    """Steps of an operation, by measurement: the square of the size, small numbers for nothing."""
    return 8 + (sum(map(bits, parts)) // 1024) ** 2


def _integer_root(number: int, degree: int) -> int | None:
    if number < 2:
        return number
    if degree == 2:
        root = math.isqrt(number)
        return root if root * root == number else None
    root = 1 << -(-number.bit_length() // degree)  # Newton's method from above
    while True:
        following = ((degree - 1) * root + number // root ** (degree - 1)) // degree
        if following >= root:
            return root if root**degree == number else None
        root = following


def _bounded(parts: list[Fraction]) -> None:
    if sum(map(bits, parts)) > 2 * MAX_BITS:
        raise GaveUp(f"a number of more than {MAX_LOG10} digits")


def _sum(parts: list[Fraction]) -> Fraction:
    total = Fraction(0)
    for part in parts:
        _bounded([total, part])
        total += part
    return total


def _product(parts: list[Fraction]) -> Fraction:
    total = Fraction(1)
    for part in parts:
        _bounded([total, part])
        total *= part
    return total


def _quotient(parts: list[Fraction]) -> Fraction:
    if parts[1] == 0:
        raise Undefined
    _bounded(parts)
    return parts[0] / parts[1]


def _natural(value: Fraction) -> int | None:
    return int(value) if value.denominator == 1 and value >= 0 else None


def _factorial(parts: list[Fraction], step: int = 1) -> Value:
    n = _natural(parts[0])
    if n is None:
        return None
    if n * n.bit_length() > MAX_BITS:
        raise GaveUp("a factorial that is too large")
    return Fraction(math.factorial(n) if step == 1 else math.prod(range(n, 0, -step)))


def _binomial(parts: list[Fraction]) -> Value:
    n, k = map(_natural, parts)
    if n is None or k is None:
        return None
    smaller = min(k, n - k)
    if min(smaller * n.bit_length(), n) > MAX_BITS:
        raise GaveUp("a binomial coefficient that is too large")
    return Fraction(math.comb(n, k))


def _root(parts: list[Fraction]) -> Value:
    degree = _natural(parts[1])
    return None if degree is None else perfect_root(parts[0], degree)


def _integers(function: Callable[..., int]) -> Callable[[list[Fraction]], Value]:
    def apply(parts: list[Fraction]) -> Value:
        return Fraction(function(*map(int, parts))) if all(part.denominator == 1 for part in parts) else None

    return apply


OPERATIONS: dict[str, Callable[[list[Fraction]], Value]] = {
    "+": _sum,
    "*": _product,
    "/": _quotient,
    "neg": lambda parts: -parts[0],
    "^": lambda parts: power(parts[0], parts[1]),
    "percent": lambda parts: parts[0] / 100,
    "degree": lambda parts: parts[0],
    "unit": lambda parts: parts[0],
    "sqrt": lambda parts: perfect_root(parts[0], 2),
    "cbrt": lambda parts: perfect_root(parts[0], 3),
    "root": _root,
    "abs": lambda parts: abs(parts[0]),
    "floor": lambda parts: Fraction(math.floor(parts[0])),
    "ceil": lambda parts: Fraction(math.ceil(parts[0])),
    "sgn": lambda parts: Fraction((parts[0] > 0) - (parts[0] < 0)),
    "min": min,
    "max": max,
    "gcd": _integers(math.gcd),
    "lcm": _integers(math.lcm),
    "factorial": _factorial,
    "double factorial": lambda parts: _factorial(parts, 2),
    "binom": _binomial,
}
