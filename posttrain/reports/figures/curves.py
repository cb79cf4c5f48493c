"""Curves by model: reward against the distance from the reference, and problems solved against samples.

Floor 5: draws plain numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from posttrain.reports.figures.labels import SMALL, number, percent_tick
from posttrain.reports.figures.sheet import (
    AXIS,
    AXIS_NAME,
    End,
    KeyEntry,
    Sheet,
    empty_sheet,
    end_room,
    label_ends,
    limits,
    open_sheet,
    share_limits,
    value_ticks,
)
from posttrain.reports.style import Draw, Look, Theme, model_looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

DASHES = (0, (4, 2.5))
BAND_ALPHA = 0.15
PANEL, LOW_PANEL = 230.0, 150.0  # px

Kind = Literal["proxy", "gold"]
Band = tuple[Sequence[float], Sequence[float]]  # low and high at each point


@dataclass(frozen=True, slots=True)
class Frontier:
    """Proxy and gold scores of a model's checkpoints, in order of training, at their KL from the reference in nats."""

    model: str
    kl: Sequence[float]
    proxy: Sequence[float]
    gold: Sequence[float]
    proxy_band: Band | None = None
    gold_band: Band | None = None

    def roots(self) -> list[float]:
        """Return the square roots of the KL, an estimate below 0 taken for 0."""
        return [math.sqrt(max(kl, 0.0)) for kl in self.kl]

    def scores(self, kind: Kind) -> tuple[Sequence[float], Band | None]:
        """Return the scores of a kind with their band."""
        return (self.proxy, self.proxy_band) if kind == "proxy" else (self.gold, self.gold_band)


def frontier(
    curves: Sequence[Frontier],
    *,
    title: str,
    subtitle: str = "",
    order: Sequence[str] = (),
    best_of_n: Frontier | None = None,
    apart: bool = False,
) -> Draw:
    """Return the drawing of scores over the square root of the KL (Gao, Schulman and Hilton 2022, arXiv 2210.10760).

    `best_of_n` is the same of the best of n samples of the reference, drawn in grey. `apart` puts proxy and gold in
    two panels, where their scales differ.
    """
    everything = [*curves, *([best_of_n] if best_of_n else [])]
    panels: list[tuple[Kind, ...]] = [("proxy",), ("gold",)] if apart else [("proxy", "gold")]
    height = LOW_PANEL if apart else PANEL

    def draw(theme: Theme) -> "Drawing":
        bounds = limits((root for curve in everything for root in curve.roots()), zero=True)
        if bounds is None or limits(_drawn(everything, ("proxy", "gold"))) is None:
            return empty_sheet(theme, title=title, subtitle=subtitle)
        looks = model_looks([*order, *(curve.model for curve in curves)], theme)
        room = end_room(curve.model for curve in everything)
        key = [KeyEntry("gold", theme.ink, "line"), KeyEntry("proxy", theme.ink, "dashed")]
        body = len(panels) * (height + 12) + AXIS + AXIS_NAME
        sheet = open_sheet(theme, title=title, subtitle=subtitle, key=key, body=body)
        for i, kinds in enumerate(panels):
            axes = _axes(sheet, i * (height + 12) + 6, height, room)
            axes.set_xlim(*bounds)
            axes.set_ylim(*(limits(_drawn(everything, kinds), margin=0.06) or (0, 1)))
            value_ticks(axes.xaxis, number, 5)
            value_ticks(axes.yaxis, number, 5)
            ends = []
            for curve in everything:
                look = Look(theme.muted, "") if curve is best_of_n else looks[curve.model]
                for kind in kinds:
                    scores, band = curve.scores(kind)
                    _curve(axes, theme, curve.roots(), scores, look, band=band, dashed=kind == "proxy")
                ends += _last(curve.model, curve.roots(), curve.scores(kinds[-1])[0], look.color)
            label_ends(axes, theme, ends, room)
            if i < len(panels) - 1:
                axes.set_xticklabels([])
            else:
                axes.set_xlabel("√KL from the reference (KL in nats)", fontsize=SMALL, labelpad=1)
        return sheet.drawing

    return draw


def _drawn(curves: Sequence[Frontier], kinds: Sequence[Kind]) -> list[float]:
    """Every value that a panel shows, the bands' bounds too."""
    found = [curve.scores(kind) for curve in curves for kind in kinds]
    return [value for scores, band in found for line in (scores, *(band or ())) for value in line]


def _curve(
    axes: "Axes",
    theme: Theme,
    xs: Sequence[float],
    ys: Sequence[float],
    look: Look,
    *,
    band: Band | None = None,
    dashed: bool = False,
) -> None:
    """Draw a line with its points and its band; a dashed line has hollow points."""
    if band is not None:
        axes.fill_between(xs, *band, color=look.color, alpha=BAND_ALPHA, linewidth=0)
    axes.plot(
        xs,
        ys,
        color=look.color,
        linestyle=DASHES if dashed else "-",
        linewidth=1.7,
        marker=look.marker,
        markersize=4.5,
        markerfacecolor=theme.paper if dashed else look.color,
        markeredgewidth=1,
        clip_on=False,
    )


def _last(label: str, xs: Sequence[float], ys: Sequence[float], color: str) -> list[End]:
    finite = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x + y)]
    return [End(label, *finite[-1], color)] if finite else []


def _axes(sheet: Sheet, top: float, height: float, room: float) -> "Axes":
    axes = sheet.panel(top, height, left=38, right=room)
    axes.grid()
    axes.spines["left"].set_visible(False)
    return axes


@dataclass(frozen=True, slots=True)
class PassCurve:
    """Shares of problems solved within k samples (pass@k), and by the majority of k samples (maj@k) where known."""

    model: str
    ks: Sequence[int]
    solved: Sequence[float]
    band: Band | None = None
    majority: Sequence[float] = ()


def pass_curves(
    curves: Sequence[PassCurve],
    *,
    title: str,
    subtitle: str = "",
    order: Sequence[str] = (),
    crossover: tuple[float, str] | None = None,
) -> Draw:
    """Return the drawing of shares over k, in powers of two; `crossover` is a k and words for its line."""

    def draw(theme: Theme) -> "Drawing":
        ks = sorted({k for curve in curves for k in curve.ks})
        values = [v for curve in curves for v in (*curve.solved, *curve.majority)]
        bounds = share_limits([*values, *(v for curve in curves for side in curve.band or () for v in side)])
        if bounds is None or not any(math.isfinite(value) for value in values):
            return empty_sheet(theme, title=title, subtitle=subtitle)
        looks = model_looks([*order, *(curve.model for curve in curves)], theme)
        room = end_room(curve.model for curve in curves)
        voted = any(len(curve.majority) for curve in curves)
        key = [KeyEntry("pass@k", theme.ink, "line"), KeyEntry("maj@k", theme.ink, "dashed")] if voted else []
        body = PANEL + 20 + AXIS + AXIS_NAME
        sheet = open_sheet(theme, title=title, subtitle=subtitle, key=key, body=body)
        axes = _axes(sheet, 20, PANEL, room)
        _powers_of_two(axes, ks)
        axes.set_ylim(*bounds)
        value_ticks(axes.yaxis, percent_tick, 5)
        ends = []
        for curve in curves:
            look = looks[curve.model]
            _curve(axes, theme, curve.ks, curve.solved, look, band=curve.band)
            if len(curve.majority):
                _curve(axes, theme, curve.ks, curve.majority, look, dashed=True)
            ends += _last(curve.model, curve.ks, curve.solved, look.color)
        label_ends(axes, theme, ends, room)
        if crossover:
            _crossover(axes, theme, crossover)
        return sheet.drawing

    return draw


def _powers_of_two(axes: "Axes", ks: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    powers = [2**i for i in range(math.ceil(math.log2(ks[0])), math.floor(math.log2(ks[-1])) + 1)]
    step = 1 + len(powers) // 9
    axes.set_xticks(powers[::step] or ks, [str(k) for k in powers[::step] or ks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(ks[0] / 1.1, ks[-1] * 1.1)
    axes.set_xlabel("k, samples of each problem", fontsize=SMALL, labelpad=1)


def _crossover(axes: "Axes", theme: Theme, crossover: tuple[float, str]) -> None:
    k, words = crossover
    axes.axvline(k, color=theme.warning, linewidth=1.2, linestyle=(0, (4, 2)))
    place = float(axes.transAxes.inverted().transform(axes.transData.transform((k, 0)))[0])
    side = "left" if place < 0.25 else "right" if place > 0.75 else "center"
    axes.text(
        k, 1.02, words, transform=axes.get_xaxis_transform(), ha=side, va="bottom", fontsize=SMALL, color=theme.warning
    )
