"""Shares of a whole: how completions ended, what format and correctness have to do with each other, what runs cost.

Floor 5: draws plain numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.reports.figures.labels import SMALL, TEXT, fit, number, percent, percent_tick, text_width
from posttrain.reports.figures.sheet import (
    AXIS,
    SIDE,
    WIDTH,
    KeyEntry,
    empty_sheet,
    limits,
    open_sheet,
    row_label,
    row_panel,
)
from posttrain.reports.style import Draw, Theme
from posttrain.reports.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

ROW = 38.0  # px, of a model: its name over its bar
CELL, MATRIX_TITLE, MATRIX_ROW_NAME = 36.0, 34.0, 42.0  # px


def outcome_bars(
    shares: Sequence[tuple[str, Mapping[str, float]]], *, title: str, subtitle: str = "", whole: str = "right"
) -> Draw:
    """Return the drawing of a bar for each model, divided by outcome in the order of the first model's.

    Shares are of 1; what they leave over stays empty, and one that is not finite counts as 0. `whole` is the outcome
    whose share stands beside the name.
    """

    def draw(theme: Theme) -> "Drawing":
        outcomes = list(dict.fromkeys(outcome for _, found in shares for outcome in found))
        if not any(math.isfinite(value) and value for _, found in shares for value in found.values()):
            return empty_sheet(theme, title=title, subtitle=subtitle)
        colors = {outcome: theme.parts[i % len(theme.parts)] for i, outcome in enumerate(outcomes)}
        key = [KeyEntry(outcome, color) for outcome, color in colors.items()]
        height = ROW * len(shares)
        sheet = open_sheet(theme, title=title, subtitle=subtitle, key=key, body=height + AXIS)
        axes = row_panel(sheet, height, (0, 1), percent_tick)
        for i, (model, found) in enumerate(shares):
            beside = f"{percent(found[whole])} {whole}" if whole in found else ""
            row_label(axes, theme, ROW * i + 13, model, beside)
            start = 0.0
            for outcome, color in colors.items():
                start = _segment(axes, theme, start, found.get(outcome, 0.0), ROW * i + 26, color)
        return sheet.drawing

    return draw


def _segment(axes: "Axes", theme: Theme, start: float, share: float, y: float, color: str) -> float:
    """Draw a part of a bar with its share where it fits, and return where the part ends."""
    if not math.isfinite(share) or share <= 0:
        return start
    axes.barh(y, share, 16, left=start, facecolor=color, edgecolor=theme.paper, linewidth=1)
    words = percent(share, 0)
    if text_width(words, SMALL - 1) + 8 < share * (WIDTH - 2 * SIDE):
        axes.text(start + share / 2, y, words, ha="center", va="center_baseline", fontsize=SMALL - 1, color=theme.paper)
    return start + share


@dataclass(frozen=True, slots=True)
class FormatCounts:
    """Completions of a model by whether they kept the answer format and were right (in any format)."""

    model: str
    kept_right: int
    kept_wrong: int
    broken_right: int
    broken_wrong: int


def format_matrix(counts: Sequence[FormatCounts], *, title: str, subtitle: str = "") -> Draw:
    """Return the drawing of a two by two table of shares for each model."""

    def draw(theme: Theme) -> "Drawing":
        if not counts:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        columns = min(2, len(counts))
        pitch = MATRIX_TITLE + 2 * CELL + 12
        rows = math.ceil(len(counts) / columns)
        sheet = open_sheet(theme, title=title, subtitle=subtitle, body=pitch * rows)
        width = (WIDTH - 20) / 2
        for i, found in enumerate(counts):
            row, column = divmod(i, columns)
            _matrix(sheet.overlay, theme, found, column * (width + 20), sheet.top + row * pitch, width)
        return sheet.drawing

    return draw


def _matrix(overlay: "Axes", theme: Theme, found: FormatCounts, x: float, y: float, width: float) -> None:
    from matplotlib.patches import Rectangle

    total = found.kept_right + found.kept_wrong + found.broken_right + found.broken_wrong
    side = (width - MATRIX_ROW_NAME) / 2
    words = f"n = {total}"
    room = width - text_width(words, SMALL - 1) - 8
    overlay.text(x, y + 11, fit(visible(found.model), room, TEXT), fontsize=TEXT)
    overlay.text(x + width, y + 11, words, fontsize=SMALL - 1, color=theme.muted, ha="right")
    for column, name in enumerate(("right", "wrong")):
        middle = x + MATRIX_ROW_NAME + side * (column + 0.5)
        overlay.text(middle, y + 28, name, fontsize=SMALL, color=theme.muted, ha="center")
    cells = (("kept", found.kept_right, found.kept_wrong), ("broken", found.broken_right, found.broken_wrong))
    for row, (name, *values) in enumerate(cells):
        top = y + MATRIX_TITLE + row * CELL
        overlay.text(x, top + CELL / 2, name, fontsize=SMALL, color=theme.muted, va="center")
        for column, count in enumerate(values):
            share = count / total if total else math.nan
            left = x + MATRIX_ROW_NAME + side * column
            shade = (theme.accent, 0.04 + 0.4 * share) if total else "none"
            overlay.add_patch(
                Rectangle((left, top), side - 2, CELL - 2, facecolor=shade, edgecolor=theme.grid, linewidth=0.8)
            )
            overlay.text(left + side / 2 - 1, top + CELL / 2 - 1, percent(share), fontsize=12, ha="center", va="center")


def cost_bars(
    costs: Sequence[tuple[str, float]], *, title: str, subtitle: str = "", write: Callable[[float], str] = number
) -> Draw:
    """Return the drawing of a bar for each stage and its cost; `write` gives the cost in words."""

    def draw(theme: Theme) -> "Drawing":
        bounds = limits((cost for _, cost in costs), zero=True)
        if bounds is None:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        height = ROW * len(costs)
        sheet = open_sheet(theme, title=title, subtitle=subtitle, body=height + 4)
        axes = row_panel(sheet, height, bounds, write)
        axes.set_xticks([])
        for i, (stage, cost) in enumerate(costs):
            row_label(axes, theme, ROW * i + 13, stage, write(cost) if math.isfinite(cost) else "no value")
            axes.barh(ROW * i + 25, bounds[1], 10, facecolor=theme.panel, linewidth=0)
            if math.isfinite(cost):
                axes.barh(ROW * i + 25, cost, 10, facecolor=theme.accent, linewidth=0)
        return sheet.drawing

    return draw
