"""Coverage of intervals and false alarms of claims; `simulate_statistics` has the whole of it, at more sizes."""

import math

import pytest

from posttrain.evals.verdicts import ALPHA
from tests.evals import simulate_statistics as simulated
from tests.evals.simulate_statistics import CONTROLS, FALSE_CLAIMS, INTERVALS, TRUE_CLAIMS

SLOW = {"win rate at equal length": 150, "Cohen's kappa": 300, "maj@3": 300}  # simulations of each
BOOTSTRAPS = {"slope on length, Theil-Sen"}  # in the whole simulation only


def noise(share: float, simulations: int) -> float:
    """Return two standard errors of a share that is counted in so many simulations."""
    return 2 * math.sqrt(share * (1 - share) / simulations)


@pytest.mark.parametrize("name", [name for name in INTERVALS if name not in BOOTSTRAPS])
def test_intervals_hold_the_truth_in_95_of_100_evaluations(name: str) -> None:
    case, simulations = INTERVALS[name], SLOW.get(name, 1000)
    for samples in case.samples:
        share = simulated.coverage(name, case, 50, samples, simulations)
        assert 0.93 - noise(0.95, simulations) <= share <= 0.97 + noise(0.95, simulations)


@pytest.mark.parametrize("name", CONTROLS)
def test_what_ignores_how_the_data_came_about_misses_it(name: str) -> None:
    case = CONTROLS[name]
    share = simulated.coverage(name, case, 50, case.samples[-1], 100)
    assert not 0.92 < share < 0.98


@pytest.mark.parametrize("name", FALSE_CLAIMS)
def test_false_claims_are_rare_over_all_models(name: str) -> None:
    share = simulated.claimed(name, *FALSE_CLAIMS[name], problems=100, simulations=300)
    assert share <= ALPHA + noise(ALPHA, 300)


@pytest.mark.parametrize("name", TRUE_CLAIMS)
def test_true_claims_are_made(name: str) -> None:
    assert simulated.claimed(name, *TRUE_CLAIMS[name], problems=500, simulations=30) > 0.6


def test_missing_significance_would_accuse_healthy_runs() -> None:
    gained = simulated.Change(gold=0.08, proxy=0.8)
    share = simulated.claimed("control", simulated.hacking_by_missing_significance, gained, 50, 100)
    assert share > 0.5


def test_equal_models_are_called_equal_and_without_holm_they_are_not() -> None:
    assert simulated.verdicts_without_difference(100, 1, 400) <= ALPHA + noise(ALPHA, 400)
    assert simulated.verdicts_without_difference(100, 1, 60, adjusted=False, models=10) > 0.1
