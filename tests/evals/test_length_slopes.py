"""Slopes over all completions against scipy, and beside the one within prompts."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from posttrain.evals import length_slopes as module
from posttrain.evals.bias import MIN_PROMPTS, within_slopes
from posttrain.evals.length_slopes import LengthSlopes, OverallSlope, length_slopes


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 199)


def rewarded(prompts: int = 30, samples: int = 4, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(prompts), samples)
    lengths = np.round(100 * np.exp(0.4 * rng.normal(size=len(numbers))))
    return 0.8 * lengths / 100 + rng.normal(size=prompts)[numbers] + rng.normal(size=len(numbers)), lengths, numbers


def overall(found: LengthSlopes) -> tuple[OverallSlope, OverallSlope]:
    assert found.least_squares is not None
    assert found.theil_sen is not None
    return found.least_squares, found.theil_sen


def test_slopes_are_scipys_per_100_tokens() -> None:
    scores, lengths, prompts = rewarded()
    found = length_slopes(scores, lengths, prompts)
    least_squares, theil_sen = overall(found)
    assert least_squares.slope == pytest.approx(stats.linregress(lengths / 100, scores).slope)
    assert theil_sen.slope == pytest.approx(stats.theilslopes(scores, lengths / 100).slope)
    assert found.within == within_slopes(scores, [lengths / 100], prompts)[0]
    assert all(each.interval.low < each.slope < each.interval.high for each in (least_squares, theil_sen))


def test_the_interval_of_least_squares_leaves_each_prompt_out() -> None:
    scores, lengths, prompts = rewarded(12, 3)
    least_squares, _ = overall(length_slopes(scores, lengths, prompts))
    left = [stats.linregress(lengths[prompts != prompt] / 100, scores[prompts != prompt]).slope for prompt in range(12)]
    error = np.sqrt(11 / 12 * ((np.array(left) - least_squares.slope) ** 2).sum())
    half = stats.t.ppf(0.975, 11) * error
    assert least_squares.interval == pytest.approx((least_squares.slope - half, least_squares.slope + half))


def test_a_resample_of_prompts_has_scipys_theil_sen_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, lengths, prompts = rewarded(12, 3)
    drawn = np.random.default_rng(1).integers(0, 12, (5, 12))
    seen: list[np.ndarray] = []

    def spy(statistic: Callable[[np.ndarray], np.ndarray], problems: int, *, resamples: int) -> None:
        seen.append(statistic(drawn))

    monkeypatch.setattr(module, "bootstrap_interval", spy)
    length_slopes(scores, lengths, prompts)
    for row, found in zip(drawn, seen[0], strict=True):
        inside = np.concatenate([np.flatnonzero(prompts == prompt) for prompt in row])
        assert found == pytest.approx(stats.theilslopes(scores[inside], lengths[inside] / 100).slope)


def test_hard_prompts_with_long_answers_make_a_slope_that_no_answer_has() -> None:
    rng = np.random.default_rng(2)
    prompts = np.repeat(np.arange(60), 4)
    hardness = rng.normal(size=60)[prompts]
    lengths, scores = 200 + 60 * hardness + 20 * rng.normal(size=240), -2 * hardness + rng.normal(size=240)
    found = length_slopes(scores, lengths, prompts)
    assert all(slope.interval.high < -1 for slope in overall(found))
    assert found.within is not None
    assert found.within.interval.low < 0 < found.within.interval.high


def test_outliers_move_least_squares_and_not_the_median() -> None:
    scores, lengths, prompts = rewarded()
    spoiled = scores.copy()
    spoiled[np.argsort(lengths)[-4:]] += 100
    before, after = overall(length_slopes(scores, lengths, prompts)), overall(length_slopes(spoiled, lengths, prompts))
    assert abs(after[0].slope - before[0].slope) > 5
    assert abs(after[1].slope - before[1].slope) < 1


def test_of_many_completions_pairs_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, lengths, prompts = rewarded(60, 4)
    every = stats.theilslopes(scores, lengths / 100)
    monkeypatch.setattr(module, "MAX_PAIRS", 10_000)
    first, second = module._pairs(240)
    assert len(first) == 10_000
    assert (first != second).all()
    _, drawn = overall(length_slopes(scores, lengths, prompts))
    assert drawn.slope == pytest.approx(every.slope, abs=0.1)
    assert drawn == overall(length_slopes(scores, lengths, prompts))[1]


def test_without_lengths_or_prompts_there_is_no_slope() -> None:
    scores, lengths, prompts = rewarded()
    assert length_slopes(scores, np.full(120, 50), prompts) == (None, None, None)
    assert length_slopes(scores, np.where(prompts == 3, lengths, 50), prompts) == (None, None, None)
    few = prompts < MIN_PROMPTS - 1
    assert length_slopes(scores[few], lengths[few], prompts[few]) == (None, None, None)
