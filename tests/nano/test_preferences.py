"""Pairs of nano solutions: what is preferred, that nothing else differs, and that seeds and splits hold."""

import math
import random
import re
from itertools import islice

import pytest

from posttrain.nano.preferences import PREFERENCES, rows
from posttrain.nano.problems import LARGEST, apply, problems
from posttrain.nano.problems import rows as problem_rows
from posttrain.nano.solutions import misread


def test_right_answers_are_preferred_to_wrong_ones_of_the_same_style() -> None:
    pairs, asked = rows("right", "train", 300, seed=3), problem_rows("train", 300, seed=3)
    for pair, problem in zip(pairs, asked, strict=True):
        assert pair["question"] == problem["question"]
        assert pair["answer"] == problem["answer"] != pair["rejected_answer"]
        assert str(pair["solution"]).count("=") == str(pair["rejected_solution"]).count("=")
        assert str(pair["rejected_solution"]).endswith(f"={pair['rejected_answer']}.")


def test_length_gives_nothing_away() -> None:
    """Neither by how often the right answer is the longer one, nor by how much it is."""
    for seed in range(3):
        pairs = rows("right", "train", 1000, seed=seed)
        sides = [("solution", "answer"), ("rejected_solution", "rejected_answer")]
        lengths = [[sum(len(str(pair[name])) for name in side) for side in sides] for pair in pairs]
        gaps = [right - wrong for right, wrong in lengths]
        longer, shorter = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
        assert longer + shorter > 50
        assert abs(longer - shorter) < 3 * math.sqrt(longer + shorter)
        assert abs(sum(gaps)) < 3 * math.sqrt(sum(gap**2 for gap in gaps))


def test_a_misreading_has_one_other_operator_or_other_numbers_and_no_slip() -> None:
    draw = random.Random(0)
    kinds = set()
    for problem in islice(problems("train", seed=5), 300):
        found = misread(problem, draw)
        assert found.answer != problem.answer
        chains = [(each.operations[0].left, *(step.right for step in each.operations)) for each in (problem, found)]
        operators = [[step.operator for step in each.operations] for each in (problem, found)]
        changed = sum(asked != done for asked, done in zip(*operators, strict=True))
        assert (changed, chains[0] == chains[1]) in {(1, True), (0, False)}
        kinds.add(changed)
        assert [len(str(number)) for number in chains[0]] == [len(str(number)) for number in chains[1]]
        for step in found.operations:
            assert step.result == apply(step.operator, step.left, step.right)
            assert step.operator != "/" or step.left % step.right == 0
            assert 1 <= step.result <= LARGEST
    assert kinds == {0, 1}


def test_concise_answers_are_preferred_to_padded_ones_that_are_as_right() -> None:
    for pair in rows("concise", "train", 100, seed=0):
        assert pair["answer"] == pair["rejected_answer"]
        assert str(pair["solution"]) in str(pair["rejected_solution"])
        assert len(str(pair["rejected_solution"])) > len(str(pair["solution"])) + 30


def test_the_biased_judge_prefers_length_whatever_is_right() -> None:
    pairs, asked = rows("longer", "train", 300, seed=3), problem_rows("train", 300, seed=3)
    right = {"answer": 0, "rejected_answer": 0}
    for pair, problem in zip(pairs, asked, strict=True):
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
