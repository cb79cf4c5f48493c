"""Texts of figures: how numbers are written, what a text measures, how it is shortened and kept off its neighbours.

Floor 5: pure but for matplotlib's font metrics. Lengths are in CSS px.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from posttrain.reports.style import FONT

TITLE, TEXT, SMALL = 13.0, 11.0, 10.0  # sizes of type
MINUS = "\N{MINUS SIGN}"


def percent(share: float, digits: int = 1) -> str:
    """Write a share of 1 as a percentage, "-" where it is not finite."""
    return f"{100 * share:.{digits}f}%".replace("-", MINUS) if math.isfinite(share) else "-"


def percent_tick(share: float) -> str:
    """Write a share with no more digits than it has."""
    return f"{100 * share:.4g}%".replace("-", MINUS)


def number(value: float) -> str:
    """Write a number with three digits, thousands and millions by letters, "-" where it is not finite."""
    if not math.isfinite(value):
        return "-"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9995:
            return f"{value / unit:.3g}{letter}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """Write seconds in the two largest units that they fill, "-" where they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    if round(seconds) < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a line of text in the figures' font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=[FONT], size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0])


def fit(text: str, width: float, size: float, weight: str = "normal") -> str:
    """Return the text on one line, or its beginning and end around an ellipsis where it is wider than `width`."""
    text = " ".join(text.split())
    if text_width(text, size, weight) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        tail = kept // 2
        short = f"{text[: kept - tail]}…{text[-tail:]}"
        if text_width(short, size, weight) <= width:
            return short
    return "…"


def wrap(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Return the text in lines of at most `width`, cut between words; a word that is wider is shortened."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size, weight) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(fit(word, width, size, weight))
    return lines


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions near those wanted, in their order, at least `gap` apart and in [low, high] while they fit.

    Neighbours that are too close form a block around the mean of what they want (isotonic regression by pooling).
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    blocks: list[list[float]] = []  # each the offsets-free wishes of its labels
    for rank, index in enumerate(order):
        blocks.append([wanted[index] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    free = [_mean(block) for block in blocks for _ in block]
    last = high - (len(wanted) - 1) * gap
    positions = [0.0] * len(wanted)
    for rank, (index, value) in enumerate(zip(order, free, strict=True)):
        positions[index] = max(low, min(value, last)) + rank * gap
    return positions


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
