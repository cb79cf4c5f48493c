"""One spelling for what LaTeX and Unicode write in several ways.

Pure text work in linear time; the result is for comparison and parsing, never for display.
"""

import re
import unicodedata

_CHARACTERS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{DEGREE SIGN}": "",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{UNION}": r"\cup ",
        "\N{ELEMENT OF}": r"\in ",
        "\N{PLUS-MINUS SIGN}": r"\pm ",
        "\N{SQUARE ROOT}": r"\sqrt ",
        "~": " ",
    }
)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")

_WRAPPER = r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|bb)|mbox|operatorname)\s*\{([^{}]*)\}"
_MATH_DELIMITER = r"(?<!\\)\\[\[\]()]"
_SPACE_MACRO = r"(?<!\\)\\[;:> ]|\\(?:q?quad|displaystyle|left|right|[bB]igg?[lr]?)(?![A-Za-z])"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\{,\}|,\s*\\!\s*", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\,", " "),
        (r"\\([$%])", r"\1"),
        (r"[$€£]", ""),
        (_MATH_DELIMITER, " "),
        (_SPACE_MACRO, " "),
        (_WRAPPER, r" \1 "),
        (r"\\(?:mathbf|mathrm|boldsymbol|bm|rm|bf|boxed|fbox|framebox)(?![A-Za-z])", ""),
        (r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])", ""),
        (r"(?<=[0-9})\]])\s?,?\s?(?:and|or)\s", ", "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s?([0-9A-Za-z])\s?(?=[0-9A-Za-z{])", r"\\frac{\1}"),
        (r"(\\frac\s?\{[^{}]*\})\s?([0-9A-Za-z])", r"\1{\2}"),
        (r"\\frac\s+\{", r"\\frac{"),
        (r"\\sqrt\s?([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"([_^])\s?\{([0-9A-Za-z])\}", r"\1\2"),
        # a space matters only between two digits (1 2 is not 12) and between two letters (\cot x, words)
        (r"\s+(?![0-9A-Za-z])|(?<![0-9A-Za-z\s])\s+|(?<=[0-9])\s+(?=[A-Za-z])|(?<=[A-Za-z])\s+(?=[0-9])", ""),
    )
]


def normalise(text: str) -> str:
    """Return `text` without wrappers, spacing, currency, degree signs and trailing punctuation, macros spelled out."""
    # Superscripts and fractions first: NFKC alone would turn 4² into 42 and 3½ into 31/2.
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)
    text = " ".join(text.replace("\N{FRACTION SLASH}", "/").split())
    for pattern, replacement in _REWRITES:
        text = " ".join(pattern.sub(replacement, text).split())
    return text.rstrip(".,;:")
