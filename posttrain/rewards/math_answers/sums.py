"""Finite sums and products written out term by term, so that exact arithmetic can add them up.

Pure; what has too many terms, or bounds that are no whole numbers, stays as it is.
"""

from collections.abc import Mapping
from fractions import Fraction

from posttrain.rewards.math_answers.exact import NO_VALUES, exact
from posttrain.rewards.math_answers.limits import Steps
from posttrain.rewards.math_answers.tree import Node, heads, node, number, replace

MAX_TERMS, MAX_LEVELS = 200, 3
OPERATIONS = {"sum": ("+", 0), "prod": ("*", 1)}


def unrolled(root: Node, steps: Steps, values: Mapping[str, Fraction] = NO_VALUES) -> Node:
    """Return the expression with its finite sums and products written out; `values` are those of the variables."""
    for _ in range(MAX_LEVELS if "big" in heads(root) else 0):  # the bounds of an inner one may count an outer one
        before, root = root, replace(root, lambda each: _written_out(each, steps, values))
        if root is before:
            break
    return root


def _written_out(big: Node, steps: Steps, values: Mapping[str, Fraction]) -> Node:
    if big.head != "big" or big.value not in OPERATIONS:
        return big
    body, variable, *bounds = big.args
    low, high = (exact(bound, steps, values) for bound in bounds)
    if low is None or high is None or low.denominator != 1 or high.denominator != 1 or high - low >= MAX_TERMS:
        return big
    head, nothing = OPERATIONS[str(big.value)]
    terms = [_term(body, str(variable.value), count, steps) for count in range(int(low), int(high) + 1)]
    if not terms:
        return number(nothing)
    return terms[0] if len(terms) == 1 else node(head, *terms)


def _term(body: Node, name: str, count: int, steps: Steps) -> Node:
    def put(each: Node) -> Node:
        steps.spend(4)
        return number(count) if each.head == "symbol" and each.value == name else each

    return replace(body, put)
