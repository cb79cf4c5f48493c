"""The nano task: arithmetic that holds, splits that cannot overlap, the same problems for the same seed."""

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.nano.problems import LARGEST, LEVELS, SPLITS, Operation, Problem, apply, problems, rows
from posttrain.nano.solutions import TERSE_SHARE, demonstration, expression, steps, terse, worded_steps, wrong

FIRST_TEST_QUESTION = (
    "There are 22 coins on Lucy's table. Only one coin in 2 is kept. Then Lucy loses 8 of them. "
    "What is the number of coins that Lucy has at the end?"
)
FIRST_TEST_ANSWER = "3"
SAMPLE = {split: list(islice(problems(split, seed=5), 400)) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_chains_are_right_and_bounded(split: str) -> None:
    for problem in SAMPLE[split]:
        for operation in problem.operations:
            assert operation.result == apply(operation.operator, operation.left, operation.right)
            assert 1 <= operation.result <= LARGEST
            if operation.operator == "/":
                assert operation.left % operation.right == 0
        for before, after in zip(problem.operations, problem.operations[1:], strict=False):
            assert before.result == after.left


def test_every_number_of_the_chain_stands_in_the_question() -> None:
    for problem in SAMPLE["train"]:
        numbers = problem.question.replace(".", " ").replace(",", " ").split()
        assert str(problem.operations[0].left) in numbers
        assert all(str(operation.right) in numbers for operation in problem.operations)


def test_splits_are_disjoint_and_decided_by_the_arithmetic() -> None:
    chains = {split: {problem.operations for problem in found} for split, found in SAMPLE.items()}
    assert not chains["train"] & chains["test"]
    assert not chains["train"] & chains["validation"]
    assert not chains["validation"] & chains["test"]
    assert all(problem.split == split for split, found in SAMPLE.items() for problem in found)
    reworded = Problem("other words", SAMPLE["test"][0].operations)
    assert reworded.split == "test"


def test_same_seed_same_problems() -> None:
    assert list(islice(problems("train", seed=5), 400)) == SAMPLE["train"]
    assert list(islice(problems("train", seed=6), 400)) != SAMPLE["train"]


def test_a_known_problem_stays_as_it_is() -> None:
    """Evaluations of different versions compare only while the test split stays the same."""
    first = rows("test", 1, seed=0)[0]
    assert first["question"] == FIRST_TEST_QUESTION
    assert first["answer"] == FIRST_TEST_ANSWER


def test_levels_are_all_there_and_wording_varies() -> None:
    assert {problem.level for problem in SAMPLE["train"]} == set(LEVELS)
    assert [p.level for p in islice(problems("train", seed=1, levels=(2,)), 5)] == [2] * 5
    openings = {" ".join(problem.question.split()[1:3]) for problem in SAMPLE["train"]}
    assert len(openings) > 15


def test_evaluation_splits_do_not_depend_on_the_seed() -> None:
    assert rows("test", 20, seed=1) == rows("test", 20, seed=2)
    assert rows("train", 20, seed=1) != rows("train", 20, seed=2)
    assert len(rows("validation", None, seed=0)) == 1000


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, validation, test"):
        next(problems("dev", seed=0))


def value_of(text: str) -> int:
    """Evaluate an expression of + - * / and one level of nested brackets, left to right by precedence."""
    while "(" in text:
        close = text.index(")")
        start = text.rindex("(", 0, close)
        text = text[:start] + str(value_of(text[start + 1 : close])) + text[close + 1 :]
    for operators in ("+-", "*/"):
        for position in range(len(text) - 1, 0, -1):
            if text[position] in operators:
                return apply(text[position], value_of(text[:position]), value_of(text[position + 1 :]))
    return int(text)


@pytest.mark.parametrize("problem", SAMPLE["train"][:100], ids=lambda problem: expression(problem))
def test_expression_means_the_chain(problem: Problem) -> None:
    assert value_of(expression(problem)) == problem.answer
    assert terse(problem) == f"{expression(problem)}={problem.answer}."


def test_solutions_by_hand() -> None:
    chain = (Operation(34, "+", 27, 61), Operation(61, "*", 3, 183))
    problem = Problem("?", chain)
    assert expression(problem) == "(34+27)*3"
    assert terse(problem) == "(34+27)*3=183."
    assert steps(problem) == "34+27=61. 61*3=183."
    assert worded_steps(problem, random.Random(0)).startswith("First 34+27=61. ")


@given(st.integers(0, 10**6), st.sampled_from(SAMPLE["train"]))
def test_a_wrong_solution_is_wrong_in_one_step_and_stays_consistent(seed: int, problem: Problem) -> None:
    claimed = wrong(problem, random.Random(seed))
    assert claimed.question == problem.question
    faults = 0
    for before, after in zip(claimed.operations, claimed.operations[1:], strict=False):
        assert before.result == after.left
    for mine, theirs in zip(claimed.operations, problem.operations, strict=True):
        assert mine.right == theirs.right
        faults += mine.operator != theirs.operator or mine.result != min(
            max(apply(mine.operator, mine.left, mine.right), 1), LARGEST
        )
    assert faults == 1


def test_demonstrations_mix_both_styles_and_are_right() -> None:
    texts = [demonstration(problem, seed=seed) for seed, problem in enumerate(SAMPLE["train"])]
    assert all(text.endswith(f"={problem.answer}.") for text, problem in zip(texts, SAMPLE["train"], strict=True))
    for level, terse_share in TERSE_SHARE.items():
        texts_of_level = [
            (text, problem) for text, problem in zip(texts, SAMPLE["train"], strict=True) if problem.level == level
        ]
        share = sum(text == terse(problem) for text, problem in texts_of_level) / len(texts_of_level)
        assert level == 1 or abs(share - terse_share) < 0.15
