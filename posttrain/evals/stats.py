"""Intervals and tests for accuracies and other scores: one model, and two models on the same problems.

Pure numpy and scipy. With several samples of each problem the problem is the unit: samples of one problem are
alike, so an interval over samples would be too narrow (Miller 2024, "Adding Error Bars to Evals", arXiv 2411.00640).
Several training seeds of a model are more samples of each problem, (P, S*n): an interval then speaks of these S models
on other problems, not of what another seed would give.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

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
    z2 = float(special.ndtri((1 + confidence) / 2)) ** 2
    p = successes / trials
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def accuracy_interval(correct: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the mean of `correct` (P, n), 0 or 1, clustered by problem."""
    return share_interval(correct.mean(axis=1), correct.shape[1], confidence)


def share_interval(shares: np.ndarray, samples: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the mean of shares (P,), each from `samples` samples of its problem.

    Wilson's interval at the effective number of samples p(1-p)/SE^2 (Dean & Pagano 2015), where SE is that of the
    mean over problems, times (z/t)^2 because so few problems tell it; it lies between P (samples of a problem all
    alike) and P*n, and is P for n = 1.
    """
    problems = len(shares)
    mean = float(shares.mean()) if problems else 0.0
    variance = float(shares.var(ddof=1)) / problems if problems > 1 else 0.0
    effective = float(problems)
    if variance > 0:
        tail = (1 + confidence) / 2
        z_over_t = float(special.ndtri(tail) / special.stdtrit(problems - 1, tail))
        effective = mean * (1 - mean) / variance * z_over_t**2
    effective = min(max(effective, problems), problems * samples)
    return wilson_interval(mean * effective, effective, confidence)


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Return the t interval of the mean of scores (P, n) that are no shares, clustered by problem.

    Problems weigh the same. Fewer than two problems give (-inf, inf), equal means of all problems a point. It is chosen
    over the BCa bootstrap, which covers less where tails are heavy (t of 3 degrees, 50 problems: 91% to 95% here) and
    no more where scores are skewed (lognormal with sigma 1: both 90% at 50 problems, 94 to 95% at 200).
    """
    problems = len(values)
    if problems < 2:
        return Interval(-math.inf, math.inf)
    means = values.mean(axis=1)
    half = float(special.stdtrit(problems - 1, (1 + confidence) / 2) * means.std(ddof=1)) / math.sqrt(problems)
    return Interval(float(means.mean()) - half, float(means.mean()) + half)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    problems: int,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the BCa bootstrap interval (Efron 1987) of what `statistic` says of resampled problems, by a fixed seed.

    `statistic` takes numbers of problems (..., P), drawn with replacement, and returns a value for each draw (...,).
    A statistic that no draw changes gives a point; fewer than two problems give (-inf, inf).
    """
    if problems < 2:
        return Interval(-math.inf, math.inf)
    numbers = np.arange(problems)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a statistic that no draw changes
        found = stats.bootstrap(
            (numbers,), lambda drawn, axis: statistic(drawn), vectorized=True, n_resamples=resamples, batch=50,
            confidence_level=confidence, method="BCa", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    if math.isnan(found.low):
        value = float(statistic(numbers))
        return Interval(value, value)
    return Interval(float(found.low), float(found.high))


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


def paired_difference(a: np.ndarray, b: np.ndarray, *, samples: int | None = 1) -> PairedDifference:
    """Return mean(b - a) of per-problem means (P,) with its 95% interval.

    Of shares over `samples` samples each, the interval is Bonett & Price's adjusted Wald interval (2012), with two
    samples added, one that got better and one that got worse; they weigh 1/samples of a problem. It is chosen over the
    bootstrap because it is deterministic and because it does not shrink to a point when two models agree on every
    problem of a small set. Of scores that are no shares (`samples` None) it is the t interval.
    """
    differences = b - a
    mean = float(differences.mean()) if len(differences) else 0.0
    gain = _gain(differences, samples)
    half = math.inf if gain.freedom < 1 else float(special.stdtrit(gain.freedom, (1 + CONFIDENCE) / 2)) * gain.error
    low, high = gain.centre - half, gain.centre + half
    interval = Interval(low, high) if samples is None else Interval(max(-1.0, low), min(1.0, high))
    return PairedDifference(mean, interval, gain.std)


class _Gain(NamedTuple):
    """What an interval of a mean difference is made of; `freedom` is that of the t distribution."""

    centre: float
    std: float
    error: float
    freedom: float


def _gain(differences: np.ndarray, samples: int | None) -> _Gain:
    if samples is None:
        problems = len(differences)
        std = float(differences.std(ddof=1)) if problems > 1 else math.inf
        centre = float(differences.mean()) if problems else 0.0
        return _Gain(centre, std, std / math.sqrt(max(1, problems)), problems - 1)
    added = np.append(differences, [1.0, -1.0])
    weights = np.append(np.ones(len(differences)), [1 / samples, 1 / samples])
    centre = float(np.average(added, weights=weights))
    std = math.sqrt(np.average((added - centre) ** 2, weights=weights))  # above 0 however alike the models are
    return _Gain(centre, std, std / math.sqrt(weights.sum()), math.inf)


def mcnemar_p(fixed: int, regressed: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from the two kinds of discordant pairs."""
    discordant = fixed + regressed
    return float(stats.binomtest(fixed, discordant).pvalue) if discordant else 1.0


def paired_p(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sided p-value that two models are equally good, from per-problem means (P,) of any scores.

    Signs of the per-problem differences are exchangeable under that hypothesis. With one sample a problem this is
    McNemar's exact test; else the sign-flip permutation test, with a fixed seed.
    """
    differences = b - a
    differences = differences[differences != 0]
    if len(differences) < 2:
        return 1.0  # either sign is as large
    if np.isin(differences, (-1.0, 1.0)).all():
        return mcnemar_p(int((differences > 0).sum()), int((differences < 0).sum()))
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, batch=1000,
        vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def no_gain_p(a: np.ndarray, b: np.ndarray, worth: float, *, samples: int | None = 1) -> float:
    """Return the one-sided p-value that mean(b - a) is `worth` or more: a small one shows that b gained less.

    From per-problem means (P,), by the errors of `paired_difference`. An absence of gain is shown by this, never by a
    test of the difference that finds nothing. Scores that differ alike everywhere decide by themselves.
    """
    gain = _gain(b - a, samples)
    if gain.freedom < 1:
        return 1.0
    if gain.error == 0:
        return float(gain.centre >= worth)
    return float(special.stdtr(gain.freedom, (gain.centre - worth) / gain.error))


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
    z = float(special.ndtri(1 - (1 - CONFIDENCE) / (2 * tests)) + special.ndtri(power))
    return z * std / math.sqrt(problems) if problems else math.inf
