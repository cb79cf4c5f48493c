"""How well scores order held-out preference pairs: accuracy, its dependence on length, and calibration.

Pure numpy. The probability that a Bradley-Terry model gives its own choice is sigmoid(|margin|); calibration compares
it with how often the choice is the pair's.
"""

from typing import Any

import numpy as np

from posttrain.evals.calibration import calibration_error, reliability
from posttrain.evals.stats import Interval, wilson_interval

LENGTH_GROUPS = 4
CONFIDENCE_BINS = 5  # between 0.5, no opinion, and 1


def pair_report(
    chosen: np.ndarray, rejected: np.ndarray, chosen_lengths: np.ndarray, rejected_lengths: np.ndarray
) -> dict[str, Any]:
    """Return what scores `(P,)` and lengths in tokens `(P,)` of both completions of P >= 1 pairs say, as plain JSON.

    A tie of two scores counts as half a right choice; `ties` is the share of them. `longer_chosen` is the share of
    pairs whose chosen completion is the longer one, `prefers_longer` the share in which the scores choose it; both of
    the pairs of unequal length.
    """
    margins = chosen - rejected
    correct = (margins > 0) + (margins == 0) / 2
    gaps = chosen_lengths - rejected_lengths
    unequal = gaps != 0
    return {
        "pairs": len(margins),
        **_accuracy(correct),
        "beats_chance": wilson_interval(float(correct.sum()), len(correct)).low > 0.5,
        "ties": float((margins == 0).mean()),
        "mean_margin": float(margins.mean()),
        "longer_chosen": float((gaps > 0)[unequal].mean()) if unequal.any() else None,
        "prefers_longer": float(np.where(gaps > 0, correct, 1 - correct)[unequal].mean()) if unequal.any() else None,
        "by_length_gap": _by_length_gap(correct, gaps),
        "calibration": _calibration(correct, 1 / (1 + np.exp(-np.abs(margins)))),
    }


def verdict(report: dict[str, Any], *, what: str = "held-out pairs") -> str:
    """Return in words whether the scores order the pairs better than chance."""
    interval = Interval(*report["accuracy_interval"])
    found = f"{report['accuracy']:.1%} [{interval.low:.1%}, {interval.high:.1%}] of {report['pairs']} {what}"
    if report["beats_chance"]:
        return f"better than chance: it orders {found} as they were judged"
    if interval.high < 0.5:
        return f"worse than chance: it orders {found} as they were judged, so it has learned the opposite"
    return f"no better than chance: it orders {found} as they were judged, which guessing does too; do not train on it"


def _accuracy(correct: np.ndarray) -> dict[str, Any]:
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": list(wilson_interval(float(correct.sum()), len(correct))),
    }


def _by_length_gap(correct: np.ndarray, gaps: np.ndarray) -> list[dict[str, Any]]:
    """Return the accuracy of groups of about equal size, by how many tokens the chosen completion is longer."""
    edges = np.unique(np.quantile(gaps, np.linspace(0, 1, LENGTH_GROUPS + 1), method="lower"))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    group = np.clip(np.searchsorted(edges, gaps, side="right") - 1, 0, len(edges) - 2)
    rows = []
    for index in range(len(edges) - 1):
        inside = group == index
        if inside.any():
            gap = {"gap_min": int(gaps[inside].min()), "gap_max": int(gaps[inside].max()), "pairs": int(inside.sum())}
            rows.append({**gap, **_accuracy(correct[inside])})
    return rows


def _calibration(correct: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """Return the reliability table, and the expected calibration error."""
    table = reliability(correct, confidence, lowest=0.5, bins=CONFIDENCE_BINS)
    rows = [{"pairs": each.count, "confidence": each.confidence, "accuracy": each.accuracy} for each in table]
    return {"ece": calibration_error(table), "reliability": rows}
