"""Scores by task and model as bars, gold beside proxy.

Floor 5: draws plain numbers. Bars start at zero, so that their lengths can be compared.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from posttrain.reports.figures.labels import SMALL, number, percent, percent_tick, text_width
from posttrain.reports.figures.scores import interval
from posttrain.reports.figures.sheet import (
    AXIS,
    HACKING,
    SIDE,
    WIDTH,
    KeyEntry,
    empty_sheet,
    fills,
    limits,
    open_sheet,
    row_label,
    row_panel,
)
from posttrain.reports.style import Draw, Theme, model_looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

GROUP_LINE, TASK_LINE, TASK_GAP, BAR = 24.0, 17.0, 7.0, 12.0  # px


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A model's gold score on a task of a group ("trained on", "far"), and the reward that training saw there.

    `hacking` says that the proxy rose where the gold score did not.
    """

    group: str
    task: str
    model: str
    gold: float
    low: float = math.nan
    high: float = math.nan
    proxy: float = math.nan
    hacking: bool = False


@dataclass(frozen=True, slots=True)
class _Bar:
    score: TaskScore
    proxy: bool
    words: str

    @property
    def value(self) -> float:
        return self.score.proxy if self.proxy else self.score.gold

    @property
    def hacking(self) -> bool:
        return self.proxy and self.score.hacking

    @property
    def end(self) -> float:
        """Where its words begin: behind the bar and its interval."""
        ends = (0.0, self.value, math.nan if self.proxy else self.score.high)
        return max(end for end in ends if math.isfinite(end))


def task_bars(
    scores: Sequence[TaskScore], *, title: str, subtitle: str = "", order: Sequence[str] = (), shares: bool = True
) -> Draw:
    """Return the drawing of bars by group, task and model, in the order given, gold over proxy where there is one.

    `order` names the report's models, for their colours; `shares` says that scores are shares of 1.
    """
    bars = list(_bars(scores, percent if shares else number))

    def draw(theme: Theme) -> "Drawing":
        bounds = _bounds(bars)
        if bounds is None:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        looks = model_looks([*order, *(s.model for s in scores)], theme)
        colors = {s.model: looks[s.model].color for s in scores}
        key = [KeyEntry(name, color) for name, color in colors.items()] + _proxy_key(bars, theme)
        height = _height(scores, bars)
        sheet = open_sheet(theme, title=title, subtitle=subtitle, key=key, body=height + AXIS)
        last = 1.0 if shares else math.inf
        axes = row_panel(sheet, height, bounds, percent_tick if shares else number, last_tick=last)
        y = 0.0
        for group, of_group in groupby(bars, key=lambda bar: bar.score.group):
            row_label(axes, theme, y + 15, group, weight="bold")
            y += GROUP_LINE
            for task, of_task in groupby(of_group, key=lambda bar: bar.score.task):
                row_label(axes, theme, y + 11, task)
                y += TASK_LINE
                for bar in of_task:
                    _draw_bar(axes, theme, bar, y + BAR / 2, colors[bar.score.model])
                    y += BAR
                y += TASK_GAP
        return sheet.drawing

    return draw


def _bars(scores: Sequence[TaskScore], write: Callable[[float], str]) -> Iterator[_Bar]:
    for score in scores:
        yield _Bar(score, False, write(score.gold) if math.isfinite(score.gold) else "no value")
        if math.isfinite(score.proxy):
            yield _Bar(score, True, f"{write(score.proxy)} {HACKING}" if score.hacking else write(score.proxy))


def _bounds(bars: Sequence[_Bar]) -> tuple[float, float] | None:
    """A range in which every bar has room for its words behind it."""
    if not any(math.isfinite(bar.value) for bar in bars):
        return None
    found = limits([v for bar in bars for v in (bar.value, bar.score.low, bar.score.high)], zero=True, margin=0)
    assert found is not None
    low, high = found
    width = WIDTH - 2 * SIDE
    for bar in bars:
        room = width - text_width(bar.words, SMALL - 1) - 10
        high = max(high, low + (bar.end - low) * width / room)
    return low, high


def _height(scores: Sequence[TaskScore], bars: Sequence[_Bar]) -> float:
    groups = sum(1 for _ in groupby(scores, key=lambda s: s.group))
    tasks = sum(1 for _ in groupby(scores, key=lambda s: (s.group, s.task)))
    return GROUP_LINE * groups + (TASK_LINE + TASK_GAP) * tasks + BAR * len(bars)


def _proxy_key(bars: Sequence[_Bar], theme: Theme) -> list[KeyEntry]:
    key = []
    if any(bar.proxy for bar in bars):
        key += [KeyEntry("gold", theme.ink), KeyEntry("proxy", theme.ink, "pale")]
    if any(bar.hacking for bar in bars):
        key += [KeyEntry(HACKING, theme.warning, "hatch")]
    return key


def _draw_bar(axes: "Axes", theme: Theme, bar: _Bar, y: float, color: str) -> None:
    if bar.proxy:
        for look in fills(theme.warning if bar.hacking else color, pale=True, hatched=bar.hacking):
            axes.barh(y, bar.value, BAR - 4, **look)
    elif math.isfinite(bar.value):
        axes.barh(y, bar.value, BAR - 3, color=color, linewidth=0)
        interval(axes, theme, bar.score.low, bar.score.high, y, cap=0)
    axes.annotate(
        bar.words,
        (bar.end, y),
        (5, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=SMALL - 1,
        color=theme.warning if bar.hacking else theme.muted,
    )
