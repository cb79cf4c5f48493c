"""What each reward pays for, and what it leaves unscored."""

import pytest

from posttrain.errors import RewardError
from posttrain.rewards import REWARDS

RIGHT = "6 * 7 </think> <answer>42</answer>"
WRONG = "6 * 7 </think> <answer>41</answer>"
LOOSE = "It is 42"
BOXED = "so \\boxed{42}"


def scores(name: str, completions: list, **columns: list) -> list:
    return REWARDS[name](prompts=["6 * 7?"] * len(completions), completions=completions, **columns)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("r1_zero", [1.0, 0.0, 0.0, 0.0]),
        ("boxed_answer", [0.0, 0.0, 0.0, 1.0]),
        ("math_answer", [1.0, 0.0, 1.0, 1.0]),
        ("format_think_answer", [1.0, 1.0, 0.0, 0.0]),
        ("could_not_grade", [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_rewards_pay_for_what_they_say(name: str, expected: list) -> None:
    assert scores(name, [RIGHT, WRONG, LOOSE, BOXED], answer=["42"] * 4) == expected


def test_messages_are_read_like_text() -> None:
    assert scores("r1_zero", [[{"role": "assistant", "content": RIGHT}]], answer=["42"]) == [1.0]


def test_only_an_unusable_gold_is_unscored() -> None:
    hostile = "so </think> <answer>1e999999</answer>"
    assert scores("r1_zero", [RIGHT, RIGHT, RIGHT, hostile], answer=[None, " ", 42, "42"]) == [None, None, 1.0, 0.0]
    assert scores("could_not_grade", [RIGHT, hostile, hostile], answer=["42", "42", None]) == [0.0, 1.0, None]


def test_solution_is_a_gold_column_too() -> None:
    assert scores("r1_zero", [RIGHT], solution=["so \\boxed{42}"], other=[1]) == [1.0]


def test_a_cut_off_completion_has_no_last_number() -> None:
    assert scores("math_answer", [LOOSE, LOOSE], answer=["42", "42"], truncated=[True, False]) == [0.0, 1.0]


def test_a_missing_gold_column_is_named() -> None:
    with pytest.raises(RewardError, match="needs a column answer or solution; the rows have: gold, level"):
        scores("r1_zero", [RIGHT], gold=["42"], level=[3])
