"""The sheet a figure is drawn on: heading, key and panels, all placed in CSS px from the top left.

Floor 5: knows no data. A sheet is as wide as a column of a page and a phone's screen, and as high as its content.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from posttrain.reports.figures.labels import SMALL, TEXT, TITLE, fit, spread, text_width, wrap
from posttrain.reports.style import HACKING_HATCH, PX_PER_INCH, Theme
from posttrain.reports.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Drawing

WIDTH = 368.0  # of a sheet: a phone of 400 px less its page's margins
SIDE = 6.0  # left and right of row charts, so that end ticks have room
AXIS = 22.0  # under a panel, for the labels of its x ticks
AXIS_NAME = 15.0  # more where the x axis has a name
LINE = 15.0  # of text
HACKING = "suspected hacking"  # where a proxy rose without the truth
SAMPLE = 14.0  # the width of a key's sample
LEADER = 24.0  # from the end of a line to its name, at most


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A sample of a look, and what it means."""

    label: str
    color: str
    kind: Literal["fill", "pale", "hatch", "line", "dashed", "dot", "ring"] = "fill"


@dataclass(frozen=True, slots=True)
class Sheet:
    """A drawing with its heading; `top` is where panels may begin, `overlay` has px coordinates."""

    theme: Theme
    drawing: "Drawing"
    overlay: "Axes"
    top: float
    height: float

    def panel(self, top: float, height: float, *, left: float = SIDE, right: float = SIDE) -> "Axes":
        """Return axes of `height`, `top` below the heading, with margins to the sheet's sides."""
        bottom = self.height - self.top - top - height
        axes = self.drawing.add_axes(
            (left / WIDTH, bottom / self.height, (WIDTH - left - right) / WIDTH, height / self.height)
        )
        axes.tick_params(length=0, pad=5)
        return axes


def open_sheet(theme: Theme, *, title: str, subtitle: str = "", key: Sequence[KeyEntry] = (), body: float) -> Sheet:
    """Return a sheet with title, subtitle and key, and room for a body of that height."""
    from matplotlib.figure import Figure as Drawing

    titles = wrap(visible(title), WIDTH, TITLE, "bold")
    subtitles = wrap(visible(subtitle), WIDTH, SMALL)
    rows = _key_rows(key)
    top = 18 * len(titles) + 14 * len(subtitles) + 17 * len(rows) + 8
    height = top + body
    drawing = Drawing(figsize=(WIDTH / PX_PER_INCH, height / PX_PER_INCH))
    overlay = drawing.add_axes((0, 0, 1, 1), zorder=2)
    overlay.set_axis_off()
    overlay.set_xlim(0, WIDTH)
    overlay.set_ylim(height, 0)
    y = 13.0
    for line in titles:
        overlay.text(0, y, line, fontsize=TITLE, fontweight="bold")
        y += 18
    for line in subtitles:
        overlay.text(0, y - 2, line, fontsize=SMALL, color=theme.muted)
        y += 14
    for row in rows:
        _draw_key(overlay, theme, row, y + 1)
        y += 17
    return Sheet(theme, drawing, overlay, top, height)


def empty_sheet(theme: Theme, *, title: str, subtitle: str = "", reason: str = "No values to draw.") -> "Drawing":
    """Return a drawing that says in words why there is nothing in it."""
    sheet = open_sheet(theme, title=title, subtitle=subtitle, body=48)
    sheet.overlay.text(WIDTH / 2, sheet.top + 24, reason, ha="center", va="center", color=theme.muted)
    return sheet.drawing


def _key_rows(key: Sequence[KeyEntry]) -> list[list[tuple[float, KeyEntry, str]]]:
    """Lay entries out from left to right in as many rows as they need: x, entry, fitted label."""
    rows: list[list[tuple[float, KeyEntry, str]]] = []
    x = WIDTH
    for entry in key:
        label = fit(visible(entry.label), WIDTH - SAMPLE - 6, SMALL)
        needed = SAMPLE + 6 + text_width(label, SMALL)
        if x + needed > WIDTH:
            rows.append([])
            x = 0.0
        rows[-1].append((x, entry, label))
        x += needed + 14
    return rows


def _draw_key(overlay: "Axes", theme: Theme, row: Sequence[tuple[float, KeyEntry, str]], y: float) -> None:
    from matplotlib.patches import Rectangle

    for x, entry, label in row:
        middle = y - 3.5
        if entry.kind in ("fill", "pale", "hatch"):
            for look in fills(entry.color, pale=entry.kind != "fill", hatched=entry.kind == "hatch"):
                overlay.add_patch(Rectangle((x, y - 8), SAMPLE, 9, **look))
        elif entry.kind in ("line", "dashed"):
            style = "-" if entry.kind == "line" else (0, (3, 2))
            overlay.plot([x, x + SAMPLE], [middle, middle], color=entry.color, linestyle=style, linewidth=1.8)
        else:
            face = entry.color if entry.kind == "dot" else theme.paper
            overlay.plot([x + SAMPLE / 2], [middle], "o", markersize=6.5, color=entry.color, markerfacecolor=face)
        overlay.text(x + SAMPLE + 5, y, label, fontsize=SMALL, color=theme.muted)


def fills(color: str, *, pale: bool, hatched: bool) -> list[dict[str, Any]]:
    """Return the looks of the patches that make a solid, pale or hatched area; hatches need a patch of their own."""
    looks: list[dict[str, Any]] = [
        {"facecolor": (color, 0.25) if pale else color, "edgecolor": color, "linewidth": 0.8}
    ]
    if hatched:
        looks.append({"facecolor": "none", "edgecolor": color, "linewidth": 0, "hatch": HACKING_HATCH})
    return looks


def row_panel(
    sheet: Sheet,
    height: float,
    bounds: tuple[float, float],
    write: Callable[[float], str],
    *,
    last_tick: float = math.inf,
) -> "Axes":
    """Return a panel whose y is px from its top and whose x holds values, with `write` for ticks up to `last_tick`."""
    axes = sheet.panel(0, height)
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    axes.set_xlim(*bounds)
    value_ticks(axes.xaxis, write, 5)
    axes.set_xticks([tick for tick in axes.get_xticks() if bounds[0] <= tick <= min(bounds[1], last_tick)])
    axes.grid(axis="x")
    axes.spines[["left", "bottom"]].set_visible(False)
    for value, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        place = (value - bounds[0]) / (bounds[1] - bounds[0])
        label.set_horizontalalignment("left" if place < 0.03 else "right" if place > 0.97 else "center")
    return axes


def row_label(axes: "Axes", theme: Theme, y: float, name: str, value: str = "", *, weight: str = "normal") -> None:
    """Write a row's name at the left and its value at the right, on the baseline `y`."""
    across = axes.get_yaxis_transform()
    room = WIDTH - 2 * SIDE - text_width(value, SMALL) - 12
    ground = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}  # over lines that cross the row
    name = fit(visible(name), room, TEXT, weight)
    axes.text(0, y, name, transform=across, fontsize=TEXT, fontweight=weight, bbox=ground)
    axes.text(1, y, value, transform=across, fontsize=SMALL, color=theme.muted, ha="right", bbox=ground)


def line_at(axes: "Axes", theme: Theme, value: float, words: str, height: float) -> None:
    """Draw a line at a value through a row panel of that height, its words at its foot on the roomier side."""
    axes.axvline(value, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    place = float(axes.transLimits.transform((value, 0))[0])
    words = fit(visible(words), max(place, 1 - place) * (WIDTH - 2 * SIDE) - 6, SMALL)
    side, shift = ("right", -4) if place > 0.5 else ("left", 4)
    axes.annotate(
        words, (value, height - 3), (shift, 0), textcoords="offset points", ha=side, fontsize=SMALL, color=theme.muted
    )


def value_ticks(axis: "Axis", write: Callable[[float], str], count: int, *, whole: bool = False) -> None:
    """Put at most `count` + 1 round values on an axis, only whole numbers where asked."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def limits(values: Iterable[float], *, zero: bool = False, margin: float = 0.04) -> tuple[float, float] | None:
    """Return a range around all finite values, and zero where asked; None where there is no value."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        reach = abs(low) or 1.0
        low, high = (low if zero else low - reach), high + reach
    pad = margin * (high - low)
    return (low if zero and low == 0 else low - pad), (high if zero and high == 0 else high + pad)


def share_limits(values: Iterable[float]) -> tuple[float, float] | None:
    """Return the range from 0 to a little above the largest finite share, at most 1; None where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return (0.0, min(1.0, max(1.04 * max(finite), 0.02))) if finite else None


@dataclass(frozen=True, slots=True)
class End:
    """Where a line ends, and its name there."""

    label: str
    x: float
    y: float
    color: str


def end_room(labels: Iterable[str], largest: float = 120.0) -> float:
    """Return the margin that the labels at line ends need, at most `largest`."""
    widths = [text_width(visible(label), SMALL) for label in labels]
    return min(max(widths, default=0.0) + 16, largest)


def label_ends(axes: "Axes", theme: Theme, ends: Sequence[End], room: float) -> None:
    """Write names beside the ends of lines, apart from each other, each joined to its line."""
    to_px = axes.transData
    box = axes.bbox
    known = [end for end in ends if math.isfinite(end.y)]
    wanted = [float(to_px.transform((end.x, end.y))[1]) for end in known]
    places = spread(wanted, 12.5, box.y0 + 3, box.y1 - 3)
    for end, y_px, place in zip(known, wanted, places, strict=True):
        x_px = float(to_px.transform((end.x, end.y))[0])
        start, stop = (x_px, y_px), (box.x1 + 8, place)
        style = "-" if stop[0] - x_px < LEADER else (0, (1, 3))  # a long one must not be taken for data
        xs, ys = zip(*(to_px.inverted().transform(point) for point in (start, stop)), strict=True)
        axes.plot(xs, ys, color=end.color, linewidth=0.9, linestyle=style, clip_on=False, scalex=False, scaley=False)
        axes.annotate(
            fit(visible(end.label), room - 12, SMALL),
            (xs[1], ys[1]),
            (2.5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            annotation_clip=False,
        )
