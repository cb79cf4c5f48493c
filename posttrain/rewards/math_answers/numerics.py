"""The numeric tier: two expressions evaluated at two precisions, which must agree.

Variables take fixed rational values of both signs. Equal means that the difference shrinks with the precision, from
29 digits below everything in the expressions to 45; different means that it stays. Anything else is undecided.
"""

import hashlib
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, DecimalException
from fractions import Fraction
from typing import NamedTuple

from posttrain.rewards.math_answers.decimals import ONE, ZERO, Arithmetic, Complex, ten_to
from posttrain.rewards.math_answers.exact import Undefined, bits, exact
from posttrain.rewards.math_answers.limits import Steps
from posttrain.rewards.math_answers.tree import Node, fold, symbols

DIGITS, MORE_DIGITS, MAX_DIGITS = 34, 16, 400
GUARD_DIGITS = 5
POINTS, NEEDED_POINTS, CONFIRMATIONS = 6, 3, 2


class _Unsupported(Exception):
    """A function that has no numeric value here."""


class _Gap(NamedTuple):
    """A difference, the size below which it is none, and how far apart the sizes within the expressions are."""

    digits: int
    size: Decimal
    bound: Decimal
    spread: int


class _Measured(NamedTuple):
    """A value, and the decimal exponents of the largest and smallest part on the way to it."""

    value: Complex
    largest: int
    smallest: int


def numerically_equal(first: Node, second: Node, steps: Steps) -> bool | None:
    """Return whether two expressions agree wherever both have a value; None where it is undecided."""
    names = sorted(symbols(first) | symbols(second))
    agreed = 0
    for point in range(POINTS if names else 1):
        values = {name: _coordinate(name, point) for name in names}
        same = _equal_at(first, second, values, steps, confirmed=agreed >= CONFIRMATIONS)
        if same is False:
            return False
        agreed += same is True
    return True if agreed >= (NEEDED_POINTS if names else 1) else None


def real_value(root: Node, steps: Steps) -> Fraction | None:
    """Return the value of a constant expression to about 34 digits, None where it has none that is real."""
    measured = _measure(root, {}, DIGITS, steps)
    if measured is None or measured.value[1]:
        return None
    return Fraction(measured.value[0])


def _coordinate(name: str, point: int) -> Fraction:
    """A value below 1, around it or above it; of every sign among the odd points, positive at the others."""
    digest = hashlib.sha256(f"{name}\x1f{point}".encode("utf-8", "surrogatepass")).digest()
    low, width = ((300, 3700), (50, 900), (1100, 8000))[point // 2]
    size = Fraction(low + int.from_bytes(digest[:4]) % width, 1000) + Fraction(1, 7919)
    negative = point == 1 or (point in (3, 5) and digest[4] % 2)
    return -size if negative else size


def _equal_at(
    first: Node, second: Node, values: Mapping[str, Fraction], steps: Steps, *, confirmed: bool
) -> bool | None:
    """Whether two expressions agree at one point; `confirmed`: one precision is enough to say that they do."""
    gap = _gap(first, second, values, DIGITS, steps)
    if gap is not None and gap.digits < DIGITS + gap.spread:
        gap = _gap(first, second, values, DIGITS + gap.spread, steps)
    if gap is None:
        return None
    small = gap.size <= gap.bound
    if small and confirmed:
        return True
    sharper = _gap(first, second, values, gap.digits + MORE_DIGITS, steps)
    if sharper is None:
        return None
    if small and sharper.size <= sharper.bound:
        return True
    context = Arithmetic(sharper.digits).context
    moved = context.multiply(context.subtract(gap.size, sharper.size).copy_abs(), Decimal(1000))
    stays = sharper.size > gap.bound and moved < sharper.size
    return False if stays and not small else None


def _gap(first: Node, second: Node, values: Mapping[str, Fraction], digits: int, steps: Steps) -> _Gap | None:
    """The difference of two expressions at a point, None where one has no value or too many digits are needed."""
    if digits > MAX_DIGITS:
        return None
    one = _measure(first, values, digits, steps)
    other = _measure(second, values, digits, steps)
    if one is None or other is None:
        return None
    arithmetic = Arithmetic(digits)
    size = arithmetic.absolute(arithmetic.add(one.value, arithmetic.negate(other.value)))
    largest = max(one.largest, other.largest)
    spread = largest - min(one.smallest, other.smallest)
    return _Gap(digits, size, ten_to(largest - digits + GUARD_DIGITS), spread)


def _measure(root: Node, values: Mapping[str, Fraction], digits: int, steps: Steps) -> _Measured | None:
    """The value of an expression, None where it has none at this point."""
    arithmetic = Arithmetic(digits)
    largest, smallest = 0, 0
    cost = 6 + digits // 16

    def visit(each: Node, parts: list[Complex]) -> Complex:
        nonlocal largest, smallest
        steps.spend(cost)
        value = _operate(each, parts, arithmetic, values, steps)
        if not (value[0].is_finite() and value[1].is_finite()):
            raise _Unsupported
        size = max(value[0].adjusted() if value[0] else -MAX_DIGITS, value[1].adjusted() if value[1] else -MAX_DIGITS)
        if any(value):
            largest = max(largest, size)
            if each.head not in ("+", "neg"):
                smallest = min(smallest, size)
        return value

    try:
        return _Measured(fold(root, visit), largest, smallest)
    except (DecimalException, _Unsupported, Undefined, OverflowError):
        return None


def _operate(
    each: Node, parts: list[Complex], arithmetic: Arithmetic, values: Mapping[str, Fraction], steps: Steps
) -> Complex:
    head = each.head
    if head == "number":
        assert isinstance(each.value, Fraction)
        steps.spend(bits(each.value) // 64)
        return arithmetic.rational(each.value)
    if head == "symbol":
        if str(each.value) not in values:  # of a sum that was not written out
            raise _Unsupported
        return arithmetic.rational(values[str(each.value)])
    if head == "constant":
        return _constant(str(each.value), arithmetic)
    if head == "^":
        exponent = exact(each.args[1], steps)
        if exponent is not None:
            return arithmetic.rational_power(parts[0], exponent)
        return arithmetic.power(parts[0], parts[1])
    if head == "call" and each.value == "root":
        degree = exact(each.args[1], steps)
        if degree is None or degree == 0:
            raise _Unsupported
        return arithmetic.rational_power(parts[0], 1 / degree)
    function = FUNCTIONS.get(str(each.value) if head == "call" else head)
    if function is None:
        raise _Unsupported
    return function(arithmetic, parts)


def _constant(name: str, arithmetic: Arithmetic) -> Complex:
    if name == "pi":
        return arithmetic.pi, ZERO
    if name == "e":
        return arithmetic.context.exp(ONE), ZERO
    if name == "i":
        return ZERO, ONE
    raise _Unsupported


def _add(arithmetic: Arithmetic, parts: list[Complex]) -> Complex:
    total = parts[0]
    for part in parts[1:]:
        total = arithmetic.add(total, part)
    return total


def _multiply(arithmetic: Arithmetic, parts: list[Complex]) -> Complex:
    total = parts[0]
    for part in parts[1:]:
        total = arithmetic.multiply(total, part)
    return total


def _sine(arithmetic: Arithmetic, parts: list[Complex]) -> Decimal:
    return arithmetic.sine_and_cosine(arithmetic.real(parts[0]))[0]


def _cosine(arithmetic: Arithmetic, parts: list[Complex]) -> Decimal:
    return arithmetic.sine_and_cosine(arithmetic.real(parts[0]))[1]


def _tangent(arithmetic: Arithmetic, parts: list[Complex]) -> Decimal:
    sine, cosine = arithmetic.sine_and_cosine(arithmetic.real(parts[0]))
    return arithmetic.context.divide(sine, cosine)


def _arcsin(arithmetic: Arithmetic, x: Decimal) -> Decimal:
    if x.copy_abs() == 1:
        return arithmetic.context.divide(arithmetic.pi, Decimal(2) if x > 0 else Decimal(-2))
    rest = arithmetic.context.sqrt(arithmetic.context.subtract(ONE, arithmetic.context.multiply(x, x)))
    return arithmetic.arctan(arithmetic.context.divide(x, rest))


def _arccos(arithmetic: Arithmetic, x: Decimal) -> Decimal:
    half = arithmetic.context.divide(arithmetic.pi, Decimal(2))
    return arithmetic.context.subtract(half, _arcsin(arithmetic, x))


Function = Callable[[Arithmetic, list[Complex]], Complex]


def _of_real(function: Callable[[Arithmetic, Decimal], Decimal], *, inverted: bool = False) -> Function:
    """A real function as one of pairs; `inverted`: of 1/x, as arcsec is arccos of 1/x."""

    def apply(arithmetic: Arithmetic, parts: list[Complex]) -> Complex:
        x = arithmetic.real(parts[0])
        return function(arithmetic, arithmetic.context.divide(ONE, x) if inverted else x), ZERO

    return apply


def _real(function: Callable[[Arithmetic, list[Complex]], Decimal], *, inverted: bool = False) -> Function:
    """A function with a real value; `inverted`: 1 over it, as sec is 1 over cos."""

    def apply(arithmetic: Arithmetic, parts: list[Complex]) -> Complex:
        value = function(arithmetic, parts)
        return (arithmetic.context.divide(ONE, value) if inverted else value), ZERO

    return apply


def _rounded(rounding: str) -> Function:
    """A real number rounded to a whole one; not decided where it is whole within the precision."""

    def apply(arithmetic: Arithmetic, parts: list[Complex]) -> Complex:
        x = arithmetic.real(parts[0])
        whole = x.to_integral_value(rounding)
        rest = arithmetic.context.subtract(x, whole).copy_abs()
        edge = ten_to(-(DIGITS // 2))
        if abs(x.adjusted()) > DIGITS // 2 or rest < edge or arithmetic.context.subtract(ONE, rest) < edge:
            raise _Unsupported
        return whole, ZERO

    return apply


def _hyperbolic(sign_above: int, sign_below: int) -> Function:
    """(e^x ± e^-x) over 2, or over the other of the two."""

    def apply(arithmetic: Arithmetic, parts: list[Complex]) -> Complex:
        up, down = arithmetic.exp(parts[0]), arithmetic.exp(arithmetic.negate(parts[0]))
        above = arithmetic.add(up, down if sign_above > 0 else arithmetic.negate(down))
        below = (Decimal(2), ZERO) if not sign_below else arithmetic.add(up, down)
        return arithmetic.divide(above, below)

    return apply


def _cis(arithmetic: Arithmetic, parts: list[Complex]) -> Complex:
    sine, cosine = arithmetic.sine_and_cosine(arithmetic.real(parts[0]))
    return cosine, sine


FUNCTIONS: dict[str, Function] = {
    "+": _add,
    "*": _multiply,
    "/": lambda arithmetic, parts: arithmetic.divide(parts[0], parts[1]),
    "neg": lambda arithmetic, parts: arithmetic.negate(parts[0]),
    "percent": lambda arithmetic, parts: arithmetic.divide(parts[0], (Decimal(100), ZERO)),
    "degree": lambda arithmetic, parts: parts[0],
    "unit": lambda arithmetic, parts: parts[0],
    "sqrt": lambda arithmetic, parts: arithmetic.sqrt(parts[0]),
    "cbrt": lambda arithmetic, parts: arithmetic.rational_power(parts[0], Fraction(1, 3)),
    "ln": lambda arithmetic, parts: arithmetic.ln(parts[0]),
    "exp": lambda arithmetic, parts: arithmetic.exp(parts[0]),
    "abs": lambda arithmetic, parts: (arithmetic.absolute(parts[0]), ZERO),
    "Re": lambda arithmetic, parts: (parts[0][0], ZERO),
    "Im": lambda arithmetic, parts: (parts[0][1], ZERO),
    "sgn": lambda arithmetic, parts: (Decimal(arithmetic.real(parts[0]).compare(ZERO)), ZERO),
    "floor": _rounded(ROUND_FLOOR),
    "ceil": _rounded(ROUND_CEILING),
    "sin": _real(_sine),
    "cos": _real(_cosine),
    "tan": _real(_tangent),
    "csc": _real(_sine, inverted=True),
    "sec": _real(_cosine, inverted=True),
    "cot": _real(_tangent, inverted=True),
    "arcsin": _of_real(_arcsin),
    "arccos": _of_real(_arccos),
    "arctan": _of_real(Arithmetic.arctan),
    "arccsc": _of_real(_arcsin, inverted=True),
    "arcsec": _of_real(_arccos, inverted=True),
    "arccot": _of_real(Arithmetic.arctan, inverted=True),
    "sinh": _hyperbolic(-1, 0),
    "cosh": _hyperbolic(1, 0),
    "tanh": _hyperbolic(-1, 1),
    "cis": _cis,
}
