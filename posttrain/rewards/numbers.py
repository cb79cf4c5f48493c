"""Exact numbers from answer text: integers, decimals, fractions, mixed numbers and powers of ten.

Pure; every value is a `Fraction`, and bounds are checked on the text before a number is built. Knows no LaTeX
beyond what `latex.normalise` leaves: `\\frac{a}{b}`, `\\times10^k`, `\\cdot10^k`.
"""

import re
from fractions import Fraction

MAX_DIGITS = 4000
MAX_EXPONENT = 4000


class OutOfBounds(ValueError):
    """The text is larger, longer or deeper than the grader agrees to look at."""


# Alternatives never overlap on a run of digits, so that matching is linear in the text.
_PLAIN = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_DECIMAL = re.compile(rf"({_PLAIN})(?:(?:[eE]|\\times10\^|\\cdot10\^)\{{?([+-]?[0-9]+)\}}?)?")
_POWER_OF_TEN = re.compile(r"10\^\{?([+-]?[0-9]+)\}?")
_RATIO = re.compile(rf"([+-]?{_PLAIN})/([+-]?{_PLAIN})")
_FRAC = re.compile(rf"\\frac\{{([+-]?{_PLAIN})\}}\{{([+-]?{_PLAIN})\}}")
_MIXED = re.compile(r"([0-9]+)(?: ?\\frac\{([0-9]+)\}\{([0-9]+)\}| ([0-9]+)/([0-9]+))")


def parse_number(text: str) -> Fraction | None:
    """Return the exact value of `text` (normalised, whole; `1,234` is one number), or None when it is not a number.

    Raises OutOfBounds for more than MAX_DIGITS digits or a decimal exponent beyond MAX_EXPONENT.
    """
    if text[:1] in ("-", "+"):
        value = _unsigned(text[1:])
        return -value if value is not None and text[0] == "-" else value
    return _unsigned(text)


def _unsigned(text: str) -> Fraction | None:
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if match := _POWER_OF_TEN.fullmatch(text):
        return _decimal("1", match[1])
    if match := _DECIMAL.fullmatch(text):
        return _decimal(match[1], match[2] or "0")
    if match := _RATIO.fullmatch(text) or _FRAC.fullmatch(text):
        return _divide(_signed(match[1]), _signed(match[2]))
    if match := _MIXED.fullmatch(text):
        part = _divide(_decimal(match[2] or match[4]), _decimal(match[3] or match[5]))
        return None if part is None else _decimal(match[1]) + part
    return None


def _signed(text: str) -> Fraction:
    value = _decimal(text.lstrip("+-"))
    return -value if text.startswith("-") else value


def _divide(numerator: Fraction, denominator: Fraction) -> Fraction | None:
    return None if denominator == 0 else numerator / denominator


def _decimal(mantissa: str, exponent: str = "0") -> Fraction:
    if len(mantissa) > MAX_DIGITS or len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT:
        raise OutOfBounds("a number with too many digits")
    whole, _, decimals = mantissa.partition(".")
    shift = int(exponent) - len(decimals)
    digits = int(whole + decimals or "0")
    return Fraction(digits * 10**shift) if shift >= 0 else Fraction(digits, 10**-shift)
