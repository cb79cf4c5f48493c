"""maj@k: how often the most frequent of k answers is right.

Pure numpy and scipy. Self-consistency: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in
Language Models", arXiv 2203.11171.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from functools import lru_cache

import numpy as np
from scipy import stats


def majority_accuracy(answers: Sequence[Hashable | None], right: Collection[Hashable], k: int) -> float:
    """Return the chance that the most frequent of `k` of a problem's n >= k answers is among the `right` ones.

    It is the exact mean over all subsets of k samples, without bias for a fresh vote of k. Answers are equal where
    their keys are; None, no answer found, votes for nothing. Of m answers with equally many votes each wins with
    chance 1/m; a vote without any answer is wrong. Raises ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs k between 1 and the {len(answers)} samples")
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    chance = 0.0
    for answer in set(right) & votes.keys():
        others = tuple(sorted(count for other, count in votes.items() if other != answer))
        chance += _chance_of_winning(votes[answer], others, silent, k)
    return chance


@lru_cache(maxsize=65536)
def _chance_of_winning(own: int, others: tuple[int, ...], silent: int, k: int) -> float:
    """Return the chance that an answer given in `own` samples wins a vote of k, against answers given in `others`.

    The votes of a random subset are independent binomial numbers, given that they add up to k. For each number of
    votes to win with, `rest` holds the chance of the other votes by how many answers tie (rows) and how many samples
    are spent (columns).
    """
    samples = own + sum(others) + silent
    chance = 0.0
    for won in range(1, min(own, k) + 1):
        left = k - won
        rest = np.zeros((left // won + 1, left + 1))
        rest[0, 0] = 1.0
        for count in others:
            votes = _votes(count, k, samples)
            with_fewer = _convolved(rest, votes[:won])
            if count >= won and left >= won:
                with_fewer[1:, won:] += votes[won] * rest[:-1, : left - won + 1]
            rest = with_fewer
        spent = _convolved(rest, _votes(silent, k, samples))[:, left]
        chance += float(_votes(own, k, samples)[won] * (spent / np.arange(1, len(spent) + 1)).sum())
    return chance / float(_votes(samples, k, samples)[k])


def _convolved(rows: np.ndarray, votes: np.ndarray) -> np.ndarray:
    return np.stack([np.convolve(row, votes)[: rows.shape[1]] for row in rows])


@lru_cache(maxsize=65536)
def _votes(count: int, k: int, samples: int) -> np.ndarray:
    """Return the binomial chances of 0, 1, ... min(count, k) votes of `count` samples, each drawn with chance k/n."""
    return stats.binom.pmf(np.arange(min(count, k) + 1), count, k / samples)
