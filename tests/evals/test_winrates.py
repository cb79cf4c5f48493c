"""Win rates by hand and against the model of AlpacaEval, position bias with a known judge, agreement by statsmodels."""

import math

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.inter_rater import cohens_kappa

from posttrain.evals.stats import paired_difference
from posttrain.evals.winrates import (
    MIN_PROMPTS,
    Rate,
    agreement,
    first_shown_rate,
    length_controlled_win_rate,
    win_rate,
    wins_by_score,
)

PROMPTS = np.arange(50)


def controlled(wins: np.ndarray, gaps: np.ndarray, prompts: np.ndarray = PROMPTS) -> Rate:
    found = length_controlled_win_rate(wins, gaps, prompts)
    assert found is not None
    assert all(math.isfinite(number) for number in (found.rate, *found.interval))
    assert 0 <= found.interval.low <= found.rate <= found.interval.high <= 1
    return found


def gaps_of(mean: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 80, 50)


# --- raw -------------------------------------------------------------------------------------------------------


def test_prompts_weigh_the_same_and_a_tie_is_half_a_win() -> None:
    wins, prompts = np.array([1.0, 1.0, 0.0, 0.5]), np.array([7, 7, 7, 3])
    found = win_rate(wins, prompts)
    assert found.rate == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert win_rate(1 - wins, prompts).rate == pytest.approx(1 - found.rate)


def test_the_interval_is_that_of_wins_less_losses() -> None:
    wins = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 80)
    expected = paired_difference(1 - wins, wins)
    found = win_rate(wins, np.arange(80))
    assert found.interval == pytest.approx([(1 + end) / 2 for end in expected.interval])


def test_scores_give_wins_and_ties() -> None:
    assert wins_by_score(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist() == [0.0, 0.5, 1.0]


# --- position --------------------------------------------------------------------------------------------------


def judged(skill: float, bias: float, *, both_orders: bool, first_share: float = 0.5, count: int = 3000):
    """Verdicts of a judge who adds `bias` to what is shown first, about a model that is better by `skill`."""
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(count), 1 + both_orders)
    first = np.tile([True, False], count) if both_orders else rng.random(count) < first_share
    margin = skill + rng.logistic(size=count)[prompts] + np.where(first, bias, -bias)
    return (margin > 0).astype(float), first, prompts


@pytest.mark.parametrize("both_orders", [True, False])
@pytest.mark.parametrize("first_share", [0.5, 0.2])
@pytest.mark.parametrize("skill", [0.0, 1.5])
def test_position_bias_is_found_whatever_the_models_are_worth(
    both_orders: bool, first_share: float, skill: float
) -> None:
    fair = first_shown_rate(*judged(skill, 0.0, both_orders=both_orders, first_share=first_share))
    biased = first_shown_rate(*judged(skill, 0.5, both_orders=both_orders, first_share=first_share))
    assert fair is not None
    assert biased is not None
    assert fair.interval.low <= 0.5 <= fair.interval.high
    true = (special.expit(skill + 0.5) + 1 - special.expit(skill - 0.5)) / 2
    assert biased.interval.low - 0.005 <= true <= biased.interval.high + 0.005
    assert biased.interval.low > 0.5


def test_with_both_orders_it_is_the_plain_share_of_what_was_shown_first() -> None:
    wins, first, prompts = judged(0.5, 0.4, both_orders=True, count=40)
    found = first_shown_rate(wins, first, prompts)
    expected = win_rate(np.where(first, wins, 1 - wins), prompts)
    assert found is not None
    assert found.rate == pytest.approx(expected.rate)
    assert found.interval == pytest.approx(expected.interval)


def test_one_order_cannot_tell_position_from_quality() -> None:
    assert first_shown_rate(np.ones(20), np.ones(20), np.arange(20)) is None


# --- at equal length ---------------------------------------------------------------------------------------------


def test_length_alone_is_not_skill() -> None:
    """A judge who only likes length: the raw rate of a verbose model is high, that at equal length one half."""
    rng = np.random.default_rng(1)
    gaps = rng.normal(80, 80, 2000)
    wins = (rng.random(2000) < special.expit(2 * np.tanh(gaps / gaps.std()))).astype(float)
    assert win_rate(wins, np.arange(2000)).rate > 0.7
    assert controlled(wins, gaps, np.arange(2000)).rate == pytest.approx(0.5, abs=0.05)


def test_equal_models_and_swapped_models() -> None:
    wins, gaps = np.tile([1.0, 0.0], 25), gaps_of(0)
    found, swapped = controlled(wins, gaps), controlled(1 - wins, -gaps)
    assert swapped.rate == pytest.approx(1 - found.rate)
    assert swapped.interval == pytest.approx((1 - found.interval.high, 1 - found.interval.low))


def test_the_estimate_and_its_error_by_hand() -> None:
    """Newton's method on the penalised likelihood, and the sandwich over prompts with the added records."""
    rng = np.random.default_rng(2)
    prompts = np.repeat(np.arange(30), 2)
    gaps = rng.normal(40, 60, 60)
    wins = rng.choice([0.0, 0.5, 1.0], 60)
    rows = np.column_stack([np.ones(60), np.tanh(gaps / gaps.std())])
    x = np.concatenate([rows, np.repeat(np.eye(2), 2, axis=0)])
    y, weights = np.append(wins, [1, 0, 1, 0]), np.append(np.ones(60), np.full(4, 0.5))
    groups = np.append(prompts, 30 + np.arange(4))
    beta = np.zeros(2)
    for _ in range(30):
        chance = special.expit(x @ beta)
        bread = np.linalg.inv((x.T * (weights * chance * (1 - chance))) @ x)
        beta += bread @ x.T @ (weights * (y - chance))
    pulls = x * (weights * (y - special.expit(x @ beta)))[:, None]
    of_groups = np.stack([np.bincount(groups, column) for column in pulls.T])
    error = np.sqrt((bread @ of_groups @ of_groups.T @ bread)[0, 0] * 34 / 33 * 63 / 62)
    found = controlled(wins, gaps, prompts)
    half = stats.t.ppf(0.975, 28) * error
    assert found.rate == pytest.approx(special.expit(beta[0]))
    assert found.interval == pytest.approx(special.expit([beta[0] - half, beta[0] + half]), abs=2e-3)


@pytest.mark.parametrize("wins", [1.0, 0.0])
def test_a_model_that_always_wins_or_loses_has_a_finite_rate(wins: float) -> None:
    found = controlled(np.full(50, wins), gaps_of(30))
    assert abs(found.rate - wins) < 0.05
    assert found.interval.low > 0.85 or found.interval.high < 0.15


def test_where_the_longer_answer_always_wins_the_models_are_even() -> None:
    gaps = gaps_of(0)
    found = controlled((gaps > 0).astype(float), gaps)
    assert found.interval.low < 0.5 < found.interval.high


def test_a_model_that_always_wins_and_is_always_longer_could_be_anything() -> None:
    found = controlled(np.ones(50), np.abs(gaps_of(0)) + 1)
    assert found.interval.high - found.interval.low > 0.5


def test_nothing_but_ties_leaves_some_doubt() -> None:
    found = controlled(np.full(50, 0.5), gaps_of(30))
    assert found.rate == pytest.approx(0.5)
    assert 0.01 < found.interval.high - found.interval.low < 0.1


def test_without_length_differences_it_is_the_raw_rate() -> None:
    wins = np.tile([1.0, 1.0, 0.0, 1.0, 0.5], 10)
    assert controlled(wins, np.zeros(50)).rate == pytest.approx(wins.mean(), abs=0.01)


def test_what_cannot_be_told_is_none() -> None:
    assert length_controlled_win_rate(np.tile([1.0, 0.0], 25), np.full(50, 12.0), PROMPTS) is None
    few = MIN_PROMPTS - 1
    assert length_controlled_win_rate(np.ones(few), np.arange(few), np.arange(few)) is None


# --- agreement -------------------------------------------------------------------------------------------------


def test_agreement_is_statsmodels_kappa() -> None:
    judge, human = ["A", "A", "B", "tie", "B", "A"], ["A", "B", "B", "tie", "B", "tie"]
    found = agreement(judge, human)
    table = np.array([[1, 1, 1], [0, 2, 0], [0, 0, 1]])  # of A, B, tie
    expected, around = cohens_kappa(table), cohens_kappa(table + 2 / 9)
    assert found.items == 6
    assert found.accuracy.rate == pytest.approx(4 / 6)
    assert found.kappa == pytest.approx(expected.kappa)
    assert found.kappa_interval is not None
    assert found.kappa_interval == pytest.approx((around.kappa_low, min(1, around.kappa_upp)))


def test_full_agreement_on_few_items_leaves_doubt() -> None:
    found = agreement(["A", "B"] * 5, ["A", "B"] * 5)
    assert found.kappa == pytest.approx(1.0)
    assert found.kappa_interval is not None
    assert found.kappa_interval.low < 0.75
    assert found.kappa_interval.high == 1.0


@pytest.mark.parametrize("labels", [["A"] * 9, ["A"] * 6 + ["B"] * 3])
def test_one_who_always_says_the_same_has_no_kappa(labels: list[str]) -> None:
    found = agreement(["A"] * 9, labels)
    assert found.accuracy.rate == labels.count("A") / 9
    assert found.accuracy.interval.low < 0.75
    assert found.kappa is None
    assert found.kappa_interval is None
