"""Intervals and tests against scipy, worked numbers, and simulations whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from posttrain.evals.stats import (
    accuracy_interval,
    holm,
    mcnemar_p,
    paired_difference,
    paired_p,
    pass_at_k,
    smallest_detectable_difference,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (1, 7), (50, 100), (200, 200), (3, 1319)])
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    expected = scipy_stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_one_sample_a_problem_gives_the_plain_wilson_interval() -> None:
    correct = np.array([[1], [0], [1], [1]])
    assert accuracy_interval(correct) == pytest.approx(wilson_interval(3, 4))


def test_copies_of_one_sample_carry_no_information() -> None:
    once = np.array([[1], [0], [1], [1], [0]])
    assert accuracy_interval(np.repeat(once, 8, axis=1)) == pytest.approx(accuracy_interval(once))
    assert accuracy_interval(np.ones((5, 8))) == pytest.approx(wilson_interval(5, 5))


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


def test_smallest_detectable_difference_by_hand() -> None:
    assert smallest_detectable_difference(0.5, 200) == pytest.approx((1.959964 + 0.841621) * 0.5 / math.sqrt(200))
    three = smallest_detectable_difference(0.5, 200, tests=3)  # each at 5% / 3
    assert three == pytest.approx((2.393980 + 0.841621) * 0.5 / math.sqrt(200))


def test_paired_difference_by_hand() -> None:
    a, b = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    found = paired_difference(a, b)
    # Bonett & Price: p12 = 2/6, p21 = 1/6
    half = 1.959964 * math.sqrt((2 / 6 + 1 / 6 - (1 / 6) ** 2) / 6)
    assert found.mean == 0.25
    assert found.interval == pytest.approx((1 / 6 - half, 1 / 6 + half), abs=1e-6)


def test_models_that_agree_everywhere_still_leave_doubt() -> None:
    same = np.array([1.0, 0.0] * 50)
    found = paired_difference(same, same)
    assert found.mean == 0.0
    assert found.interval.low < -0.01 < 0.01 < found.interval.high
    assert smallest_detectable_difference(found.std, len(same)) == pytest.approx(2.801585 * math.sqrt(2 / 102) / 10)


def simulate(rng: np.random.Generator, problems: int, samples: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Two models of problem-dependent skill; the second is better by `gain` on the average problem."""
    skill = rng.beta(1.0, 1.0, problems) * (1 - gain)
    draw = lambda p: rng.binomial(samples, p) / samples  # noqa: E731
    return draw(skill), draw(skill + gain)


@pytest.mark.parametrize(("problems", "samples", "gain"), [(50, 1, 0.0), (200, 1, 0.2), (60, 8, 0.1)])
def test_paired_intervals_cover_the_truth(problems: int, samples: int, gain: float) -> None:
    rng = np.random.default_rng(1)
    covered = [
        low <= gain <= high
        for low, high in (
            paired_difference(*simulate(rng, problems, samples, gain), samples=samples).interval for _ in range(2000)
        )
    ]
    assert 0.935 < np.mean(covered) < 0.985


def test_clustered_accuracy_intervals_cover_the_truth_and_flat_ones_do_not() -> None:
    rng = np.random.default_rng(2)
    clustered, flat = [], []
    for _ in range(2000):
        skill = rng.beta(0.5, 0.5, (80, 1))  # problems are mostly easy or hard; mean skill is 0.5
        correct = rng.random((80, 8)) < skill
        interval = accuracy_interval(correct.astype(float))
        clustered.append(interval.low <= 0.5 <= interval.high)
        naive = wilson_interval(correct.sum(), correct.size)
        flat.append(naive.low <= 0.5 <= naive.high)
    assert 0.935 < np.mean(clustered) < 0.975
    assert np.mean(flat) < 0.75  # the control: ignoring clusters is badly overconfident


def test_false_alarms_stay_at_five_percent() -> None:
    rng = np.random.default_rng(3)
    one = np.mean([paired_p(*simulate(rng, 100, 1, 0.0)) < 0.05 for _ in range(1500)])
    several = np.mean([paired_p(*simulate(rng, 40, 4, 0.0)) < 0.05 for _ in range(200)])
    assert one < 0.06
    assert several < 0.10
