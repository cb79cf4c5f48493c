"""Whether two expressions have the same value: the tiers in order, each only where those before it could not tell.

Exact rationals, residues, exact values at whole numbers, decimals at two precisions, and last a child with sympy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from posttrain.rewards.math_answers.exact import Undefined, exact, folded
from posttrain.rewards.math_answers.limits import GaveUp, Steps
from posttrain.rewards.math_answers.modular import identical, opaque
from posttrain.rewards.math_answers.numerics import numerically_equal, real_value
from posttrain.rewards.math_answers.sums import unrolled
from posttrain.rewards.math_answers.symbolic import ask
from posttrain.rewards.math_answers.tree import Node, node, number, symbols
from posttrain.rewards.math_answers.units import factor

RELATIVE_TOLERANCE = Fraction(1, 10**6)
SIGNIFICANT_DIGITS = 6
WHOLE_POINTS = (2, 3, 4, 5, 6, 7, 10, 15, 24, 101, 301, 99_990)  # both parities; large ones for floors


@dataclass(slots=True)
class Comparison:
    """What one grade compares by: its steps, whether decimal golds take what rounds to them, and what decided last."""

    round_to_gold: bool = False
    steps: Steps = field(default_factory=Steps)
    decided_by: str = "structure"


def equal_values(gold: Node, answer: Node, by: Comparison) -> bool:
    """Return whether `answer` has the value of `gold`; raises GaveUp where that is beyond the bounds.

    Not symmetric: a decimal may approximate an exact gold, and a percentage may stand for its figure.
    """
    gold, gold_unit, gold_percent = _bare(gold)
    answer, answer_unit, answer_percent = _bare(answer)
    scale = factor(gold_unit, answer_unit)
    if scale is None:
        return False
    if scale != 1:
        answer = node("*", number(scale), answer)
    if gold_percent == answer_percent:
        return _same(gold, answer, by)
    if gold_percent:
        return _same(gold, answer, by) or _same(_hundredth(gold), answer, by)
    return _same(gold, answer, by) or _same(gold, _hundredth(answer), by)


def _bare(value: Node) -> tuple[Node, str | None, bool]:
    """The value without unit, degree and percent sign, its unit, and whether it is a percentage."""
    unit: str | None = None
    percent = False
    while value.head in ("unit", "degree", "percent") or (value.head == "neg" and value.args[0].head == "percent"):
        if value.head == "unit":
            unit = str(value.value)
            percent = percent or unit == "percent"
        elif value.head == "degree":
            unit = "degree"
        elif value.head == "percent":
            percent = True
        else:
            value, percent = node("neg", value.args[0].args[0]), True
            continue
        value = value.args[0]
    return value, unit, percent


def _hundredth(value: Node) -> Node:
    return node("/", value, number(100))


def _same(gold: Node, answer: Node, by: Comparison) -> bool:
    try:
        return _tiers(gold, answer, by)
    except Undefined:
        return False


def _tiers(gold: Node, answer: Node, by: Comparison) -> bool:
    gold, answer = unrolled(gold, by.steps), unrolled(answer, by.steps)
    too_large: GaveUp | None = None
    try:
        expected, given = exact(gold, by.steps), exact(answer, by.steps)
    except GaveUp as error:
        too_large, expected, given = error, None, None
    by.decided_by = "exact numbers"
    if expected is not None and given is not None:
        return expected == given or _near(gold, expected, answer, by)
    by.decided_by = "identity"
    if identical(gold, answer, by.steps):
        return True
    if too_large is None:
        gold, answer = folded(gold, by.steps), folded(answer, by.steps)
    kinds = opaque(gold, by.steps) | opaque(answer, by.steps)
    if too_large and kinds:
        raise too_large
    if given is not None and _significant_digits(answer) >= SIGNIFICANT_DIGITS and not symbols(gold):
        by.decided_by = "an approximation"
        return _near(gold, real_value(gold, by.steps), answer, by)
    if not kinds or "unknown" in kinds:
        return False
    for by.decided_by, tier in _later_tiers(kinds, constant=not (symbols(gold) | symbols(answer))):
        if (equal := tier(gold, answer, by.steps)) is not None:
            return equal
    raise GaveUp(f"an identity that {by.decided_by} could not decide")


def _near(gold: Node, expected: Fraction | None, answer: Node, by: Comparison) -> bool:
    """Whether a decimal answer approximates the gold as closely as the rules allow; whole golds are exact."""
    if expected is None or expected.denominator == 1:
        return False
    given, digits = exact(answer, by.steps), _significant_digits(answer)
    if given is None:
        return False
    if places := _decimal_places(gold):
        return by.round_to_gold and abs(given - expected) <= Fraction(1, 2 * 10**places)
    return digits >= SIGNIFICANT_DIGITS and abs(given - expected) <= RELATIVE_TOLERANCE * abs(expected)


def _significant_digits(answer: Node) -> int:
    """The digits of a decimal with or without its sign; 0 for anything else."""
    return (answer.args[0] if answer.head == "neg" else answer).digits


def _decimal_places(gold: Node) -> int:
    """The digits behind the point of a decimal; 0 for anything else."""
    leaf = gold.args[0] if gold.head == "neg" else gold
    if not leaf.digits or not isinstance(leaf.value, Fraction):
        return 0
    places = 0
    while (leaf.value * 10**places).denominator != 1 and places < 400:
        places += 1
    return places


def _at_whole_numbers(gold: Node, answer: Node, steps: Steps) -> bool | None:
    """Whether expressions with factorials and the like agree wherever both are rational for whole variables."""
    names = sorted(symbols(gold) | symbols(answer))
    agreed = 0
    for place in range(len(WHOLE_POINTS)):
        values = {name: Fraction(WHOLE_POINTS[(place + 5 * at) % len(WHOLE_POINTS)]) for at, name in enumerate(names)}
        try:
            expected, given = (exact(unrolled(side, steps, values), steps, values) for side in (gold, answer))
        except Undefined:
            continue
        except GaveUp:
            if steps.left < 0:
                raise
            continue  # a factorial of a large number
        if expected is None or given is None:
            continue  # irrational, or a sum of too many terms
        if expected != given:
            return False
        agreed += 1
    return True if agreed > len(WHOLE_POINTS) // 2 else None


def _symbolically(gold: Node, answer: Node, steps: Steps) -> bool | None:
    return ask(gold, answer)


Tier = Callable[[Node, Node, Steps], bool | None]
NUMERIC: tuple[str, Tier] = ("decimals at two precisions", numerically_equal)
WHOLE: tuple[str, Tier] = ("whole values of the variables", _at_whole_numbers)
SYMBOLIC: tuple[str, Tier] = ("sympy", _symbolically)


def _later_tiers(kinds: set[str], *, constant: bool) -> tuple[tuple[str, Tier], ...]:
    """The tiers for expressions with such functions; sympy gets only what no other can evaluate."""
    if kinds == {"analytic"}:
        return (NUMERIC,)
    if "special" in kinds:
        return (SYMBOLIC,)
    return (NUMERIC, SYMBOLIC) if constant else (WHOLE, SYMBOLIC)
