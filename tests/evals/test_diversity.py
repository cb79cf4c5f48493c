"""Measures of diversity by hand, what they do not depend on, and the reading of their loss."""

import numpy as np
import pytest

from posttrain.evals.diversity import COLLAPSE, Diversity, diversity, mean_diversity, mode_collapse

WORDS = [f"word{index}" for index in range(40)]


def sampled(rng: np.random.Generator, count: int, *, words: int = 30, variety: int = 40) -> list[str]:
    return [" ".join(rng.choice(WORDS[:variety], words)) for _ in range(count)]


def measured(completions: list[str]) -> Diversity:
    return diversity(completions, [len(completion.split()) for completion in completions])


def test_by_hand() -> None:
    found = diversity(["a b c", "A b d"], [3, 5])
    assert found.distinct_1 == pytest.approx(4 / 6)  # a b c d
    assert found.distinct_2 == pytest.approx(3 / 4)  # ab bc bd
    assert found.distinct_3 == pytest.approx(2 / 2)
    assert found.self_similarity == pytest.approx(2 * 1 / (2 + 2))
    assert found.duplicates == found.looping == 0.0
    assert found.mean_length == 4.0
    assert found.length_spread == pytest.approx(np.sqrt(2))


def test_the_same_text_every_time_has_no_diversity() -> None:
    found = measured(["so it is 42"] * 4)
    assert found.self_similarity == 1.0
    assert found.duplicates == pytest.approx(3 / 4)
    assert found.distinct_1 == pytest.approx(1 / 4)


def test_texts_shorter_than_a_run_are_compared_whole() -> None:
    assert measured(["42", "42"]).self_similarity == 1.0
    assert measured(["42", "43"]).self_similarity == 0.0
    assert measured(["", ""]).self_similarity == 1.0
    assert measured(["", "42"]).self_similarity == 0.0


def test_self_similarity_does_not_depend_on_the_number_of_samples_and_distinct_words_do() -> None:
    rng = np.random.default_rng(0)
    few, many = ([measured(sampled(rng, count, variety=10)) for _ in range(100)] for count in (2, 8))
    similar = [np.mean([problem.self_similarity for problem in problems]) for problems in (few, many)]
    distinct = [np.mean([problem.distinct_1 for problem in problems]) for problems in (few, many)]
    assert similar[0] == pytest.approx(similar[1], rel=0.1)
    assert distinct[0] > 2 * distinct[1]


def test_a_loop_is_told_from_a_list() -> None:
    loop = "the answer is 4 " + "so we add 2 to it and " * 10
    steps = "\n".join(f"Step {index}: add {index} to get {index * 7}" for index in range(10))
    assert measured([loop, steps]).looping == 0.5


def test_one_completion_has_no_diversity_to_measure() -> None:
    with pytest.raises(ValueError, match="at least 2 completions of a problem, not 1"):
        diversity(["a"], [1])


def test_means_over_problems_have_intervals_also_where_nothing_loops() -> None:
    rng = np.random.default_rng(1)
    problems = [measured(sampled(rng, 4)) for _ in range(30)]
    found = mean_diversity(problems, 4)
    mean, interval = found["self_similarity"]
    assert mean == pytest.approx(np.mean([problem.self_similarity for problem in problems]))
    assert interval.low < mean < interval.high
    assert found["looping"][0] == 0.0
    assert found["looping"][1].high > 0.05
    assert list(found) == list(Diversity._fields)


def test_a_collapse_is_told_and_a_small_or_no_change_is_not() -> None:
    rng = np.random.default_rng(2)
    before, after, collapsed = (
        [measured(sampled(rng, 4, variety=variety)) for _ in range(40)] for variety in (40, 40, 6)
    )
    claim = mode_collapse(before, collapsed)
    assert claim.p < 0.001
    assert claim.holds.startswith("less diverse: similarity of two samples of a problem 0.0")
    assert mode_collapse(before, after).p > 0.05
    assert mode_collapse(collapsed, before).p == 1.0
    slightly = [problem._replace(self_similarity=problem.self_similarity + COLLAPSE / 2) for problem in before]
    assert mode_collapse(before, slightly).p == 1.0
