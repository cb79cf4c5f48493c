"""Intervals and tests for accuracies: one model, and two models on the same problems.

Pure numpy and scipy. With several samples of each problem the problem is the unit: samples of one problem are
alike, so an interval over samples would be too narrow (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean of per-problem differences, its 95% interval, and the standard deviation that the interval is made of."""

    mean: float
    interval: Interval
    std: float


def wilson_interval(successes: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927); counts may be fractional, no trials give (0, 1)."""
    if trials <= 0:
        return Interval(0.0, 1.0)
    z2 = float(stats.norm.ppf((1 + confidence) / 2)) ** 2
    p = successes / trials
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def accuracy_interval(correct: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the mean of `correct` (P, n), 0 or 1, clustered by problem.

    Wilson's interval at the effective number of samples p(1-p)/SE^2 (Dean & Pagano 2015), where SE is that of the
    mean over problems; it lies between P (samples of a problem all alike) and P*n, and is P for n = 1.
    """
    problems, samples = correct.shape
    mean = float(correct.mean()) if correct.size else 0.0
    variance = float(correct.mean(axis=1).var(ddof=1)) / problems if problems > 1 else 0.0
    effective = mean * (1 - mean) / variance if variance > 0 else problems
    effective = min(max(effective, problems), problems * samples)
    return wilson_interval(mean * effective, effective, confidence)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of solving a problem in k tries, from `correct` of `samples` (k <= samples).

    1 - C(n-c, k) / C(n, k), as a product that cannot overflow (Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", arXiv 2107.03374, eq. 1).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs k between 1 and the {samples} samples")
    if samples - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def paired_difference(a: np.ndarray, b: np.ndarray, *, samples: int = 1) -> PairedDifference:
    """Return mean(b - a) of per-problem means (P,) over `samples` samples each, with its 95% interval.

    The interval is Bonett & Price's adjusted Wald interval (2012): two problems are added, one where a single sample
    got better and one where one got worse. It is chosen over the bootstrap because it is deterministic and because
    it does not shrink to a point when two models agree on every problem of a small set.
    """
    differences = b - a
    adjusted = np.concatenate([differences, [1 / samples, -1 / samples]])
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    std = float(adjusted.std())  # above 0 however alike the models are
    centre, half = float(adjusted.mean()), z * std / math.sqrt(len(adjusted))
    mean = float(differences.mean()) if len(differences) else 0.0
    return PairedDifference(mean, Interval(max(-1.0, centre - half), min(1.0, centre + half)), std)


def mcnemar_p(fixed: int, regressed: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from the two kinds of discordant pairs."""
    discordant = fixed + regressed
    return float(stats.binomtest(fixed, discordant).pvalue) if discordant else 1.0


def paired_p(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sided p-value that two models are equally good, from per-problem means (P,).

    Signs of the per-problem differences are exchangeable under that hypothesis. With one sample a problem this is
    McNemar's exact test; else the sign-flip permutation test, with a fixed seed.
    """
    differences = b - a
    differences = differences[differences != 0]
    if np.isin(differences, (-1.0, 1.0)).all():
        return mcnemar_p(int((differences > 0).sum()), int((differences < 0).sum()))
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, batch=1000,
        vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for testing all of them (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def smallest_detectable_difference(std: float, problems: int, *, tests: int = 1, power: float = 0.8) -> float:
    """Return the true mean difference that a two-sided test at 5% / `tests` finds with this power.

    For one test it is (1.96 + 0.84) std / sqrt(P); dividing by `tests` is what the first of Holm's steps asks.
    """
    z = float(stats.norm.ppf(1 - (1 - CONFIDENCE) / (2 * tests)) + stats.norm.ppf(power))
    return z * std / math.sqrt(problems) if problems else math.inf
