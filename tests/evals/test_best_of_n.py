"""Best of n against every subset, and against drawing."""

import math
from itertools import combinations

import numpy as np
import pytest

from posttrain.evals.best_of_n import best_of_n_kl, expected_best


def over_all_subsets(proxy: np.ndarray, values: np.ndarray, n: int) -> float:
    """Return the mean over all subsets of n of the mean value of those with the highest proxy."""
    best = []
    for subset in combinations(range(len(proxy)), n):
        chosen = list(subset)
        winners = proxy[chosen] == proxy[chosen].max()
        best.append(values[chosen][winners].mean())
    return float(np.mean(best))


@pytest.mark.parametrize("levels", [2, 3, 1000], ids=["many ties", "some ties", "hardly any"])
@pytest.mark.parametrize("n", range(1, 8))
def test_it_is_the_mean_over_all_subsets(levels: int, n: int) -> None:
    draw = np.random.default_rng(n)
    proxy, values = draw.integers(levels, size=(5, 7)).astype(float), draw.normal(size=(5, 7))
    found = expected_best(proxy, values, n)
    expected = [over_all_subsets(row, of_row, n) for row, of_row in zip(proxy, values, strict=True)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_ignoring_ties_would_be_seen() -> None:
    proxy, values = np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 0.5]])
    assert expected_best(proxy, values, 3) == pytest.approx([0.5])  # by position it would be 0 or 1


def test_by_hand_and_at_the_ends() -> None:
    proxy, gold = np.array([[3.0, 1.0, 2.0]]), np.array([[0.0, 1.0, 0.5]])
    assert expected_best(proxy, gold, 1) == pytest.approx([0.5])  # the mean
    assert expected_best(proxy, gold, 2) == pytest.approx([(0.5 + 0 + 0) / 3])  # {1, 2}, {1, 3}, {2, 3}
    assert expected_best(proxy, gold, 3) == pytest.approx([0.0])
    with pytest.raises(ValueError, match="best of 4 needs n between 1 and the 3 samples"):
        expected_best(proxy, gold, 4)


def test_it_is_unbiased_where_the_largest_of_n_of_more_samples_is_not() -> None:
    """The expected maximum of 4 uniform numbers is 4/5; of the first 4 of 16 too, of all 16 it is 16/17."""
    uniform = np.random.default_rng(0).uniform(size=(4000, 16))
    found = expected_best(uniform, uniform, 4)
    assert found.mean() == pytest.approx(4 / 5, abs=3 * found.std() / math.sqrt(4000))
    assert uniform.max(axis=1).mean() > 0.9
    assert found.std() < uniform[:, :4].max(axis=1).std() / 1.5  # and less noisy than one subset


def test_kl_of_uniform_choices_is_that_of_the_formula() -> None:
    """With k equally likely samples of distinct proxies the KL is a sum, below the formula and near it for large k."""
    assert best_of_n_kl(1) == 0.0
    for n in (2, 4, 16):
        gaps = []
        for kinds in (5, 50, 5000):
            edges = (np.arange(kinds + 1) / kinds) ** n
            chance = np.diff(edges)
            exact = float((chance * np.log(chance * kinds)).sum())
            gaps.append(best_of_n_kl(n) - exact)
        assert gaps[0] > gaps[1] > gaps[2] > -1e-9
        assert gaps[2] < 0.02
