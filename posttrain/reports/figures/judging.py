"""How well preferences are told: a reward model's calibration and accuracy, and win rates by a judge.

Floor 5: draws plain numbers; accuracies and rates are shares of 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.reports.figures.labels import SMALL, number, percent, percent_tick
from posttrain.reports.figures.scores import interval
from posttrain.reports.figures.sheet import (
    AXIS,
    AXIS_NAME,
    LINE,
    KeyEntry,
    Sheet,
    empty_sheet,
    limits,
    line_at,
    open_sheet,
    row_label,
    row_panel,
    value_ticks,
)
from posttrain.reports.style import Draw, Theme, model_looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME, DIAGRAM, COUNTS = 20.0, 230.0, 50.0  # px: what a y axis means, over its panel; the panels
ROW = 38.0  # px of a group


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of about the same confidence: its mean, the share that is right with its 95% interval, their number."""

    confidence: float
    accuracy: float
    count: int
    low: float = math.nan
    high: float = math.nan


def reliability(bins: Sequence[Bin], *, title: str, subtitle: str = "", error: float = math.nan) -> Draw:
    """Return the drawing of accuracy over confidence, with the number of pairs of each bin under it.

    Confidence is the model's probability for what it prefers or for the chosen one; `error` is the expected
    calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3), a share of 1.
    """

    def draw(theme: Theme) -> "Drawing":
        known = [b for b in bins if b.count and math.isfinite(b.confidence + b.accuracy)]
        if not known:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        body = 2 * NAME + DIAGRAM + 6 + COUNTS + AXIS + AXIS_NAME
        sheet = open_sheet(theme, title=title, subtitle=subtitle, body=body)
        start = 0.5 if min(b.confidence for b in known) >= 0.5 else 0.0
        axes = _shares_panel(sheet, "share right", 0, DIAGRAM, start)
        lowest = min([start, *(v for b in known for v in (b.accuracy, b.low) if math.isfinite(v))])
        axes.set_ylim(math.floor(lowest * 10) / 10, 1.0)
        value_ticks(axes.yaxis, percent_tick, 5)
        axes.grid()
        axes.set_xticklabels([])
        axes.axline((start, start), (1, 1), color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        for found in known:
            axes.plot([found.confidence] * 2, [found.low, found.high], color=theme.accent, linewidth=1.4)
        xs, ys = [b.confidence for b in known], [b.accuracy for b in known]
        axes.plot(xs, ys, "o-", color=theme.accent, linewidth=1.6, markersize=6, clip_on=False)
        if math.isfinite(error):
            axes.text(
                0.03,
                0.94,
                f"calibration error {percent(error)}",
                transform=axes.transAxes,
                va="top",
                fontsize=SMALL,
                bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 2},
            )
        _bin_counts(sheet, theme, known, start)
        return sheet.drawing

    return draw


def _shares_panel(sheet: Sheet, name: str, top: float, height: float, start: float) -> "Axes":
    sheet.overlay.text(0, sheet.top + top + 10, name, fontsize=SMALL, color=sheet.theme.muted)
    axes = sheet.panel(top + NAME, height, left=40, right=14)
    axes.set_xlim(start, 1)
    value_ticks(axes.xaxis, percent_tick, 5)
    axes.spines["left"].set_visible(False)
    return axes


def _bin_counts(sheet: Sheet, theme: Theme, bins: Sequence[Bin], start: float) -> None:
    axes = _shares_panel(sheet, "pairs", NAME + DIAGRAM + 6, COUNTS, start)
    axes.set_ylim(0, max(b.count for b in bins))
    value_ticks(axes.yaxis, number, 2)
    axes.bar([b.confidence for b in bins], [b.count for b in bins], 0.035 * (1 - start), color=theme.muted)
    axes.set_xlabel("confidence", fontsize=SMALL, labelpad=1)


@dataclass(frozen=True, slots=True)
class GroupAccuracy:
    """The share right of a group of pairs ("chosen is longer by 50 to 100 tokens") with its 95% interval."""

    label: str
    accuracy: float
    low: float
    high: float
    count: int


def accuracy_by_group(groups: Sequence[GroupAccuracy], *, title: str, subtitle: str = "", chance: float = 0.5) -> Draw:
    """Return the drawing of a dot with its interval for each group, and a line at chance."""

    def draw(theme: Theme) -> "Drawing":
        known = [v for g in groups for v in (g.accuracy, g.low, g.high) if math.isfinite(v)]
        if not known:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        height = ROW * len(groups) + LINE
        sheet = open_sheet(theme, title=title, subtitle=subtitle, body=height + AXIS)
        axes = row_panel(sheet, height, (0, 1), percent_tick)
        line_at(axes, theme, chance, f"chance {percent_tick(chance)}", height)
        for i, group in enumerate(groups):
            y = ROW * i + 25
            value = f"{percent(group.accuracy)} of {group.count}" if math.isfinite(group.accuracy) else "no pairs"
            row_label(axes, theme, ROW * i + 13, group.label, value)
            interval(axes, theme, group.low, group.high, y)
            axes.plot([group.accuracy], [y], "o", color=theme.accent, markersize=7, clip_on=False)
        return sheet.drawing

    return draw


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of prompts on which a judge prefers the model to the baseline, ties counted half, with 95% intervals.

    `controlled` is the rate at equal length; `ties` the share of ties.
    """

    model: str
    raw: float
    raw_low: float = math.nan
    raw_high: float = math.nan
    controlled: float = math.nan
    controlled_low: float = math.nan
    controlled_high: float = math.nan
    ties: float = math.nan


def win_rates(
    rates: Sequence[WinRate], *, title: str, baseline: str, subtitle: str = "", order: Sequence[str] = ()
) -> Draw:
    """Return the drawing of raw and length-controlled win rates against the baseline, with a line at 50%."""

    def draw(theme: Theme) -> "Drawing":
        if limits(v for rate in rates for v in (rate.raw, rate.controlled)) is None:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        looks = model_looks([*order, *(rate.model for rate in rates)], theme)
        pitch = ROW + 12
        height = pitch * len(rates) + LINE
        key = [KeyEntry("raw", theme.ink, "ring"), KeyEntry("at equal length", theme.ink, "dot")]
        sheet = open_sheet(theme, title=title, subtitle=subtitle, key=key, body=height + AXIS)
        axes = row_panel(sheet, height, (0, 1), percent_tick)
        line_at(axes, theme, 0.5, f"50%: as good as {baseline}", height)
        for i, rate in enumerate(rates):
            y, color = pitch * i, looks[rate.model].color
            row_label(axes, theme, y + 13, rate.model, _rate_words(rate))
            interval(axes, theme, rate.raw_low, rate.raw_high, y + 25)
            axes.plot([rate.raw], [y + 25], "o", color=color, markerfacecolor=theme.paper, markersize=7, clip_on=False)
            interval(axes, theme, rate.controlled_low, rate.controlled_high, y + 38)
            axes.plot([rate.controlled], [y + 38], "o", color=color, markersize=7, clip_on=False)
        return sheet.drawing

    return draw


def _rate_words(rate: WinRate) -> str:
    words = [percent(rate.raw)]
    if math.isfinite(rate.controlled):
        words.append(f"{percent(rate.controlled)} at equal length")
    if math.isfinite(rate.ties):
        words.append(f"{percent(rate.ties, 0)} ties")
    return ", ".join(words)
