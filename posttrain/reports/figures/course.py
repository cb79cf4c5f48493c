"""What changed over the steps of a training: small panels under one another that share their steps.

Floor 5: draws plain numbers. A value that is not finite is a gap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.reports.figures.labels import SMALL, TEXT, number, text_width
from posttrain.reports.figures.sheet import (
    AXIS,
    AXIS_NAME,
    WIDTH,
    End,
    Sheet,
    empty_sheet,
    end_room,
    label_ends,
    limits,
    open_sheet,
    value_ticks,
)
from posttrain.reports.style import Draw, Theme
from posttrain.reports.visible import visible

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PANEL, PANEL_TITLE = 82.0, 20.0  # px
FEW = 12  # points that are drawn as dots too


@dataclass(frozen=True, slots=True)
class Line:
    """A value at each step; `part` is its place among a reward's terms, which gives its colour in every panel."""

    label: str
    values: tuple[float, ...]
    part: int | None = None


@dataclass(frozen=True, slots=True)
class CoursePanel:
    """Lines on one scale; stacked ones are terms of a sum, which is drawn over them."""

    title: str
    lines: tuple[Line, ...]
    stacked: bool = False


def course(
    steps: Sequence[int],
    panels: Sequence[CoursePanel],
    *,
    title: str,
    subtitle: str = "",
    split: tuple[int, str] | None = None,
) -> Draw:
    """Return the drawing of panels over steps, with a line and its words at the step where proxy and gold part."""
    for panel in panels:
        for line in panel.lines:
            if len(line.values) != len(steps):
                raise ValueError(f"{panel.title}, {line.label}: {len(line.values)} values for {len(steps)} steps")

    def draw(theme: Theme) -> "Drawing":
        shown = [p for p in panels if any(math.isfinite(v) for line in p.lines for v in line.values)]
        if not shown:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        head = 14 if split else 0
        pitch = PANEL + PANEL_TITLE
        body = head + pitch * len(shown) + AXIS + AXIS_NAME
        sheet = open_sheet(theme, title=title, subtitle=subtitle, body=body)
        right = max((end_room(line.label for line in p.lines) for p in shown if len(p.lines) > 1), default=8.0)
        for i, panel in enumerate(shown):
            top = head + pitch * i + PANEL_TITLE
            axes = _panel(sheet, panel, steps, top, right, last=i == len(shown) - 1)
            if split:
                axes.axvline(split[0], color=theme.warning, linewidth=1.2, linestyle=(0, (4, 2)))
                if i == 0:
                    _split_label(sheet, axes, split)
        return sheet.drawing

    return draw


def _panel(sheet: Sheet, panel: CoursePanel, steps: Sequence[int], top: float, right: float, *, last: bool) -> "Axes":
    theme = sheet.theme
    axes = sheet.panel(top, PANEL, left=38, right=right)
    sheet.overlay.text(0, sheet.top + top - 7, visible(panel.title), fontsize=TEXT, fontweight="bold")
    ends = _stack(axes, theme, panel, steps) if panel.stacked else _lines(axes, theme, panel, steps)
    axes.set_xlim(*(limits(steps, margin=0.01) or (0, 1)))
    value_ticks(axes.yaxis, number, 3)
    value_ticks(axes.xaxis, number, 5, whole=True)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    if last:
        axes.set_xlabel("step", fontsize=SMALL, labelpad=1)
    else:
        axes.set_xticklabels([])
    if len(panel.lines) > 1:
        label_ends(axes, theme, ends, right)
    return axes


def _lines(axes: "Axes", theme: Theme, panel: CoursePanel, steps: Sequence[int]) -> list[End]:
    values = [value for line in panel.lines for value in line.values]
    axes.set_ylim(*(limits(values, margin=0.08) or (0, 1)))
    ends = []
    for i, line in enumerate(panel.lines):
        color = theme.accent if i == 0 and line.part is None else _part_color(theme, line, i)
        _plot_with_gaps(axes, steps, line.values, color=color)
        ends += _end(line, steps, line.values, color)
    return ends


def _part_color(theme: Theme, line: Line, place: int) -> str:
    return theme.parts[(place if line.part is None else line.part) % len(theme.parts)]


def _plot_with_gaps(axes: "Axes", xs: Sequence[float], ys: Sequence[float], *, color: str, width: float = 1.8) -> None:
    """Draw a line with a gap where a value is not finite; few points, and those between two gaps, as dots too."""
    finite = [math.isfinite(y) for y in ys]
    alone = [
        i
        for i, known in enumerate(finite)
        if known and not any(finite[j] for j in (i - 1, i + 1) if 0 <= j < len(finite))
    ]
    dots = list(range(len(xs))) if len(xs) <= FEW else alone
    axes.plot(xs, ys, color=color, linewidth=width, marker="o", markersize=4, markevery=dots, clip_on=False)


def _stack(axes: "Axes", theme: Theme, panel: CoursePanel, steps: Sequence[int]) -> list[End]:
    """Terms above zero on one another, those below it under one another, and their sum as a line."""
    import numpy as np

    values = np.array([line.values for line in panel.lines], dtype=float)  # (lines, steps)
    known = np.isfinite(values).any(axis=0)
    filled = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    above = np.cumsum(np.clip(filled, 0, None), axis=0)
    below = np.cumsum(np.clip(filled, None, 0), axis=0)
    axes.set_ylim(*(limits([*above.ravel(), *below.ravel()], zero=True) or (0, 1)))
    ends = []
    for i, line in enumerate(panel.lines):
        color = _part_color(theme, line, i)
        for edges, sign in ((above, 1), (below, -1)):
            if (sign * filled[i] > 0).any():
                start = edges[i - 1] if i else np.zeros(len(steps))
                axes.fill_between(steps, start, edges[i], where=known, color=color, alpha=0.55, linewidth=0)
        ends += _end(line, steps, _middles(above, below, filled, i), color)
    total = np.where(known, filled.sum(axis=0), np.nan)
    _plot_with_gaps(axes, steps, total.tolist(), color=theme.ink, width=1.5)
    return ends


def _middles(above: "np.ndarray", below: "np.ndarray", filled: "np.ndarray", i: int) -> list[float]:
    edges = [up if value >= 0 else down for up, down, value in zip(above[i], below[i], filled[i], strict=True)]
    return [float(edge - value / 2) for edge, value in zip(edges, filled[i], strict=True)]


def _end(line: Line, steps: Sequence[int], places: Sequence[float], color: str) -> list[End]:
    """The last step at which the line has a value."""
    last = max((i for i, value in enumerate(line.values) if math.isfinite(value)), default=None)
    return [] if last is None else [End(line.label, steps[last], places[last], color)]


def _split_label(sheet: Sheet, axes: "Axes", split: tuple[int, str]) -> None:
    step, words = split
    x = float(axes.transData.transform((step, 0))[0])
    half = text_width(words, SMALL) / 2
    sheet.overlay.text(
        min(max(x, half), WIDTH - half),
        sheet.top + 8,
        words,
        ha="center",
        fontsize=SMALL,
        color=sheet.theme.warning,
    )
