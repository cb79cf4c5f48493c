"""Where two courses part: what is trained on goes on rising, and what is true falls, or stays behind.

Floor 4, pure numpy and scipy: knows two series of step means, no run. It says what has happened, with a bound on false
alarms, and promises no early warning: before the two part there is nothing to see.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

ALPHA = 0.05  # share of whole healthy runs, of any length, in which a split may be claimed
SHORTEST = 8  # steps of the shortest windows compared; the others are twice, four times, ... as long
BEHIND = 0.25  # gold is behind where it gains less than this share of what proxy gains, each in its own spread
TINY = 1e-9  # for a spread of 0
NEAR_CEILING = 0.9  # share of the highest gold from which on it has nothing left to gain


class Split(NamedTuple):
    """Two courses that parted, and their means over equally long windows, before they did and now."""

    kind: Literal["falls", "stalls"]  # what gold does while proxy rises
    at: int  # index of the last step before they part
    proxy: tuple[float, float]
    gold: tuple[float, float]


class _Windows(NamedTuple):
    """Means over the latest `length` steps less those over each earlier window of that length, and their errors."""

    length: int
    proxy: np.ndarray  # (N,)
    gold: np.ndarray  # (N,)
    proxy_error: float
    gold_error: float


def find_split(
    proxy: np.ndarray,
    gold: np.ndarray,
    *,
    proxy_spread: float,
    gold_spread: float,
    ceiling: float | None = None,
    known: bool = False,
    alpha: float = ALPHA,
) -> Split | None:
    """Return where the step means (T,) of proxy and gold have parted by their end, None where nothing shows it.

    A spread is the deviation among the completions of a step, in which a gain is measured. Gold *falls* where its
    latest window is below its best ones, and proxy's above its own of that time. It *stalls* where proxy gained at
    least one spread since some window, gold less than `BEHIND` as many, and it was not near its `ceiling` already.
    Both are tested against the noise from step to step, at `alpha` for all windows of all looks together: look k has
    the share 1 / (k (k + 1)). A split that is `known` holds until what is left of it is no more than one test's noise.
    """
    steps = len(proxy)
    if steps < 2 * SHORTEST:
        return None
    freedom = 2 * (steps - 1) / 3  # of a variance from successive differences (von Neumann 1941)
    looks, compared = 1 + (steps - 2 * SHORTEST) // (SHORTEST // 2), 2 * steps / SHORTEST
    level = alpha if known else alpha / (looks * (looks + 1)) / compared / 2
    single, strict = (float(-stdtrit(freedom, share)) for share in (ALPHA, level))
    risen = -single if known else single  # errors; proxy's end, where it does not fall, does not end a split
    candidates = list(_windows(proxy, gold))
    for windows in candidates:
        if (start := _fall(windows, single=single, strict=strict, risen=risen)) is not None:
            return _split("falls", start, windows, proxy, gold)
    if ceiling is not None and gold[-SHORTEST:].mean() >= NEAR_CEILING * ceiling:
        return None
    spreads = max(proxy_spread, TINY), max(gold_spread, TINY)
    for windows in candidates:
        if (start := _stall(windows, *spreads, single=single, strict=strict)) is not None:
            return _split("stalls", start, windows, proxy, gold)
    return None


def _fall(windows: _Windows, *, single: float, strict: float, risen: float) -> int | None:
    """Return the last window that is as good in gold as the best one, where the latest is below it."""
    lost = (windows.gold < -strict * windows.gold_error) & (windows.proxy > risen * windows.proxy_error)
    as_good = windows.gold <= windows.gold.min() + single * windows.gold_error
    found = np.flatnonzero(lost & as_good)
    return int(found[-1]) if len(found) else None


def _stall(windows: _Windows, proxy_spread: float, gold_spread: float, *, single: float, strict: float) -> int | None:
    """Return the window since which gold is furthest behind proxy, and was never above it in between."""
    gained = windows.proxy / proxy_spread
    behind = windows.gold / gold_spread - BEHIND * gained
    error = np.hypot(windows.gold_error / gold_spread, BEHIND * windows.proxy_error / proxy_spread)
    best_since = np.minimum.accumulate(windows.gold[::-1])[::-1]
    level = best_since >= windows.gold - single * windows.gold_error
    rose_much = (gained >= 1) & (windows.proxy > strict * windows.proxy_error)
    stalled = rose_much & level & (behind < -strict * error)
    return int(np.where(stalled, behind, np.inf).argmin()) if stalled.any() else None


def rose(values: np.ndarray, length: int) -> bool:
    """Return whether the mean of the latest `length` values is above that of the first ones, beyond noise."""
    if len(values) < 2 * length:
        return False
    gain = values[-length:].mean() - values[:length].mean()
    return bool(gain > -stdtrit(2 * (len(values) - 1) / 3, ALPHA) * _error(values, length))


def _windows(proxy: np.ndarray, gold: np.ndarray) -> Iterator[_Windows]:
    length = SHORTEST
    while 2 * length <= len(proxy):
        proxy_means, gold_means = _moving_means(proxy, length), _moving_means(gold, length)
        earlier = slice(0, len(proxy_means) - length)  # those that do not overlap the latest
        yield _Windows(
            length,
            proxy_means[-1] - proxy_means[earlier],
            gold_means[-1] - gold_means[earlier],
            _error(proxy, length),
            _error(gold, length),
        )
        length *= 2


def _moving_means(values: np.ndarray, length: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[length:] - sums[:-length]) / length


def _error(values: np.ndarray, length: int) -> float:
    """Return the standard error of a difference of two windows' means; a trend hardly enters successive differences."""
    return float(np.sqrt(np.square(np.diff(values)).mean() / 2 * 2 / length))


def _split(
    kind: Literal["falls", "stalls"], start: int, windows: _Windows, proxy: np.ndarray, gold: np.ndarray
) -> Split:
    before, now = slice(start, start + windows.length), slice(len(proxy) - windows.length, None)
    return Split(
        kind,
        start + windows.length - 1,
        (float(proxy[before].mean()), float(proxy[now].mean())),
        (float(gold[before].mean()), float(gold[now].mean())),
    )
