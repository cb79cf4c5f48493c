"""Read an answer into a tree: brackets by a stack, what is between them by passes over flat items.

Linear in the text and without recursion; raises Unreadable or GaveUp, nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.rewards.math_answers.expressions import expression
from posttrain.rewards.math_answers.limits import MAX_DEPTH, MAX_ITEMS, GaveUp, Unreadable
from posttrain.rewards.math_answers.operands import Group, Item, is_operator, named
from posttrain.rewards.math_answers.tokens import Token
from posttrain.rewards.math_answers.tree import Node, heads, node, replace
from posttrain.rewards.math_answers.units import SCALES, singular, unit_of

RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "~", "in", "to")
SET_OPERATORS = {"cup": "union", "cap": "intersection", "minus": "difference"}
CLOSINGS = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "{set": ("}set",), "|": ("|",), "<": (">",)}
CLOSINGS |= {"floor": ("floor",), "ceil": ("ceil",)}
INTERVALS = ("()", "(]", "[)", "[]")


@dataclass(slots=True)
class _Frame:
    """An open bracket and what stood in it so far."""

    opening: str
    items: list[Item] = field(default_factory=list)


def parse(tokens: Sequence[Token]) -> Node:
    """Return the tree of an answer's tokens."""
    frames = [_Frame("")]
    for token in tokens:
        if token.kind in ("open", "begin"):
            _open(frames, token.text)
        elif token.kind in ("close", "end"):
            _close(frames, token.text)
        elif token.kind == "bar":
            _bar(frames)
        else:
            frames[-1].items.append(token)
    if len(frames) != 1:
        raise Unreadable("a bracket that is never closed")
    return _both_signs(_answer(frames[0].items))


def _open(frames: list[_Frame], opening: str) -> None:
    if len(frames) > MAX_DEPTH:
        raise GaveUp(f"an answer nested deeper than {MAX_DEPTH}")
    frames.append(_Frame(opening))


def _close(frames: list[_Frame], closing: str) -> None:
    frame = frames.pop()
    if not frames or closing not in CLOSINGS.get(frame.opening, (frame.opening,)) or frame.opening == "":
        raise Unreadable("a bracket that was never opened")
    if frame.opening == "|":
        item: Item = Group("||", _absolute(frame.items))
    elif frame.opening in ("floor", "ceil"):
        item = node("call", _answer(frame.items), value=frame.opening)
    elif frame.opening not in CLOSINGS:
        item = _matrix(frame)
    else:
        item = _bracketed(frame, closing)
    frames[-1].items.append(item)


def _bar(frames: list[_Frame]) -> None:
    """A bar closes the one that is open, if it can; in braces after a value it means "such that"."""
    frame = frames[-1]
    after_value = bool(frame.items) and (
        not is_operator(frame.items[-1]) or is_operator(frame.items[-1], "!", "%", "'")
    )
    if frame.opening == "|" and after_value:
        _close(frames, "|")
    elif frame.opening == "{set" and after_value:
        frame.items.append(Token("operator", "mid"))
    else:
        _open(frames, "|")


def _absolute(items: Sequence[Item]) -> Node:
    inside = _answer(items)
    if inside.head == "matrix":  # its determinant
        return node("matrix", *inside.args, value=f"det {inside.value}")
    return node("call", inside, value="abs")


def _bracketed(frame: _Frame, closing: str) -> Item:
    if frame.opening == "{":
        return _answer(frame.items)
    if frame.opening == "{set":
        return _set(frame.items)
    inside = _answer(frame.items)
    brackets = "()" if frame.opening == "<" else frame.opening + closing
    if inside.head == "list":
        return Group(brackets, node(brackets, *inside.args))
    if brackets not in ("()", "[]"):
        raise Unreadable("an interval with one end")
    return Group(brackets, inside)


def _set(items: Sequence[Item]) -> Node:
    if not items:
        return Node("{}")
    separators = [at for at, item in enumerate(items) if is_operator(item, "mid", ":")]
    if not separators:
        inside = _answer(items)
        return node("{}", *(inside.args if inside.head == "list" else (inside,)))
    at = separators[0]
    member, condition = _answer(items[:at]), _answer(items[at + 1 :])
    if member.head == "relation" and member.value == "in" and member.args[1].value == "reals":
        member = member.args[0]
    if member.head == "symbol":  # the set of x with a condition on x is that condition
        return condition
    return node("builder", member, condition)


def _matrix(frame: _Frame) -> Node:
    rows = [row for row in _split(frame.items, "\\\\") if row]
    cells = [[_answer(cell) for cell in _split(row, "&")] for row in rows]
    if sum(map(len, cells)) > MAX_ITEMS:
        raise GaveUp(f"a matrix of more than {MAX_ITEMS} cells")
    shape = ",".join(str(len(row)) for row in cells)
    if not shape:
        raise Unreadable("an empty matrix")
    kind = {"vmatrix": "det ", "cases": "cases "}.get(frame.opening, "")
    return node("matrix", *(cell for row in cells for cell in row), value=kind + shape)


def _split(items: Sequence[Item], *operators: str) -> list[list[Item]]:
    parts: list[list[Item]] = [[]]
    for item in items:
        if is_operator(item, *operators):
            parts.append([])
        else:
            parts[-1].append(item)
    return parts


# Lists, relations and units.


def _answer(items: Sequence[Item]) -> Node:
    """What stands in one bracket, or in none: a statement, or several in a list."""
    joints = [named(item) for item in items if is_operator(item, ",", ";", "and", "or")]
    if not joints:
        return _statement(items)
    if len(joints) >= MAX_ITEMS:
        raise GaveUp(f"a list of more than {MAX_ITEMS} items")
    parts = _split(items, ",", ";", "and", "or")
    if "and" in joints or "or" in joints:
        parts = [part for part in parts if part]  # "1, 2, and 3" has nothing between comma and word
    elif not parts[-1]:
        parts.pop()
    if not parts:
        raise Unreadable("a list of nothing")
    meaning = "or" if "or" in joints else "and" if "and" in joints else ","
    return node("list", *map(_statement, parts), value=meaning) if len(parts) > 1 else _statement(parts[0])


def _statement(items: Sequence[Item]) -> Node:
    if not items:
        raise Unreadable("a part that is empty")
    if all(isinstance(item, Token) and item.kind == "word" for item in items):
        words = [named(item) for item in items]
        if len(words) > 1 or len(words[0]) > 1:
            return Node("text", value=" ".join(words).casefold())
    signs = [named(item) for item in items if is_operator(item, *RELATIONS)]
    if not signs:
        return _side(items)
    sides = [_named_side(part) or _side(part) for part in _split(items, *RELATIONS)]
    return node("relation", *sides, value=" ".join(signs))


def _named_side(items: Sequence[Item]) -> Node | None:
    """A side like P(x), which may be a product too: which one, the other side says."""
    if len(items) < 2 or not (isinstance(items[0], Token) and items[0].kind == "name" and _is_call(items[-1])):
        return None
    if not all(isinstance(item, Node) or is_operator(item, "^", "_", "'") for item in items[1:-1]):
        return None
    whole = expression(items)
    return whole if whole.head == "call" else node("named call", whole, value=f"{items[0].text}(…)")


def _side(items: Sequence[Item]) -> Node:
    """One side of a relation: a value with or without its unit, a union, a ratio."""
    if not items:
        raise Unreadable("a side that is empty")
    if len(items) == 1:
        return expression(items)
    items = _typed_unions(items)
    operators = {named(item) for item in items if is_operator(item)}
    if sets := operators & set(SET_OPERATORS):
        if len(sets) > 1:
            raise Unreadable("unions and intersections without brackets")
        (operator,) = sets
        return node(SET_OPERATORS[operator], *map(expression, _split(items, operator)))
    if "choose" in operators:
        return node("call", *map(expression, _split(items, "choose")), value="binom")
    items, unit = _unit(items)
    parts = _split(items, ":")
    value = node("ratio", *map(expression, parts)) if len(parts) > 1 else expression(items)
    return node("unit", value, value=unit) if unit else value


def _typed_unions(items: Sequence[Item]) -> Sequence[Item]:
    """The items with a letter U between two intervals as the sign that it stands for."""

    def is_interval(at: int) -> bool:
        item = items[at] if 0 < at + 1 <= len(items) else None
        return isinstance(item, Group) and item.node.head in INTERVALS

    return [
        Token("operator", "cup") if item == ("name", "U") and is_interval(at - 1) and is_interval(at + 1) else item
        for at, item in enumerate(items)
    ]


def _is_call(item: Item) -> bool:
    return isinstance(item, Group) and item.brackets == "()" and item.node.head in ("symbol", "number", "()")


def _unit(items: Sequence[Item]) -> tuple[Sequence[Item], str | None]:
    """The items of the value, and the unit before or behind it."""
    items = _currency_behind(items)
    for at in range(1, len(items)):
        item = items[at]
        if isinstance(item, Token) and item.kind in ("word", "run") and not is_operator(items[at - 1]):
            words = [_unit_word(each) for each in items[at:]]
            if None not in words and (unit := unit_of(_exponents([word for word in words if word]))):
                return items[:at], unit
    return items, None


def _currency_behind(items: Sequence[Item]) -> Sequence[Item]:
    """The items with a currency before the value as a word behind it, where other units stand."""
    first = next((at for at, item in enumerate(items) if not is_operator(item, "+", "-")), 0)
    head = items[first]
    if not (isinstance(head, Token) and head.kind == "currency"):
        return items
    rest = [*items[:first], *items[first + 1 :]]
    words = [at for at, item in enumerate(rest) if isinstance(item, Token) and item.kind == "word"]
    at = next((at for at in words if named(rest[at]).casefold() not in SCALES), len(rest))
    repeated = at < len(rest) and singular(named(rest[at])) == head.text
    return rest if repeated else [*rest[:at], Token("word", head.text), *rest[at:]]


def _unit_word(item: Item) -> str | None:
    if isinstance(item, Token):
        fits = item.kind in ("word", "run") or (item.kind == "number" and len(item.text) == 1)
        return item.text if fits or is_operator(item, "/", "*", "^", "-") else None
    if isinstance(item, Node) and not item.args and item.head == "number":
        return str(item.value)
    if isinstance(item, Node) and item.head == "neg" and item.args[0].head == "number":
        return f"-{item.args[0].value}"
    return None


def _exponents(words: list[str]) -> list[str]:
    """Exponents as one word each: a sign belongs to its digit."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "-":
            joined[-1] = f"-{word}"
        else:
            joined.append(word)
    return joined


def _both_signs(root: Node) -> Node:
    """The answer with each part that has a plus-minus sign as two parts."""
    if not heads(root) & {"±", "∓"}:
        return root
    if root.head in ("list", "{}"):
        parts = [each for part in root.args for each in _expanded(part)]
        return node(root.head, *parts, value=str(root.value) if root.value else None)
    return node("list", *_expanded(root), value="or")


def _expanded(part: Node) -> list[Node]:
    if not heads(part) & {"±", "∓"}:
        return [part]

    def chosen(each: Node, minus: str) -> Node:
        if each.head not in ("±", "∓"):
            return each
        return node("neg", each.args[0]) if each.head == minus else each.args[0]

    return [replace(part, lambda each: chosen(each, "∓")), replace(part, lambda each: chosen(each, "±"))]
