"""Scores by model as bars with intervals.

Floor 5: draws plain numbers. Bars start at zero, so that their lengths can be compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.reports.figures.labels import number, percent, percent_tick
from posttrain.reports.figures.sheet import (
    AXIS,
    HACKING,
    KeyEntry,
    empty_sheet,
    fills,
    limits,
    line_at,
    open_sheet,
    row_label,
    row_panel,
    share_limits,
)
from posttrain.reports.style import Draw, Theme, model_looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

ROW = 38.0  # px, of a model: its name over its bar


@dataclass(frozen=True, slots=True)
class Score:
    """A model's mean score with the bounds of its 95% interval, and the mean of each seed where there are several.

    `suspected` says that the score is a proxy that rose where the truth did not.
    """

    model: str
    mean: float
    low: float = math.nan
    high: float = math.nan
    seeds: tuple[float, ...] = ()
    suspected: bool = False


def score_bars(
    scores: Sequence[Score],
    *,
    title: str,
    subtitle: str = "",
    order: Sequence[str] = (),
    shares: bool = True,
    reference: tuple[str, float] | None = None,
) -> Draw:
    """Return the drawing of a bar for each model, with its interval and a dot for each seed.

    `order` names the report's models, for their colours; `shares` says that scores are shares of 1; `reference` is a
    named value, such as chance, drawn as a line.
    """

    def draw(theme: Theme) -> "Drawing":
        values = [v for s in scores for v in (s.mean, s.low, s.high, *s.seeds)]
        if not any(math.isfinite(value) for value in values):
            return empty_sheet(theme, title=title, subtitle=subtitle)
        if reference:
            values.append(reference[1])
        bounds = share_limits(values) if shares else limits(values, zero=True)
        assert bounds is not None
        looks = model_looks([*order, *(s.model for s in scores)], theme)
        height = ROW * len(scores) + (14 if reference else 4)
        key = [KeyEntry(HACKING, theme.warning, "hatch")] if any(score.suspected for score in scores) else []
        sheet = open_sheet(theme, title=title, subtitle=subtitle, key=key, body=height + AXIS)
        axes = row_panel(sheet, height, bounds, percent_tick if shares else number)
        for i, score in enumerate(scores):
            row_label(axes, theme, ROW * i + 13, score.model, _value(score, shares))
            _bar(axes, theme, score, ROW * i + 26, looks[score.model].color)
        if reference:
            line_at(axes, theme, reference[1], reference[0], height)
        return sheet.drawing

    return draw


def _value(score: Score, shares: bool) -> str:
    write: Callable[[float], str] = percent if shares else number
    if not math.isfinite(score.mean):
        return "no value"
    if not math.isfinite(score.low + score.high):
        return write(score.mean)
    low, high = (write(end).rstrip("%") for end in (score.low, score.high))
    return f"{write(score.mean)}  ({low} to {high})"


def _bar(axes: "Axes", theme: Theme, score: Score, y: float, color: str) -> None:
    if not math.isfinite(score.mean):
        return
    for look in fills(theme.warning if score.suspected else color, pale=score.suspected, hatched=score.suspected):
        axes.barh(y, score.mean, 13, **look)
    interval(axes, theme, score.low, score.high, y)
    if len(score.seeds) > 1:
        axes.plot(
            score.seeds,
            [y] * len(score.seeds),
            "o",
            markersize=5,
            markerfacecolor=theme.paper,
            markeredgecolor=theme.ink,
            markeredgewidth=1,
            clip_on=False,
        )


def interval(axes: "Axes", theme: Theme, low: float, high: float, y: float, *, cap: float = 3.5) -> None:
    """Draw a horizontal interval with caps at its ends, edged in the paper's colour so that it shows on a bar."""
    if not math.isfinite(low + high):
        return
    for width, color in ((3.6, theme.paper), (1.5, theme.ink)):
        axes.plot([low, high], [y, y], color=color, linewidth=width, solid_capstyle="butt", clip_on=False)
        for end in (low, high) if cap else ():
            axes.plot([end, end], [y - cap, y + cap], color=color, linewidth=width, clip_on=False)
