"""Intervals and tests against scipy, statsmodels and worked numbers; `test_simulations` has their coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

from posttrain.evals.stats import (
    Interval,
    accuracy_interval,
    bootstrap_interval,
    holm,
    mcnemar_p,
    mean_interval,
    no_gain_p,
    paired_difference,
    paired_p,
    pass_at_k,
    share_interval,
    smallest_detectable_difference,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (1, 7), (50, 100), (200, 200), (3, 1319)])
def test_wilson_is_scipys_and_statsmodels(successes: int, trials: int) -> None:
    expected = scipy_stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson_interval(successes, trials) == pytest.approx(
        proportion_confint(successes, trials, method="wilson"), abs=1e-12
    )


def test_one_sample_a_problem_gives_the_plain_wilson_interval() -> None:
    correct = np.array([[1], [0], [1], [1]])
    assert accuracy_interval(correct) == pytest.approx(wilson_interval(3, 4))


def test_copies_of_one_sample_carry_no_information() -> None:
    once = np.array([[1], [0], [1], [1], [0]])
    assert accuracy_interval(np.repeat(once, 8, axis=1)) == pytest.approx(accuracy_interval(once))
    assert accuracy_interval(np.ones((5, 8))) == pytest.approx(wilson_interval(5, 5))


def test_samples_of_problems_that_are_all_alike_count_one_by_one() -> None:
    even = np.tile([1.0, 0.0, 0.0, 1.0], (20, 1))
    even[0] = 1.0  # or nothing would vary
    assert accuracy_interval(even) == pytest.approx(wilson_interval(42, 80))
    assert share_interval(even.mean(axis=1), 4) == accuracy_interval(even)


def test_the_interval_of_a_mean_is_the_t_interval_of_problem_means() -> None:
    values = np.random.default_rng(0).normal(3, 2, (30, 4))
    expected = scipy_stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(np.repeat(values, 5, axis=1)) == pytest.approx(mean_interval(values))
    assert mean_interval(np.full((3, 2), 7.0)) == (7.0, 7.0)
    assert mean_interval(values[:1]) == (-math.inf, math.inf)


def test_the_bootstrap_is_scipys_over_problems() -> None:
    means = np.random.default_rng(1).gamma(2.0, size=40)
    found = bootstrap_interval(lambda drawn: means[drawn].mean(axis=-1), 40, resamples=999)
    expected = scipy_stats.bootstrap((means,), np.mean, n_resamples=999, batch=50, rng=np.random.default_rng(0))
    assert found == pytest.approx(tuple(expected.confidence_interval))
    assert bootstrap_interval(lambda drawn: np.full(drawn.shape[:-1], 2.0), 40, resamples=99) == (2.0, 2.0)
    assert bootstrap_interval(lambda drawn: drawn.mean(axis=-1), 1) == Interval(-math.inf, math.inf)


def test_pass_at_k_counts_subsets() -> None:
    for samples in range(1, 7):
        for correct in range(samples + 1):
            outcomes = [1] * correct + [0] * (samples - correct)
            for k in range(1, samples + 1):
                subsets = list(itertools.combinations(outcomes, k))
                assert pass_at_k(samples, correct, k) == pytest.approx(np.mean([max(s) for s in subsets]))


def test_pass_at_k_is_stable_and_bounded() -> None:
    assert pass_at_k(10000, 1, 100) == pytest.approx(0.01, rel=1e-9)
    assert pass_at_k(10000, 0, 100) == 0.0
    with pytest.raises(ValueError, match="pass@3 needs k between 1 and the 2 samples"):
        pass_at_k(2, 1, 3)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar_p(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar_p(5, 5) == 1.0
    assert mcnemar_p(0, 0) == 1.0
    for fixed, regressed in ((9, 1), (3, 4), (0, 6), (40, 20)):
        expected = mcnemar([[50, fixed], [regressed, 30]], exact=True).pvalue
        assert mcnemar_p(fixed, regressed) == pytest.approx(expected)


def test_paired_p_with_one_sample_is_mcnemars() -> None:
    a = np.array([0.0] * 9 + [1.0] + [1.0] * 20)
    b = np.array([1.0] * 9 + [0.0] + [1.0] * 20)
    assert paired_p(a, b) == mcnemar_p(9, 1)


def test_paired_p_with_several_samples_flips_signs() -> None:
    a, b = np.zeros(6), np.array([0.25, 0.5, 0.5, 0.75, 0.25, 1.0])
    assert paired_p(a, b) == pytest.approx(2 / 2**6)  # all six on one side, exactly
    assert paired_p(b, a) == pytest.approx(paired_p(a, b))
    assert paired_p(b, b) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    p_values = np.random.default_rng(0).random(12) ** 3
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_smallest_detectable_difference_by_hand() -> None:
    assert smallest_detectable_difference(0.5, 200) == pytest.approx((1.959964 + 0.841621) * 0.5 / math.sqrt(200))
    found = smallest_detectable_difference(0.5, 200)
    assert NormalIndPower().power(found / 0.5, 200, 0.05, ratio=0) == pytest.approx(0.8, abs=1e-5)
    three = smallest_detectable_difference(0.5, 200, tests=3)  # each at 5% / 3
    assert three == pytest.approx((2.393980 + 0.841621) * 0.5 / math.sqrt(200))


def test_paired_difference_by_hand() -> None:
    a, b = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    found = paired_difference(a, b)
    # Bonett & Price: p12 = 2/6, p21 = 1/6
    half = 1.959964 * math.sqrt((2 / 6 + 1 / 6 - (1 / 6) ** 2) / 6)
    assert found.mean == 0.25
    assert found.interval == pytest.approx((1 / 6 - half, 1 / 6 + half), abs=1e-6)


def test_several_samples_weigh_what_is_added_as_two_samples() -> None:
    a, b = np.array([0.0, 0.25, 0.5]), np.array([0.25, 0.75, 0.5])
    found = paired_difference(a, b, samples=4)
    added, weights = np.array([0.25, 0.5, 0.0, 1.0, -1.0]), np.array([1, 1, 1, 0.25, 0.25])
    centre = 0.75 / 3.5
    error = math.sqrt((weights * (added - centre) ** 2).sum() / 3.5 / 3.5)
    assert found.mean == pytest.approx(0.25)
    assert found.interval == pytest.approx((centre - 1.959964 * error, centre + 1.959964 * error), abs=1e-6)


def test_scores_that_are_no_shares_have_the_paired_t_interval() -> None:
    a, b = np.random.default_rng(2).normal(0, 9, (2, 25))
    found = paired_difference(a, b, samples=None)
    expected = scipy_stats.ttest_rel(b, a).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.interval.high - found.interval.low > 2  # not cut off at 1 and -1
    assert found.std == pytest.approx((b - a).std(ddof=1))
    alone = paired_difference(a[:1], b[:1], samples=None)
    assert alone.interval == (-math.inf, math.inf)
    assert smallest_detectable_difference(alone.std, 1) == math.inf


def test_a_test_that_a_gain_is_small_is_one_sided() -> None:
    a, b = np.random.default_rng(3).normal(0, 1, (2, 40))
    expected = scipy_stats.ttest_1samp(b - a, 0.4, alternative="less").pvalue
    assert no_gain_p(a, b, 0.4, samples=None) == pytest.approx(expected)
    assert no_gain_p(a, b, 0.4, samples=None) + no_gain_p(b, a, -0.4, samples=None) == pytest.approx(1.0)
    assert no_gain_p(a, a, 0.1, samples=None) == 0.0
    assert no_gain_p(a, a, 0.0, samples=None) == 1.0
    assert no_gain_p(a[:1], b[:1], 9.0, samples=None) == 1.0


def test_equal_shares_rule_out_a_gain_only_over_many_problems() -> None:
    few, many = np.tile([1.0, 0.0], 10), np.tile([1.0, 0.0], 100)
    assert no_gain_p(few, few, 0.05) > 0.05
    assert no_gain_p(many, many, 0.05) < 0.05


@pytest.mark.parametrize("difference", [0.0, 0.3, -1.0])
def test_paired_p_of_models_that_differ_on_one_problem_at_most(difference: float) -> None:
    a = np.array([0.5, 0.25, 1.0])
    assert paired_p(a, a + np.array([0.0, difference, 0.0])) == 1.0


def test_paired_p_takes_any_scores() -> None:
    a, b = np.random.default_rng(4).normal(0, 5, (2, 30))
    assert paired_p(a, b) == pytest.approx(scipy_stats.ttest_rel(b, a).pvalue, abs=0.02)
    assert paired_p(a, a + 3 + b / 5) < 0.01


def test_models_that_agree_everywhere_still_leave_doubt() -> None:
    same = np.array([1.0, 0.0] * 50)
    found = paired_difference(same, same)
    assert found.mean == 0.0
    assert found.interval.low < -0.01 < 0.01 < found.interval.high
    assert smallest_detectable_difference(found.std, len(same)) == pytest.approx(2.801585 * math.sqrt(2 / 102) / 10)


def test_false_alarms_stay_at_five_percent() -> None:
    rng = np.random.default_rng(3)

    def share_of_alarms(problems: int, samples: int, simulations: int) -> float:
        skill = rng.random((simulations, problems))
        two = rng.binomial(samples, skill, (2, simulations, problems)) / samples
        return float(np.mean([paired_p(a, b) < 0.05 for a, b in zip(*two, strict=True)]))

    assert share_of_alarms(100, 1, 1500) < 0.06
    assert share_of_alarms(40, 4, 100) < 0.11
