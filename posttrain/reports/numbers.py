"""How numbers are written: shares in percent and points, other scores as they are.

Floor 5, pure.
"""

from collections.abc import Iterable
from typing import Literal

from posttrain.evals.stats import Interval
from posttrain.reports.inputs import Evaluation

Scale = Literal["share", "number"]  # of right answers, or any score


def scale_of(evaluations: Iterable[Evaluation]) -> Scale:
    """Return whether the scores are shares of outcomes of 0 and 1."""
    scores = (sample["score"] for evaluation in evaluations for sample in evaluation.samples)
    return "share" if all(score in (0, 1, None) for score in scores) else "number"


def plain_score(value: float | None, scale: Scale) -> str:
    """Return a mean score: 51.0%, or -2.9."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}%" if scale == "share" else f"{value:.3g}"


def plain_interval(low: float, high: float, scale: Scale) -> str:
    """Return the ends of a score's interval: 46.6 to 55.4."""
    if scale == "share":
        return f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{low:.3g} to {high:.3g}"


def signed(value: float, scale: Scale) -> str:
    """Return a difference of scores with its sign: +41.2, or +0.31."""
    return f"{100 * value:+.1f}" if scale == "share" else f"{value:+.3g}"


def plain_difference(difference: float, interval: Interval, scale: Scale) -> str:
    """Return a difference with its interval, up to where a p-value may follow: +41.2 points (95% CI +36.5 to +45.5."""
    unit = " points" if scale == "share" else ""
    low, high = (signed(end, scale) for end in interval)
    return f"{signed(difference, scale)}{unit} (95% CI {low} to {high}"


def plain_p(value: float) -> str:
    """Return a p-value: p < 0.001, or p = 0.250."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
