"""Best of n: what the sample that a proxy likes best is worth, and how far that choice leads from the policy.

Floor 4, pure numpy. Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization", arXiv 2210.10760,
with the estimator of Nakano et al. 2021, arXiv 2112.09332.
"""

import math

import numpy as np


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n, in nats: the KL of the best of n samples to the policy that they are samples of.

    It is exact where no two samples can tie, else an upper bound (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def expected_best(proxy: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Return the expected value `(P,)` of the sample with the highest proxy among n of each prompt's N.

    `proxy` and `values` are `(P, N)`. The expectation is over all subsets of n samples, which makes it an unbiased
    estimate of best-of-n: in ascending order of proxy, the sample at rank i is the best of C(i - 1, n - 1) of the
    C(N, n) subsets. Samples of equal proxy share their subsets: chance breaks ties. Raises ValueError unless
    1 <= n <= N.
    """
    samples = proxy.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"best of {n} needs n between 1 and the {samples} samples")
    subsets = math.comb(samples, n)
    chances = np.array([math.comb(rank - 1, n - 1) / subsets for rank in range(1, samples + 1)])
    return np.array([_expected(row, of_row, chances) for row, of_row in zip(proxy, values, strict=True)])


def _expected(proxy: np.ndarray, values: np.ndarray, chances: np.ndarray) -> float:
    """Return the mean of one prompt's values, weighted by the chance `(N,)` that each rank of the proxy is the best."""
    _, level, sizes = np.unique(proxy, return_inverse=True, return_counts=True)
    of_level = np.bincount(np.repeat(np.arange(len(sizes)), sizes), chances)
    return float(of_level @ (np.bincount(level, values) / sizes))
