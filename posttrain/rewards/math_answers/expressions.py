"""Reduce the flat items between two brackets to one expression: integrals, sums, products and functions.

The passes behind those of `operands`. A function takes the bracket behind it, or the factors up to the next operator.
"""

from collections.abc import Sequence
from fractions import Fraction

from posttrain.rewards.math_answers.limits import Unreadable
from posttrain.rewards.math_answers.operands import (
    TEN,
    Applied,
    Big,
    Function,
    Group,
    Item,
    is_operator,
    letters,
    named,
    operand,
    prefixes,
    scripts,
)
from posttrain.rewards.math_answers.tree import Node, constant, is_integer_literal, node, number, replace, symbol
from posttrain.rewards.math_answers.vocabulary import INVERSE, LETTER_FUNCTIONS, TRIGONOMETRIC

SIGNS = ("+", "-", "±", "∓")
UNKNOWN_FUNCTIONS = frozenset({"f", "g", "F", "G"})  # not h, which is a height


def expression(items: Sequence[Item]) -> Node:
    """Return the expression that the items make; raises Unreadable where they make none."""
    if len(items) == 1:
        return operand(items[0])
    return _sum(_integrals(scripts(prefixes(letters(items)))))


def _integrals(items: list[Item]) -> list[Item]:
    """Integrals closed by their d x, since their bodies may be sums."""
    for at in range(len(items) - 1, -1, -1):
        item = items[at]
        if not (isinstance(item, Big) and item.name == "int"):
            continue
        ends = [end for end in range(at + 1, len(items) - 1) if _is_symbol(items[end], "d")]
        if not ends or item.lower is None or item.upper is None:
            raise Unreadable("an integral without its bounds or its d x")
        body = _sum(items[at + 1 : ends[0]]) if ends[0] > at + 1 else number(1)
        whole = node("big", body, operand(items[ends[0] + 1]), item.lower, item.upper, value="int")
        items = [*items[:at], whole, *items[ends[0] + 2 :]]
    return items


def _is_symbol(item: Item, name: str) -> bool:
    return isinstance(item, Node) and item.head == "symbol" and item.value == name


def _sum(items: Sequence[Item]) -> Node:
    terms: list[Node] = []
    signs: list[str] = []
    current: list[Item] = []
    for item in items:
        if is_operator(item, *SIGNS) and not (current and is_operator(current[-1])):
            if current:
                terms.append(_signed(_product(current), signs))
                signs, current = [], []
            signs.append(named(item))
        else:
            current.append(item)
    if not current:
        raise Unreadable("a sum that ends early")
    terms.append(_signed(_product(current), signs))
    return terms[0] if len(terms) == 1 else node("+", *terms)


def _signed(term: Node, signs: Sequence[str]) -> Node:
    if signs.count("-") % 2:
        term = node("neg", term)
    for sign in ("±", "∓"):
        if sign in signs:
            term = node(sign, term)
    return term


def _product(items: Sequence[Item]) -> Node:
    factors: list[Item] = []  # from the right
    for item in reversed(items):
        if isinstance(item, Function):
            factors.append(Applied(_applied(item, factors)))
        elif isinstance(item, Big):
            factors = [_big(item, factors)]
        elif isinstance(item, Node) and item.head == "symbol" and _is_bracket(factors):
            name = LETTER_FUNCTIONS.get(str(item.value)) or str(item.value)
            called = name != item.value or name.rstrip("'") in UNKNOWN_FUNCTIONS
            factors.append(node("call", *_arguments(factors.pop()), value=name) if called else item)
        else:
            factors.append(item)
    factors.reverse()
    return _quotients(factors)


def _is_bracket(factors: Sequence[Item]) -> bool:
    return bool(factors) and isinstance(factors[-1], Group) and factors[-1].brackets == "()"


def _arguments(item: Item) -> tuple[Node, ...]:
    inner = operand(item)
    return inner.args if inner.head == "()" else (inner,)


def _applied(function: Function, factors: list[Item]) -> Node:
    """A function at its argument: the bracket behind it, or all factors up to an operator or another function."""
    if not factors or is_operator(factors[-1]):
        raise Unreadable(f"{function.name} without its argument")
    first = factors.pop()
    arguments: tuple[Node, ...]
    if isinstance(first, Group | Applied):
        arguments = _arguments(first)
    else:
        taken: list[Item] = [first]
        while factors and not is_operator(factors[-1]) and not isinstance(factors[-1], Applied):
            taken.append(factors.pop())
        arguments = (_quotients(taken),)
    return _call(function, arguments)


def _call(function: Function, arguments: tuple[Node, ...]) -> Node:
    name, power = function.name, function.power
    if name in INVERSE and power is not None and _is_minus_one(power):
        name, power = INVERSE[name], None
    if name in TRIGONOMETRIC:
        arguments = tuple(in_radians(argument) for argument in arguments)
    called = _logarithm(name, function.base, arguments) or node("call", *arguments, value=name)
    for exponent in (power, function.outer):
        if exponent is not None:
            called = node("^", called, exponent)
    return called


def _logarithm(name: str, base: Node | None, arguments: tuple[Node, ...]) -> Node | None:
    """A logarithm by natural ones; `log` without a base has one that is not known."""
    if name not in ("log", "lg"):
        if base is not None:
            raise Unreadable(f"{name} with a subscript")
        return None
    if len(arguments) != 1:
        raise Unreadable("a logarithm of several numbers")
    base = TEN if name == "lg" else base
    natural = node("call", arguments[0], value="ln")
    return node("*", natural, symbol("log")) if base is None else node("/", natural, node("call", base, value="ln"))


def in_radians(argument: Node) -> Node:
    """Return an angle with its degrees turned into radians."""

    def turn(each: Node) -> Node:
        return node("/", node("*", each.args[0], constant("pi")), number(180)) if each.head == "degree" else each

    return replace(argument, turn)


def _is_minus_one(power: Node) -> bool:
    return power.head == "neg" and is_integer_literal(power.args[0]) and power.args[0].value == 1


def _big(big: Big, factors: list[Item]) -> Node:
    lower = big.lower
    if lower is None or lower.head != "relation" or len(lower.args) != 2 or (big.upper is None) != (big.name == "lim"):
        raise Unreadable(f"{big.name} without its bounds")
    if lower.value != ("to" if big.name == "lim" else "=") or lower.args[0].head not in ("symbol", "constant"):
        raise Unreadable(f"{big.name} over no variable")
    name = str(lower.args[0].value)
    body = replace(
        _quotients(list(reversed(factors))),
        lambda each: symbol(name) if each.head == "constant" and each.value == name else each,  # i counts here
    )
    bounds = (lower.args[1],) if big.upper is None else (lower.args[1], big.upper)
    return node("big", body, symbol(name), *bounds, value=big.name)


def _quotients(items: Sequence[Item]) -> Node:
    """Factors from the left: beside one another, or joined by * and /."""
    factors: list[Node] = []
    operator = ""
    at = 0
    while at < len(items):
        item = items[at]
        if is_operator(item, "*", "/") and factors and not operator:
            operator = named(item)
            at += 1
            continue
        negative = False
        while at < len(items) - 1 and is_operator(items[at], "+", "-"):
            negative ^= named(items[at]) == "-"
            at += 1
        factor = operand(items[at])
        factor = node("neg", factor) if negative else factor
        if operator == "/":
            factors = [node("/", _times(factors), factor)]
        elif operator == "*" or not factors or isinstance(items[at], Group) or isinstance(items[at - 1], Group):
            factors.append(factor)
        else:
            at += _beside(factors, factor, items[at + 1 : at + 3])
        operator = ""
        at += 1
    if operator or not factors:
        raise Unreadable("a product that ends early")
    return _times(factors)


def _beside(factors: list[Node], factor: Node, following: Sequence[Item]) -> int:
    """Put a factor beside the one before it, or make a mixed number of the two; returns how many items it took more."""
    before = factors[-1]
    if is_integer_literal(before):
        if factor.head == "/" and factor.value == "frac" and _is_proper(factor):
            factors[-1] = node("+", before, factor)
            return 0
        if is_integer_literal(factor) and len(following) == 2 and is_operator(following[0], "/"):
            fraction = node("/", factor, operand(following[1]))
            if _is_proper(fraction):
                factors[-1] = node("+", before, fraction)
                return 2
    if before.head == "number" and factor.head == "number":
        raise Unreadable("two numbers without an operator between")
    factors.append(factor)
    return 0


def _is_proper(fraction: Node) -> bool:
    above, below = fraction.args
    if not (is_integer_literal(above) and is_integer_literal(below)):
        return False
    assert isinstance(above.value, Fraction)
    assert isinstance(below.value, Fraction)
    return 0 < above.value < below.value


def _times(factors: Sequence[Node]) -> Node:
    return factors[0] if len(factors) == 1 else node("*", *factors)
