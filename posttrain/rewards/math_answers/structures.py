"""Whether two answers say the same: numbers, lists, sets, intervals, matrices, equations, inequalities, words.

Each rule has its cases in `tests/rewards/grading_cases.tsv`; a gold that is one answer never takes several.
"""

from collections.abc import Sequence
from fractions import Fraction

from posttrain.rewards.math_answers.exact import Undefined, exact
from posttrain.rewards.math_answers.limits import MAX_STRUCTURE, GaveUp
from posttrain.rewards.math_answers.modular import POINTS, PRIME, opaque, residue
from posttrain.rewards.math_answers.numerics import real_value
from posttrain.rewards.math_answers.tree import Node, constant, node, symbols
from posttrain.rewards.math_answers.values import Comparison, equal_values

INTERVALS = frozenset({"()", "(]", "[)", "[]"})
UNORDERED = frozenset({"list", "{}"})
SETS = frozenset({"union", "intersection", "difference"})
STRUCTURES = INTERVALS | UNORDERED | SETS | {"matrix", "relation", "ratio", "text", "builder"}
INFINITY = constant("infinity")
MINUS_INFINITY = node("neg", INFINITY)
REALS = node("()", MINUS_INFINITY, INFINITY)
ALL_REALS = ("all real numbers", "real numbers", "all reals")
ROUGH = Fraction(1, 100)  # how far an approximation in a chain of equalities may be off


def equal(gold: Node, answer: Node, by: Comparison, level: int = 0) -> bool:
    """Return whether `answer` states what `gold` does; raises GaveUp where that is beyond the bounds."""
    if level > MAX_STRUCTURE:
        raise GaveUp("an answer of too many structures inside one another")
    by.steps.spend(5)
    subjects = {name for name in (_subject(gold), _subject(answer)) if name is not None}
    if len(subjects) > 1:
        return False
    gold, answer = _unchained(gold, by), _unchained(answer, by)
    if gold.head == answer.head == "relation" and _equal_relations(gold, answer, by, level):
        return True
    gold, answer = _as_set(gold), _as_set(answer)
    if gold.head == "relation" or answer.head == "relation":
        return _equal_relations(gold, answer, by, level)
    gold, answer = _plain(gold, answer)
    if gold.head in STRUCTURES or answer.head in STRUCTURES:
        return _equal_structures(gold, answer, by, level)
    return equal_values(_called(gold), _called(answer), by)


def _plain(gold: Node, answer: Node) -> tuple[Node, Node]:
    """The sides without what does not matter between them: a unit around a structure, braces around one item."""
    if gold.head == "unit" and gold.args[0].head in STRUCTURES:
        gold = gold.args[0]
    if answer.head == "unit" and answer.args[0].head in STRUCTURES:
        answer = answer.args[0]
    if gold.head == "{}" and len(gold.args) == 1 and answer.head not in STRUCTURES:
        gold = gold.args[0]
    if answer.head == "{}" and len(answer.args) == 1 and gold.head not in STRUCTURES:
        answer = answer.args[0]
    return gold, answer


def _called(side: Node) -> Node:
    """A name before a bracket that turned out to be a product."""
    return side.args[0] if side.head == "named call" else side


def _equal_structures(gold: Node, answer: Node, by: Comparison, level: int) -> bool:
    if gold.head == "ratio" or answer.head == "ratio":
        return _equal_ratios(gold, answer, by)
    if gold.head in UNORDERED and answer.head in UNORDERED:
        return _same_items(_unnamed(gold, answer), _unnamed(answer, gold), by, level)
    if gold.head != answer.head:
        return False
    if gold.head == "text":
        return gold.value == answer.value
    if gold.head in ("union", "intersection"):
        return _same_items(gold.args, answer.args, by, level)
    if gold.value != answer.value or len(gold.args) != len(answer.args):
        return False
    return all(equal(g, a, by, level + 1) for g, a in zip(gold.args, answer.args, strict=True))


def _same_items(gold: Sequence[Node], answer: Sequence[Node], by: Comparison, level: int) -> bool:
    """Whether two multisets are equal: each item of one finds its own in the other, by equality."""
    if len(gold) != len(answer):
        return False
    rest = list(answer)
    for item in gold:
        gave_up: GaveUp | None = None
        for index, other in enumerate(rest):
            try:
                found = equal(item, other, by, level + 1)
            except GaveUp as error:
                gave_up, found = error, False
            if found:
                rest.pop(index)
                break
        else:
            if gave_up:
                raise gave_up
            return False
    return True


def _unnamed(side: Node, other: Node) -> Sequence[Node]:
    """The items of a list, `x = 1, x = 2` as the values of x where the other side names nothing."""
    names = {name for item in side.args if (name := _name_of(item)) is not None}
    all_named = all(_name_of(item) is not None for item in side.args)
    if all_named and len(names) == 1 and all(item.head != "relation" for item in other.args):
        return [_value_of(item) for item in side.args]
    if all_named and len(names) > 1 and any(_name_of(item) is None for item in other.args):
        return [Node("text", value="values of several names"), *side.args]  # which is whose, nobody says
    return side.args


def _equal_ratios(gold: Node, answer: Node, by: Comparison) -> bool:
    """a:b as the fraction a/b; three terms and more keep their proportions."""
    gold_terms = gold.args if gold.head == "ratio" else (gold,)
    answer_terms = answer.args if answer.head == "ratio" else (answer,)
    if len(gold_terms) == 2 and len(answer_terms) == 1:
        return answer.head not in STRUCTURES and equal_values(node("/", *gold_terms), answer, by)
    if len(answer_terms) == 2 and len(gold_terms) == 1:
        return gold.head not in STRUCTURES and equal_values(gold, node("/", *answer_terms), by)
    if len(gold_terms) != len(answer_terms):
        return False
    return all(
        equal_values(node("*", gold_terms[0], a), node("*", answer_terms[0], g), by)
        for g, a in zip(gold_terms[1:], answer_terms[1:], strict=True)
    )


# Equations and inequalities.


def _name_of(side: Node) -> str | None:
    """The one name on the left of an equation, or on its right where nothing but a value stands left."""
    if side.head != "relation" or side.value != "=" or len(side.args) != 2:
        return None
    left, right = side.args
    if left.head == "()" and all(part.head == "symbol" for part in left.args) and not symbols(left) & symbols(right):
        return ",".join(str(part.value) for part in left.args)  # (x, y) = (1, 2)
    if (name := _single_name(left)) is not None and name not in symbols(right):
        return name
    name = _single_name(right)
    return name if name is not None and not symbols(left) and left.head not in STRUCTURES else None


def _value_of(equation: Node) -> Node:
    left, right = equation.args
    return right if left.head == "()" or _single_name(left) is not None else left


def _single_name(side: Node) -> str | None:
    if side.head == "symbol" or (side.head == "named call" and side.args[0].head in ("*", "call")):
        return str(side.value)
    if side.head == "call" and side.value in tuple("fghFG"):
        return f"{side.value}(…)"
    if side.head == "text":
        return str(side.value)
    return None


def _unchained(side: Node, by: Comparison) -> Node:
    """A chain of equalities as what it says, a name with its value or one value; unchanged if it contradicts itself."""
    if side.head != "relation":
        return side
    signs = str(side.value).split()
    if signs == ["in"]:
        return side.args[1] if _single_name(side.args[0]) is not None else side
    if set(signs) - {"=", "~"} or (signs == ["="] and symbols(side)):
        return side
    exact_parts = list(side.args[: signs.index("~") + 1]) if "~" in signs else list(side.args)
    rough_parts = side.args[len(exact_parts) :]
    name = exact_parts.pop(0) if _single_name(exact_parts[0]) is not None and len(exact_parts) > 1 else None
    first = exact_parts[0]
    consistent = all(equal(first, other, by, MAX_STRUCTURE - 1) for other in exact_parts[1:])
    if not consistent or not all(_roughly(first, rough, by) for rough in rough_parts):
        return side
    if name is None:
        return side if len(exact_parts) == 1 and not rough_parts else first
    return node("relation", name, first, value="=")


def _roughly(value: Node, approximation: Node, by: Comparison) -> bool:
    """Whether a stated approximation is one."""
    try:
        expected = exact(value, by.steps) or real_value(value, by.steps)
        given = exact(approximation, by.steps) or real_value(approximation, by.steps)
    except Undefined:
        return False
    return expected is not None and given is not None and abs(given - expected) <= ROUGH * abs(expected)


def _equal_relations(gold: Node, answer: Node, by: Comparison, level: int) -> bool:
    gold_name, answer_name = _name_of(gold), _name_of(answer)
    if gold_name is not None and answer.head != "relation":
        return equal(_value_of(gold), answer, by, level + 1)
    if answer_name is not None and gold.head != "relation":
        return equal(gold, _value_of(answer), by, level + 1)
    if gold.head != "relation" or answer.head != "relation":
        return False
    if gold_name is not None and gold_name == answer_name:
        return equal(_value_of(gold), _value_of(answer), by, level + 1)
    same_shape = gold.value == answer.value and len(gold.args) == len(answer.args)
    if same_shape and all(_equal_sides(g, a, by, level) for g, a in zip(gold.args, answer.args, strict=True)):
        return True
    return _proportional(gold, answer, by)


def _equal_sides(gold: Node, answer: Node, by: Comparison, level: int) -> bool:
    try:
        return equal(_called(gold), _called(answer), by, level + 1)
    except GaveUp:
        return False


def _proportional(gold: Node, answer: Node, by: Comparison) -> bool:
    """Whether left minus right of one is a constant times that of the other; a negative one turns < around."""
    if len(gold.args) != 2 or len(answer.args) != 2 or not symbols(gold):
        return False
    if any(side.head in STRUCTURES for relation in (gold, answer) for side in relation.args):
        return False
    expected, given = (node("+", _called(r.args[0]), node("neg", _called(r.args[1]))) for r in (gold, answer))
    try:
        factors = {_factor(expected, given, point, by) for point in POINTS}
    except Undefined:
        return False
    factor = factors.pop() if len(factors) == 1 else None
    return factor is not None and _same_direction(str(gold.value), str(answer.value), factor)


def _factor(gold: Node, answer: Node, point: int, by: Comparison) -> int | None:
    """How many times the one is the other at a point, modulo the prime; None where either is 0 or not known enough."""
    if "unknown" in opaque(gold, by.steps) | opaque(answer, by.steps):
        return None
    above, below = residue(gold, point, by.steps), residue(answer, point, by.steps)
    return above * pow(below, -1, PRIME) % PRIME if above and below else None


def _same_direction(gold: str, answer: str, factor: int) -> bool:
    """Whether two signs agree; a factor's sign is that of the smallest fraction with its residue."""
    if gold in ("=", "!="):
        return gold == answer
    fraction = _small_fraction(factor)
    if fraction is None or gold not in _FLIPPED or answer not in _FLIPPED:
        return False
    return gold == (answer if fraction > 0 else _FLIPPED[answer])


_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def _small_fraction(value: int) -> Fraction | None:
    """The fraction of small parts that a residue stands for, by the extended Euclidean algorithm (Wang 1981)."""
    limit = 1 << 100
    before, now = (PRIME, 0), (value, 1)
    while now[0] > limit:
        quotient = before[0] // now[0]
        before, now = now, (before[0] - quotient * now[0], before[1] - quotient * now[1])
    return None if now[1] == 0 or abs(now[1]) > limit else Fraction(now[0], now[1])


# Inequalities as intervals.


def _as_set(side: Node) -> Node:
    """An inequality on one name as an interval, several joined by "or" as their union; all else unchanged."""
    if side.head == "list" and side.value in ("or", "and") and _subject(side) is not None:
        intervals = [each for part in side.args if (each := _interval(part)) is not None]
        if len(intervals) == len(side.args):
            return node("union", *intervals) if side.value == "or" else _intersection(intervals)
    if (side.head == "constant" and side.value == "reals") or (side.head == "text" and side.value in ALL_REALS):
        return REALS
    if side.head == "difference" and len(side.args) == 2 and _as_set(side.args[0]) is REALS:
        removed = side.args[1]
        return _without(removed.args[0]) if removed.head == "{}" and len(removed.args) == 1 else side
    return _interval(side) or side


def _intersection(intervals: Sequence[Node]) -> Node:
    """What lies above one bound and below another as one interval."""
    if len(intervals) == 2:
        below, above = sorted(intervals, key=lambda each: each.args[0] is not MINUS_INFINITY)
        if below.args[0] is MINUS_INFINITY and above.args[1] is INFINITY:
            return node(above.head[0] + below.head[1], above.args[0], below.args[1])
    return node("intersection", *intervals)


def _without(bound: Node) -> Node:
    return node("union", node("()", MINUS_INFINITY, bound), node("()", bound, INFINITY))


def _subject(side: Node) -> str | None:
    """The name that a condition is on: of x > 2, of x in S, of several joined ones if all are on it."""
    if side.head == "list" and side.value in ("or", "and"):
        names = {_subject(part) for part in side.args}
        return names.pop() if len(names) == 1 else None
    if side.head == "relation" and side.value == "in":
        return _single_name(side.args[0])
    return _bounded_name(side)


def _interval(side: Node) -> Node | None:
    name = _bounded_name(side)
    if name is None:
        return None
    signs = str(side.value).split()
    if signs == ["!="]:
        bound = side.args[1] if _is_name(side.args[0]) else side.args[0]
        return _without(bound)
    args = list(side.args)
    if signs[0] in (">", ">="):
        args.reverse()
        signs = [_FLIPPED[sign] for sign in reversed(signs)]
    at = next(index for index, arg in enumerate(args) if _is_name(arg))
    low = args[at - 1] if at else MINUS_INFINITY
    high = args[at + 1] if at + 1 < len(args) else INFINITY
    opening = "[" if at and signs[at - 1] == "<=" else "("
    closing = "]" if at < len(signs) and signs[at] == "<=" else ")"
    return node(opening + closing, low, high)


def _is_name(side: Node) -> bool:
    return side.head in ("symbol", "named call")


def _bounded_name(side: Node) -> str | None:
    """The name that an inequality bounds by values without it; None for anything else."""
    if side.head != "relation":
        return None
    signs = set(str(side.value).split())
    if not (signs <= {"<", "<="} or signs <= {">", ">="} or (signs == {"!="} and len(side.args) == 2)):
        return None
    positions = [index for index, arg in enumerate(side.args) if _is_name(arg)]
    if len(side.args) > 3 or len(positions) != 1 or (len(side.args) == 3 and positions != [1]):
        return None
    name = side.args[positions[0]]
    free = any(arg is not name and symbols(name) & symbols(arg) for arg in side.args)
    return None if free or any(arg.head in STRUCTURES for arg in side.args) else str(name.value)
