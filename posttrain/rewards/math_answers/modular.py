"""The identity tier: an expression's value at a point modulo a prime of 255 bits.

Variables, pi, e and every function of its argument stand for residues that SHA-256 derives from their names, so that
equal residues mean equal expressions: a false match has a chance of the degree over 2^255 (Schwartz and Zippel).
Different residues prove expressions different only where `opaque` finds nothing that the residues know too little of.
"""

import hashlib
from functools import lru_cache

from posttrain.rewards.math_answers.exact import Undefined, exact
from posttrain.rewards.math_answers.limits import Steps, words
from posttrain.rewards.math_answers.tree import Node, fold, walk

PRIME = 2**255 - 19
IMAGINARY = pow(2, (PRIME - 1) // 4, PRIME)  # its square is -1
HALF = pow(2, -1, PRIME)
POINTS = (1, 2)

ANALYTIC = words(
    "sqrt cbrt root ln exp abs sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh "
    "cis sgn Re Im"
)
DISCRETE = frozenset({"factorial", "double factorial", "binom", "floor", "ceil", "gcd", "lcm", "min", "max"})
SPECIAL = frozenset({"gamma", "zeta", "erf"})
ALGEBRAIC = words("number symbol constant + * / ^ neg percent degree unit")


def identical(first: Node, second: Node, steps: Steps) -> bool:
    """Return whether two expressions have equal residues at each point; raises Undefined where one has no value."""
    return all(residue(first, point, steps) == residue(second, point, steps) for point in POINTS)


def residue(root: Node, point: int, steps: Steps) -> int:
    """Return the value of an expression at a point, modulo the prime."""

    def visit(each: Node, parts: list[int]) -> int:
        steps.spend(3)
        if each.head == "number":
            return _rational(each)
        if each.head == "+":
            return sum(parts) % PRIME
        if each.head == "*":
            product = 1
            for part in parts:
                product = product * part % PRIME
            return product
        if each.head == "neg":
            return -parts[0] % PRIME
        if each.head == "/":
            return parts[0] * _inverse(parts[1]) % PRIME
        if each.head == "^":
            return _power(each, parts, point, steps)
        if each.head in ("degree", "unit"):
            return parts[0]
        if each.head == "percent":
            return parts[0] * _inverse(100) % PRIME
        if each.head == "constant" and each.value == "i":
            return IMAGINARY
        return _named(each, parts, point)

    return fold(root, visit)


def opaque(root: Node, steps: Steps) -> set[str]:
    """Return what residues know too little of: "analytic", "discrete", "special" or "unknown" functions."""
    found = set()
    for each in walk(root):
        if each.head == "call":
            name = str(each.value)
            kinds = (("analytic", ANALYTIC), ("discrete", DISCRETE), ("special", SPECIAL))
            found.add(next((kind for kind, names in kinds if name in names), "unknown"))
        elif each.head == "^":
            exponent = exact(each.args[1], steps)
            if exponent is None or exponent.denominator != 1:
                found.add("analytic")
        elif each.head == "big":
            infinite = each.value not in ("sum", "prod") or "infinity" in {leaf.value for leaf in walk(each)}
            found.add("special" if infinite else "discrete")
        elif each.head not in ALGEBRAIC:
            found.add("unknown")
    return found


def _rational(leaf: Node) -> int:
    above, below = leaf.value.numerator, leaf.value.denominator  # type: ignore[union-attr]
    return int(above * (1 if below == 1 else pow(below, -1, PRIME)) % PRIME)


def _inverse(value: int) -> int:
    if value == 0:
        raise Undefined
    return pow(value, -1, PRIME)


def _power(each: Node, parts: list[int], point: int, steps: Steps) -> int:
    base, exponent = parts[0], exact(each.args[1], steps)
    if exponent is None or exponent.denominator != 1:
        return _hashed("^", "", tuple(parts), point)
    if exponent <= 0:
        base = _inverse(base)
    return pow(base, abs(int(exponent)) % (PRIME - 1) if base else 1, PRIME)


def _named(each: Node, parts: list[int], point: int) -> int:
    if each.head == "call" and each.value == "sqrt":
        return _hashed("^", "", (parts[0], HALF), point)
    if each.head == "call" and each.value == "root":
        return _hashed("^", "", (parts[0], _inverse(parts[1])), point)
    return _hashed(each.head, str(each.value), tuple(parts), point)


@lru_cache(maxsize=4096)
def _hashed(head: str, value: str, parts: tuple[int, ...], point: int) -> int:
    text = "\x1f".join([head, value, *map(str, parts), str(point)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()) % PRIME
