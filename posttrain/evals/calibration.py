"""How well probabilities say how often a choice is right: the reliability table and the expected calibration error.

Pure numpy (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, eq. 5).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Bin:
    """The choices whose confidence lies in one interval."""

    count: int
    confidence: float  # mean
    accuracy: float


def reliability(correct: np.ndarray, confidence: np.ndarray, *, lowest: float, bins: int) -> list[Bin]:
    """Return the table of choices `(N,)`, right (1) or wrong (0), by their confidence, between `lowest` and 1.

    The bins are equally wide, and empty ones are left out.
    """
    place = np.minimum(((confidence - lowest) / (1 - lowest) * bins).astype(int), bins - 1)
    inside = [place == index for index in range(bins)]
    return [
        Bin(int(each.sum()), float(confidence[each].mean()), float(correct[each].mean()))
        for each in inside
        if each.any()
    ]


def calibration_error(table: list[Bin]) -> float:
    """Return the mean gap between confidence and accuracy, weighted by the choices in each bin."""
    total = sum(each.count for each in table)
    return sum(abs(each.confidence - each.accuracy) * each.count for each in table) / total
