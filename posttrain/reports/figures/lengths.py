"""Lengths of completions: against their reward, and of right and wrong ones.

Floor 5: draws plain numbers; lengths are in tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.reports.figures.labels import SMALL, TEXT, fit, number
from posttrain.reports.figures.sheet import (
    AXIS,
    AXIS_NAME,
    WIDTH,
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
from posttrain.reports.style import Draw, Look, Theme, model_looks
from posttrain.reports.visible import visible

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

CLOUD, CLOUD_TITLE = 120.0, 36.0  # px
MOST_DOTS = 1200  # of a figure; a page of more is slow and shows no more
ROW, HALF = 64.0, 21.0  # px of a model, and of the higher of its two densities
BINS = 32


@dataclass(frozen=True, slots=True)
class Cloud:
    """Length and reward of a model's samples; `slope` is reward per 100 tokens, and `slope_text` says it in words."""

    model: str
    lengths: Sequence[float]
    rewards: Sequence[float]
    slope: float = math.nan
    slope_text: str = ""


def length_scatter(
    clouds: Sequence[Cloud], *, title: str, subtitle: str = "Reward over tokens.", order: Sequence[str] = ()
) -> Draw:
    """Return the drawing of a panel for each model: a dot for each sample, and the slope through their centre.

    Of very many samples evenly spaced ones are drawn, and the subtitle says so.
    """

    def draw(theme: Theme) -> "Drawing":
        xs = limits(length for cloud in clouds for length in cloud.lengths)
        ys = limits(value for cloud in clouds for value in cloud.rewards)
        if xs is None or ys is None:
            return empty_sheet(theme, title=title)
        looks = model_looks([*order, *(cloud.model for cloud in clouds)], theme)
        columns = min(2, len(clouds))
        rows = math.ceil(len(clouds) / columns)
        body = rows * (CLOUD + CLOUD_TITLE) + AXIS + AXIS_NAME
        most = MOST_DOTS // len(clouds)
        left_out = any(len(cloud.lengths) > most for cloud in clouds)
        words = f"{subtitle} At most {most} samples of each model are drawn." if left_out else subtitle
        sheet = open_sheet(theme, title=title, subtitle=words, body=body)
        for i, cloud in enumerate(clouds):
            row, column = divmod(i, columns)
            axes = _cloud_axes(sheet, row, column, columns)
            axes.set_xlim(*xs)
            axes.set_ylim(*ys)
            value_ticks(axes.xaxis, number, 4)
            value_ticks(axes.yaxis, number, 4)
            axes.grid()
            if column:
                axes.set_yticklabels([])
            if i + columns < len(clouds):
                axes.set_xticklabels([])
            else:
                axes.set_xlabel("tokens", fontsize=SMALL, labelpad=1)
            _cloud(axes, theme, cloud, looks[cloud.model], most)
        return sheet.drawing

    return draw


def _cloud_axes(sheet: Sheet, row: int, column: int, columns: int) -> "Axes":
    gap, left, right = 14.0, 38.0, 8.0
    width = (WIDTH - left - right - gap * (columns - 1)) / columns
    start = left + column * (width + gap)
    axes = sheet.panel(row * (CLOUD + CLOUD_TITLE) + CLOUD_TITLE, CLOUD, left=start, right=WIDTH - start - width)
    axes.spines["left"].set_visible(False)
    return axes


def _cloud(axes: "Axes", theme: Theme, cloud: Cloud, look: Look, most: int) -> None:
    pairs = [(x, y) for x, y in zip(cloud.lengths, cloud.rewards, strict=True) if math.isfinite(x + y)]
    drawn = pairs if len(pairs) <= most else [pairs[i * len(pairs) // most] for i in range(most)]
    room = axes.bbox.width
    words = cloud.slope_text if pairs else "no values"
    for text, size, above, color in ((cloud.model, TEXT, 20, theme.ink), (words, SMALL - 1, 7, theme.muted)):
        axes.annotate(
            fit(visible(text), room, size),
            (0, 1),
            (0, above),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=size,
            color=color,
        )
    if not pairs:
        return
    xs, ys = zip(*drawn, strict=True)
    axes.plot(xs, ys, "o", color=look.color, alpha=0.5, markersize=3.2, markeredgewidth=0)
    if math.isfinite(cloud.slope):
        x, y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        axes.axline((x, y), slope=cloud.slope / 100, color=theme.ink, linewidth=1.5)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of a model's right and wrong completions."""

    model: str
    right: Sequence[float]
    wrong: Sequence[float]


def length_densities(
    lengths: Sequence[Lengths], *, title: str, subtitle: str = "", limit: tuple[str, float] | None = None
) -> Draw:
    """Return the drawing of a row for each model: right completions above its line, wrong ones below, as histograms.

    Heights are shares of the model's completions of that kind. `limit` is words for the longest length allowed, and
    that length; a histogram, unlike a smooth density, shows how many pile up there.
    """

    def draw(theme: Theme) -> "Drawing":
        bounds = limits((v for row in lengths for v in (*row.right, *row.wrong)), margin=0.02)
        if bounds is None:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        key = [KeyEntry("right", theme.parts[0]), KeyEntry("wrong", theme.parts[1])]
        height = ROW * len(lengths) + (14 if limit else 0)
        body = height + AXIS + AXIS_NAME
        sheet = open_sheet(theme, title=title, subtitle=subtitle, key=key, body=body)
        axes = row_panel(sheet, height, bounds, number)
        axes.set_xlabel("tokens", fontsize=SMALL, labelpad=1)
        for i, row in enumerate(lengths):
            middle = ROW * i + 17 + HALF
            row_label(axes, theme, ROW * i + 11, row.model, f"{len(row.right)} right, {len(row.wrong)} wrong")
            axes.axhline(middle, color=theme.muted, linewidth=0.8)
            _mirrored(axes, theme, row, middle, bounds)
        if limit:
            line_at(axes, theme, limit[1], limit[0], height)
        return sheet.drawing

    return draw


def _mirrored(axes: "Axes", theme: Theme, row: Lengths, middle: float, bounds: tuple[float, float]) -> None:
    import numpy as np

    edges = np.linspace(*bounds, BINS + 1)
    heights = [_histogram(values, edges) for values in (row.right, row.wrong)]
    highest = max(float(found.max()) for found in heights)
    if highest == 0:
        return
    for found, color, sign in zip(heights, theme.parts[:2], (-1, 1), strict=True):
        if found.any():
            axes.stairs(
                middle + sign * HALF * found / highest, edges, baseline=middle, fill=True, color=color, alpha=0.75
            )


def _histogram(values: Sequence[float], edges: "np.ndarray") -> "np.ndarray":
    """Shares of the finite values by bin."""
    import numpy as np

    finite = [value for value in values if math.isfinite(value)]
    counts, _ = np.histogram(finite, edges)
    return counts / max(1, len(finite))
