"""Scaling curves as small plots: seconds and memory of both sides against a size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

SIDES = {"peer": ("TRL", "tab:gray", "--"), "ours": ("posttrain", "tab:blue", "-")}


def plot(name: str, curve: Mapping[str, Any], directory: Path) -> Path:
    """Write a curve's plot, seconds on the left and memory on the right, both axes from 0; return its file."""
    sizes = sorted(curve["points"], key=int)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), constrained_layout=True)
    for side, (label, color, style) in SIDES.items():
        values = [curve["points"][size][side] for size in sizes]
        x = [int(size) for size in sizes]
        left.plot(x, [value["seconds"] for value in values], style, marker="o", color=color, label=label)
        right.plot(x, [value["peak_bytes"] / 1e9 for value in values], style, marker="o", color=color, label=label)
    for axes, title in ((left, "seconds"), (right, "peak memory, GB")):
        axes.set_title(title, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel(curve["axis"], fontsize=7)
    left.legend(fontsize=8, frameon=False)
    file = directory / f"{name.replace(' ', '-')}.svg"
    figure.savefig(file)
    plt.close(figure)
    return file
