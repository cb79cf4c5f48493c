"""The tree that an answer is read into: immutable, of bounded depth, walked without recursion.

Knows no text and no equality. Heads of expressions: number, symbol, constant (pi, e, i, infinity), +, *, / , ^, neg,
±, ∓, percent, degree, call (its function in `value`), big (a sum, product, integral or limit), based (52_8).
Heads of structures: list, {}, pairs of brackets such as (], union, intersection, difference, matrix, relation (its
signs in `value`), ratio, unit, text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from posttrain.rewards.math_answers.limits import MAX_DEPTH, GaveUp

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation, leaf or structure; make it by the functions below, which bound its depth."""

    head: str
    args: tuple["Node", ...] = ()
    value: Fraction | str | None = None
    digits: int = 0  # significant digits of a decimal literal; 0 for every other number
    depth: int = 1


def node(head: str, *args: Node, value: str | None = None) -> Node:
    """Return an inner node; raises GaveUp where it would be too deep."""
    depth = 1 + max((arg.depth for arg in args), default=0)
    if depth > 2 * MAX_DEPTH:
        raise GaveUp(f"an answer nested deeper than {2 * MAX_DEPTH}")
    return Node(head, args, value, depth=depth)


def number(value: Fraction | int, digits: int = 0) -> Node:
    """Return an exact number; `digits` where it was written as a decimal."""
    return Node("number", value=Fraction(value), digits=digits)


def symbol(name: str) -> Node:
    """Return a free variable."""
    return Node("symbol", value=name)


def constant(name: str) -> Node:
    """Return pi, e, i or infinity."""
    return Node("constant", value=name)


def fold(root: Node, visit: Callable[[Node, list[T]], T]) -> T:
    """Combine a tree from its leaves up: `visit` gets a node and what it gave for the arguments."""
    results: list[T] = []
    waiting = [(root, False)]
    while waiting:
        current, ready = waiting.pop()
        if current.args and not ready:
            waiting.append((current, True))
            waiting.extend((arg, False) for arg in reversed(current.args))
            continue
        first = len(results) - len(current.args)
        parts = results[first:]
        del results[first:]
        results.append(visit(current, parts))
    return results[0]


def walk(root: Node) -> Iterator[Node]:
    """Yield every node of a tree."""
    waiting = [root]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(current.args)


def replace(root: Node, change: Callable[[Node], Node]) -> Node:
    """Return the tree with `change` made to each node, leaves first; what does not change is shared."""

    def visit(old: Node, args: list[Node]) -> Node:
        if all(new is arg for new, arg in zip(args, old.args, strict=True)):
            return change(old)
        return change(node(old.head, *args, value=old.value if isinstance(old.value, str) else None))

    return fold(root, visit)


def heads(root: Node) -> set[str]:
    """Return the heads that occur in a tree."""
    return {each.head for each in walk(root)}


def symbols(root: Node) -> set[str]:
    """Return the names of a tree's free variables; those that a sum or an integral binds are not free."""
    names = {str(each.value) for each in walk(root) if each.head == "symbol"}
    return names - {str(each.args[1].value) for each in walk(root) if each.head == "big"}


def is_integer_literal(each: Node) -> bool:
    """Return whether a node is a number written with digits alone."""
    return (
        each.head == "number" and each.digits == 0 and isinstance(each.value, Fraction) and each.value.denominator == 1
    )
