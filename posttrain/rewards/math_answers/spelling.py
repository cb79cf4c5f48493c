"""Characters that mathematics writes in several ways, brought to one spelling in LaTeX or ASCII.

Pure text work, linear; knows no tokens.
"""

import re
import unicodedata

from posttrain.rewards.math_answers.limits import words

_MARKS = {
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{HYPHEN}": "-",
    "\N{NON-BREAKING HYPHEN}": "-",
    "\N{FIGURE DASH}": "-",
    "\N{DEGREE SIGN}": r"^\circ ",
    "\N{MULTIPLICATION SIGN}": r"\times ",
    "\N{MIDDLE DOT}": r"\cdot ",
    "\N{DOT OPERATOR}": r"\cdot ",
    "\N{BULLET}": r"\cdot ",
    "\N{ASTERISK OPERATOR}": "*",
    "\N{DIVISION SIGN}": r"\div ",
    "\N{DIVISION SLASH}": "/",
    "\N{FRACTION SLASH}": "/",
    "\N{INFINITY}": r"\infty ",
    "\N{UNION}": r"\cup ",
    "\N{INTERSECTION}": r"\cap ",
    "\N{SET MINUS}": r"\setminus ",
    "\N{ELEMENT OF}": r"\in ",
    "\N{EMPTY SET}": r"\emptyset ",
    "\N{PLUS-MINUS SIGN}": r"\pm ",
    "\N{MINUS-OR-PLUS SIGN}": r"\mp ",
    "\N{SQUARE ROOT}": r"\sqrt ",
    "\N{CUBE ROOT}": r"\sqrt[3] ",
    "\N{LESS-THAN OR EQUAL TO}": r"\le ",
    "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
    "\N{NOT EQUAL TO}": r"\ne ",
    "\N{ALMOST EQUAL TO}": r"\approx ",
    "\N{RIGHTWARDS ARROW}": r"\to ",
    "\N{LEFT FLOOR}": r"\lfloor ",
    "\N{RIGHT FLOOR}": r"\rfloor ",
    "\N{LEFT CEILING}": r"\lceil ",
    "\N{RIGHT CEILING}": r"\rceil ",
    "\N{MATHEMATICAL LEFT ANGLE BRACKET}": r"\langle ",
    "\N{MATHEMATICAL RIGHT ANGLE BRACKET}": r"\rangle ",
    "\N{PRIME}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{DOUBLE-STRUCK CAPITAL R}": r"\mathbb{R}",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots ",
    "\N{GREEK PHI SYMBOL}": r"\phi ",
}
_GREEK = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi omicron pi rho sigma tau upsilon phi "
    "chi psi omega"
)


def _letters() -> dict[str, str]:
    letters = {}
    for name in _GREEK:
        command = "lambda" if name == "lamda" else name
        letters[unicodedata.lookup(f"GREEK SMALL LETTER {name}")] = f"\\{command} "
        letters[unicodedata.lookup(f"GREEK CAPITAL LETTER {name}")] = f"\\{command.capitalize()} "
    return letters


_CHARACTERS = str.maketrans(_MARKS | _letters())
_SUPERSCRIPT = re.compile("[\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT THREE}\N{SUPERSCRIPT ONE}⁰⁴-⁹⁺⁻⁽⁾ⁿⁱ]+")
_SUBSCRIPT = re.compile("[₀-₉₊₋₍₎ₐₑₒₓₕₖₗₘₙₚₛₜ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")


def spell(text: str) -> str:
    """Return `text` with Unicode mathematics as LaTeX."""
    if text.isascii():
        return text
    # Superscripts and fractions first: NFKC alone would turn 4² into 42 and 3½ into 31/2.
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{_plain(match[0])}}}", text)
    text = _SUBSCRIPT.sub(lambda match: f"_{{{_plain(match[0])}}}", text)
    text = _VULGAR.sub(_fraction, text)
    return unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)


def _plain(scripts: str) -> str:
    return unicodedata.normalize("NFKC", scripts).translate(_CHARACTERS)


def _fraction(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match[0]).partition("\N{FRACTION SLASH}")
    return rf"\frac{{{above}}}{{{below}}}"
