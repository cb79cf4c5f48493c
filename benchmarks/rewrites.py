"""Exact rewrites of an answer, and answers of other values, made for tests and benchmarks.

Rewrites of the text change how it looks; rewrites of the tree write it down anew in another style. A change of a
number gives an answer that must be wrong.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

from posttrain.rewards.math_answers.limits import GaveUp, Unreadable
from posttrain.rewards.math_answers.parser import parse
from posttrain.rewards.math_answers.tokens import tokenize
from posttrain.rewards.math_answers.tree import Node, fold

_FRAC = re.compile(r"\\[dt]?frac(?=\s?[{0-9])")
_SIMPLE_FRAC = re.compile(r"(?<![\d ])\\frac\{(-?\d+)\}\{(\d+)\}")
_INTEGER = re.compile(r"(?<![\d.,!{])\d+(?![\d.,]|\{,\})")


def rewrites(answer: str) -> Iterator[tuple[str, str]]:
    """Yield the kind of each exact rewrite of an answer, and the rewrite."""
    yield from ((kind, text) for kind, text in _of_text(answer) if text != answer)
    try:
        tree = parse(tokenize(answer))
    except (Unreadable, GaveUp):
        return
    for style in STYLES:
        text = fold(tree, STYLES[style])
        if text and text != answer:
            yield style, text


def others(answer: str) -> Iterator[tuple[str, str]]:
    """Yield answers of other values: each whole number in turn made another."""
    for match in _INTEGER.finditer(answer):
        for kind, digits in (
            ("one more", str(int(match[0]) + 1)),
            ("a digit more", match[0] + "7"),
            ("tenfold", match[0] + "0" if match[0].strip("0") else match[0] + "3"),
        ):
            yield kind, answer[: match.start()] + digits + answer[match.end() :]


def _of_text(answer: str) -> Iterator[tuple[str, str]]:
    yield "box", rf"\boxed{{{answer}}}"
    yield "dollars", f"${answer}$"
    yield "period", f"{answer}."
    yield "period in dollars", f"${answer}.$"
    yield "display", rf"\[ {answer} \]"
    yield "dfrac", _FRAC.sub(lambda match: r"\dfrac", answer)
    yield "tfrac", _FRAC.sub(lambda match: r"\tfrac", answer)
    yield "slash", _SIMPLE_FRAC.sub(r"(\1/\2)", answer)
    yield "no sizes", answer.replace(r"\left", "").replace(r"\right", "")
    yield "no spaces", re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", answer) if r"\text" not in answer else answer
    yield (
        "thin spaces",
        answer.replace(" + ", r"\,+\,").replace(",", r",\ ") if not re.search(r"\d,", answer) else answer,
    )
    yield "mathrm", answer.replace(r"\text{", r"\mathrm{").replace(r"\mbox{", r"\mathrm{")
    yield "bold", rf"\mathbf{{{answer}}}" if answer.isdigit() else answer
    yield "minus sign", answer.replace("-", "\N{MINUS SIGN}")
    yield "pi sign", re.sub(r"\\pi(?![a-z])", "π", answer)
    yield "degree sign", answer.replace(r"^\circ", "°")
    yield "root sign", re.sub(r"\\sqrt\{(\d+)\}", r"√\1", answer)
    yield "named", f"x = {answer}" if answer.lstrip("-").isdigit() else answer
    yield "decimal", f"{answer}.0" if answer.isdigit() else answer
    yield "thousands", f"{int(answer):,}" if answer.isdigit() else answer
    yield "scientific", f"{answer}e0" if answer.isdigit() else answer


def _latex(each: Node, parts: list[str]) -> str:
    """The tree in LaTeX, sums and products from the right."""
    if each.head == "+":
        return "+".join(f"{{{part}}}" if part.startswith("-") else part for part in reversed(parts))
    if each.head == "*":
        return r"\cdot ".join(f"({part})" for part in reversed(parts))
    if each.head == "/":
        return rf"\dfrac{{{parts[0]}}}{{{parts[1]}}}"
    if each.head == "^":
        return rf"\left({parts[0]}\right)^{{{parts[1]}}}"
    if each.head == "call" and each.value == "sqrt":
        return rf"({parts[0]})^{{\frac{{1}}{{2}}}}"
    return _same_in_both(each, parts, {"pi": r"\pi ", "infinity": r"\infty "})


def _plain(each: Node, parts: list[str]) -> str:
    """The tree as one would type it."""
    if each.head == "+":
        return f"({' + '.join(parts)})"
    if each.head == "*":
        return "*".join(f"({part})" for part in parts)
    if each.head == "/":
        return f"(({parts[0]})/({parts[1]}))"
    if each.head == "^":
        return f"({parts[0]})^({parts[1]})"
    if each.head == "call" and each.value == "sqrt":
        return f"sqrt({parts[0]})"
    return _same_in_both(each, parts, {"pi": "pi", "infinity": "oo"})


def _shifted(each: Node, parts: list[str]) -> str:
    """The tree with every number as a sum: n as (n+1) - 1."""
    if each.head == "number" and isinstance(each.value, Fraction):
        return f"({each.value + 1} - 1)"
    return _plain(each, parts)


def _same_in_both(each: Node, parts: list[str], constants: dict[str, str]) -> str:
    if each.head == "number":
        return str(each.value) if Fraction(str(each.value)).denominator == 1 else f"({each.value})"
    if each.head == "constant":
        return constants.get(str(each.value), str(each.value))
    if each.head == "neg":
        return f"-({parts[0]})"
    if each.head in ("()", "[]", "(]", "[)"):
        return each.head[0] + ", ".join(parts) + each.head[1]
    if each.head == "list":
        return ", ".join(reversed(parts))
    if each.head == "{}":
        return r"\{" + ", ".join(reversed(parts)) + r"\}"
    if each.head == "union":
        return r" \cup ".join(reversed(parts))
    if each.head == "relation":
        signs = [*str(each.value).replace("in", r"\in ").split(), ""]
        return "".join(part + sign for part, sign in zip(parts, signs, strict=True))
    if each.head == "unit":
        return rf"{parts[0]} \text{{ {each.value}}}"
    if each.head == "degree":
        return rf"{parts[0]}^{{\circ}}"
    if each.head == "text":
        return rf"\text{{{each.value}}}"
    if each.head == "matrix":
        rows, at = [], 0
        for width in str(each.value).split(","):
            rows.append(" & ".join(parts[at : at + int(width)]))
            at += int(width)
        return r"\begin{bmatrix} " + r" \\ ".join(rows) + r" \end{bmatrix}"
    if each.head == "call":
        return rf"\{each.value}({', '.join(parts)})"
    return str(each.value)


STYLES = {"LaTeX anew": _latex, "typed": _plain, "numbers as sums": _shifted}
