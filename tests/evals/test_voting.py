"""maj@k against a count of every subset."""

import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np
import pytest

from posttrain.evals.voting import majority_accuracy


def counted(answers: Sequence[Hashable | None], right: Collection[Hashable], k: int) -> float:
    """Vote in every subset; of several winners each counts for its share."""
    found = []
    for subset in itertools.combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        winners = [answer for answer in votes if votes[answer] == max(votes.values())]
        found.append(sum(answer in right for answer in winners) / len(winners) if winners else 0.0)
    return float(np.mean(found))


def test_it_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        drawn = rng.integers(0, 5, rng.integers(1, 9)).tolist()
        answers = [None if answer == 0 else answer for answer in drawn]
        right = {1, 3} if rng.random() < 0.3 else {1}
        for k in range(1, len(answers) + 1):
            assert majority_accuracy(answers, right, k) == pytest.approx(counted(answers, right, k), abs=1e-12)


def test_one_vote_is_the_accuracy_and_all_votes_are_one_election() -> None:
    answers = ["12", "12", "7", None, "7", "12"]
    assert majority_accuracy(answers, {"12"}, 1) == pytest.approx(3 / 6)
    assert majority_accuracy(answers, {"12"}, 6) == 1.0
    assert majority_accuracy(answers, {"7"}, 6) == 0.0
    assert majority_accuracy(["12", "7", "7", "12"], {"7"}, 4) == pytest.approx(1 / 2)


def test_no_answer_votes_for_nothing() -> None:
    assert majority_accuracy([None, None, None, "7"], {"7"}, 4) == 1.0
    assert majority_accuracy([None, None], {"7"}, 2) == 0.0
    assert majority_accuracy([None, None], {None}, 2) == 0.0


def test_a_vote_of_independent_samples_is_estimated_without_bias() -> None:
    """Right with chance 0.6, else the one wrong answer: two or three of three are right with 3 p^2 - 2 p^3."""
    rng = np.random.default_rng(1)
    found = [majority_accuracy((rng.random(8) < 0.6).tolist(), {True}, 3) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(3 * 0.36 - 2 * 0.216, abs=0.015)


def test_many_samples_neither_overflow_nor_lose_precision() -> None:
    answers = [1] * 1200 + [0] * 800
    assert majority_accuracy(answers, {1}, 1) == pytest.approx(0.6)
    assert majority_accuracy(answers, {1}, 101) + majority_accuracy(answers, {0}, 101) == pytest.approx(1.0)


@pytest.mark.parametrize("k", [0, 3])
def test_too_many_votes_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"maj@{k} needs k between 1 and the 2 samples"):
        majority_accuracy([1, 2], {1}, k)
