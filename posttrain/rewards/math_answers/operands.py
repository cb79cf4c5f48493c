"""The first passes over the flat items between two brackets: letters, prefixes with their arguments, scripts.

What stands inside brackets is reduced already, so nothing recurses; prefixes are read from the right, where their
arguments stand ready-made.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from posttrain.rewards.math_answers.limits import MAX_LOG10, GaveUp, Unreadable
from posttrain.rewards.math_answers.tokens import Token
from posttrain.rewards.math_answers.tree import Node, constant, is_integer_literal, node, number, symbol, walk
from posttrain.rewards.math_answers.units import SCALES

POSTFIXES = ("^", "_", "!", "%", "'", "degree")
TEN = number(10)


class Group(NamedTuple):
    """What stood in brackets; they matter to functions, which take a bracket whole."""

    brackets: str
    node: Node


class Function(NamedTuple):
    """A function's name before it meets its argument, with what stood at it: log_2, sin^2; `outer`: f(x)^2."""

    name: str
    base: Node | None = None
    power: Node | None = None
    outer: Node | None = None


class Big(NamedTuple):
    """A sum, product, integral or limit before it meets its body."""

    name: str
    lower: Node | None = None
    upper: Node | None = None


class Applied(NamedTuple):
    """The value of a function, at which the argument of a function before it ends: sin x cos x."""

    node: Node


Item: TypeAlias = Token | Node | Group | Function | Big | Applied


def is_operator(item: Item, *texts: str) -> bool:
    """Return whether an item is one of these operators, or any where none is named."""
    return isinstance(item, Token) and item.kind == "operator" and (not texts or item.text in texts)


def literal(text: str) -> Node:
    """Return a number of its digits, exact; `0.1(6)` repeats the 6. Bounds come before the number is built."""
    mantissa, _, exponent = text.lower().partition("e")
    mantissa, _, period = mantissa.rstrip(")").partition("(")
    whole, point, decimals = mantissa.partition(".")
    if len(exponent) > 6 or abs(int(exponent or 0)) > MAX_LOG10:
        raise GaveUp("a number with too large an exponent")
    shift = int(exponent or 0) - len(decimals)
    value = Fraction(int(whole + decimals or "0"))
    if period:
        value += Fraction(int(period), 10 ** len(period) - 1)
    value = value * 10**shift if shift >= 0 else value / 10**-shift
    written_as_decimal = bool(point or exponent) and not period
    return number(value, max(1, len((whole + decimals).lstrip("0"))) if written_as_decimal else 0)


def letters(items: Sequence[Item]) -> list[Item]:
    """Return the items with runs of letters that turned out to be no unit as one variable for each letter."""
    spread: list[Item] = []
    for item in items:
        if isinstance(item, Token) and item.kind == "run":
            spread.extend(Token("constant" if letter in "ei" else "name", letter) for letter in item.text)
        else:
            spread.append(item)
    return spread


def operand(item: Item) -> Node:
    """Return the node of an item that needs no other; raises Unreadable for one that does."""
    if isinstance(item, Node):
        return item
    if isinstance(item, Group | Applied):
        return item.node
    if isinstance(item, Token):
        if item.kind == "number":
            return literal(item.text)
        if item.kind == "name":
            return symbol(item.text)
        if item.kind == "constant":
            return constant(item.text)
        if item.kind == "word":
            return _word(item.text)
        if item.kind == "run":
            return node("*", *(_word(letter) for letter in item.text))
    raise Unreadable(f"{named(item)} without what belongs to it")


def named(item: Item) -> str:
    """Return the text of a token, or what else an item is."""
    return item.text if isinstance(item, Token) else type(item).__name__.lower()


def _word(text: str) -> Node:
    if text.casefold() in SCALES:
        return node("^", TEN, number(SCALES[text.casefold()]))
    return constant(text) if text in ("e", "i") else symbol(text)


def prefixes(items: Sequence[Item]) -> list[Item]:
    """Return the items with \\frac, \\sqrt, \\binom and accents applied to their arguments."""
    done: list[Item] = []  # from the right: the last one stands next
    for item in reversed(items):
        if isinstance(item, Token) and item.kind in ("prefix", "accent"):
            item = _prefixed(item, done)
        done.append(item)
    done.reverse()
    return done


def _prefixed(prefix: Token, done: list[Item]) -> Node:
    if prefix.kind == "accent":
        return node("call", _argument(done, whole=True), value=prefix.text)
    if prefix.text == "sqrt":
        index = done.pop() if len(done) > 1 and isinstance(done[-1], Group) and done[-1].brackets == "[]" else None
        radicand = _argument(done, whole=True)
        return node("call", radicand, operand(index), value="root") if index else node("call", radicand, value="sqrt")
    if prefix.text == "pmod":
        return node("call", _argument(done, whole=True), value="pmod")
    first, second = _argument(done), _argument(done)
    if prefix.text == "binom":
        return node("call", first, second, value="binom")
    return node("/", first, second, value="frac")


def _argument(done: list[Item], *, whole: bool = False) -> Node:
    """The next item as an argument; of a bare number one digit, as LaTeX has it, unless `whole`."""
    if not done:
        raise Unreadable("a command without its argument")
    item = done.pop()
    if not whole and isinstance(item, Token) and item.kind == "number" and len(item.text) > 1:
        done.append(Token("number", item.text[1:]))
        return literal(item.text[0])
    return operand(item)


def scripts(items: Sequence[Item]) -> list[Item]:
    """Return the items with powers, subscripts and what else stands behind an operand applied to it."""
    done: list[Item] = []
    waiting = list(reversed(items))
    while waiting:
        item = waiting.pop()
        if is_operator(item):
            if is_operator(item, *POSTFIXES):
                raise Unreadable(f"{named(item)} without what belongs before it")
            done.append(item)
        elif isinstance(item, Token) and item.kind in ("function", "big"):
            done.append(_at_function(item, waiting))
        else:
            done.append(_at_operand(item, waiting, done))
    return done


def _at_function(token: Token, waiting: list[Item]) -> Item:
    base = power = None
    while waiting and is_operator(waiting[-1], "_", "^"):
        mark = waiting.pop()
        if is_operator(mark, "_"):
            base = _script(waiting)
        else:
            power = _exponent(waiting)
    return Big(token.text, base, power) if token.kind == "big" else Function(token.text, base, power)


def _at_operand(item: Item, waiting: list[Item], done: list[Item]) -> Item:
    current = _subscripted(item, waiting)
    while waiting and is_operator(waiting[-1], *POSTFIXES):
        mark = named(waiting.pop())
        if mark == "^":
            power = _exponent(waiting)
            if isinstance(current, Group) and done and isinstance(done[-1], Function) and done[-1].outer is None:
                done[-1] = done[-1]._replace(outer=power)
                continue
            current = node("^", operand(current), power)
        elif mark == "!":
            double = bool(waiting) and is_operator(waiting[-1], "!")
            if double:
                waiting.pop()
            current = node("call", operand(current), value="double factorial" if double else "factorial")
        elif mark == "%":
            current = node("percent", operand(current))
        elif mark == "degree":
            current = node("degree", operand(current))
        elif mark == "_" and isinstance(current, Node) and current.head == "^" and current.args[0].head == "symbol":
            base = symbol(f"{current.args[0].value}_{outline(_script(waiting))}")  # x^2_1 is the square of x_1
            current = node("^", base, current.args[1])
        elif mark == "'" and isinstance(current, Node) and current.head == "symbol":
            current = symbol(f"{current.value}'")
        else:
            raise Unreadable(f"{mark} where it means nothing")
    return current if isinstance(current, Group | Node) else operand(current)


def _subscripted(item: Item, waiting: list[Item]) -> Item:
    """The item with its subscript: a name's is part of the name, a number's is its base."""
    if not (waiting and is_operator(waiting[-1], "_")):
        is_name = isinstance(item, Token) and item.kind in ("name", "constant", "word")
        return operand(item) if is_name else item
    waiting.pop()
    below = _script(waiting)
    above = operand(item)
    if above.head == "symbol" or (above.head == "constant" and above.value in ("e", "i")):
        return symbol(f"{above.value}_{outline(below)}")
    digits = item.text if isinstance(item, Token) else str(above.value)
    if is_integer_literal(above) and digits.isdigit():
        return Node("based", value=f"{digits.lstrip('0') or '0'}_{outline(below)}")
    raise Unreadable("a subscript at what has none")


def _script(waiting: list[Item]) -> Node:
    if not waiting:
        raise Unreadable("an empty script")
    return operand(waiting.pop())


def _exponent(waiting: list[Item]) -> Node:
    """The exponent with its signs; a tower a^b^c associates to the right."""
    tower: list[tuple[bool, Node]] = []
    while True:
        negative = False
        while waiting and is_operator(waiting[-1], "+", "-"):
            negative ^= named(waiting.pop()) == "-"
        if not waiting:
            raise Unreadable("an empty exponent")
        tower.append((negative, operand(waiting.pop())))
        if not (waiting and is_operator(waiting[-1], "^")):
            break
        waiting.pop()
    result: Node | None = None
    for negative, each in reversed(tower):
        result = each if result is None else node("^", each, result)
        result = node("neg", result) if negative else result
    assert result is not None
    return result


def outline(root: Node) -> str:
    """Return a short text of a subscript."""
    leaves = [each for each in walk(root) if not each.args]
    if len(leaves) > 8:
        raise GaveUp("a subscript that is too long")
    heads = [each.head for each in walk(root) if each.args]
    return ",".join([*heads, *(str(each.value) for each in leaves)])
