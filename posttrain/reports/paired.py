"""Numbers of the same problems from two evaluations, side by side.

Floor 5, pure.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Sample = Mapping[str, Any]


def problem_means(samples: Iterable[Sample], measure: Callable[[Sample], float | None]) -> dict[str, float]:
    """Return each problem's mean of what `measure` says of its samples; where it says None, a sample is left out."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        value = measure(sample)
        if value is not None:
            found.setdefault(sample["problem_id"], []).append(float(value))
    return {problem: float(np.mean(values)) for problem, values in found.items()}


def side_by_side(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the problems that both have, (P,) each, in order of problem ids."""
    shared = sorted(before.keys() & after.keys())
    return np.array([before[problem] for problem in shared]), np.array([after[problem] for problem in shared])
