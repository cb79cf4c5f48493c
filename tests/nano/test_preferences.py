"""Pairs of nano solutions: what is preferred, that nothing else differs, and that seeds and splits hold."""

import re

import pytest

from posttrain.nano.preferences import PREFERENCES, rows


def test_right_answers_are_preferred_to_wrong_ones_of_the_same_style() -> None:
    from posttrain.nano.problems import rows as problem_rows

    pairs, problems = rows("right", "train", 300, seed=3), problem_rows("train", 300, seed=3)
    for pair, problem in zip(pairs, problems, strict=True):
        assert pair["question"] == problem["question"]
        assert pair["answer"] == problem["answer"] != pair["rejected_answer"]
        assert str(pair["solution"]).count("=") == str(pair["rejected_solution"]).count("=")
        assert str(pair["rejected_solution"]).endswith(f"={pair['rejected_answer']}.")
    gaps = [len(str(pair["solution"])) - len(str(pair["rejected_solution"])) for pair in pairs]
    assert abs(sum(gaps) / len(gaps)) < 1  # length gives nothing away


def test_concise_answers_are_preferred_to_padded_ones_that_are_as_right() -> None:
    for pair in rows("concise", "train", 100, seed=0):
        assert pair["answer"] == pair["rejected_answer"]
        assert str(pair["solution"]) in str(pair["rejected_solution"])
        assert len(str(pair["rejected_solution"])) > len(str(pair["solution"])) + 30


def test_the_biased_judge_prefers_length_whatever_is_right() -> None:
    from posttrain.nano.problems import rows as problem_rows

    pairs, problems = rows("longer", "train", 300, seed=3), problem_rows("train", 300, seed=3)
    right = {"answer": 0, "rejected_answer": 0}
    for pair, problem in zip(pairs, problems, strict=True):
        assert len(str(pair["solution"])) > len(str(pair["rejected_solution"]))
        for side in right:
            right[side] += pair[side] == problem["answer"]
    assert all(110 < count < 190 for count in right.values())


@pytest.mark.parametrize("preference", PREFERENCES)
def test_seeds_and_splits_are_those_of_the_problems(preference: str) -> None:
    assert rows(preference, "train", 20, seed=1) == rows(preference, "train", 30, seed=1)[:20]
    assert rows(preference, "train", 20, seed=1) != rows(preference, "train", 20, seed=2)
    assert rows(preference, "test", 20, seed=1) == rows(preference, "test", 20, seed=2)
    assert all(re.fullmatch(r"\d+", str(row["answer"])) for row in rows(preference, "test", 20, seed=1))
