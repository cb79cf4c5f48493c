import pytest

from posttrain.rewards.grades import FORMS, answer_form, gave_up, has_answer


@pytest.mark.parametrize(
    ("reward", "text", "expected"),
    [
        ("r1_zero", "1+1=2 </think> <answer>3</answer>", True),
        ("r1_zero", "1+1=2 </think> <answer>3</answer></answer>", False),
        ("r1_zero", "The answer is 2", False),
        ("boxed_answer", "so \\boxed{3}", True),
        ("boxed_answer", "so 3", False),
        ("math_answer", "so 3", True),
        ("math_answer", "so", False),
    ],
)
def test_an_answer_is_one_in_the_form_of_the_reward(reward: str, text: str, expected: bool) -> None:
    assert has_answer(text, FORMS[reward], truncated=False) is expected


def test_what_the_limit_cut_off_is_no_answer_in_free_text() -> None:
    assert not has_answer("it is 3", "lenient", truncated=True)


def test_the_form_is_that_of_the_first_reward_that_has_one() -> None:
    assert answer_form(["format_think_answer", "boxed_answer", "r1_zero"]) == "boxed"
    assert answer_form(["reward_model"]) is None


def test_answers_beyond_the_grader_are_counted_and_unusable_golds_are_not() -> None:
    tower = "so \\boxed{9^{9^{9^9}}}"
    assert gave_up(tower, "42", "boxed", truncated=False)
    assert not gave_up("so \\boxed{41}", "42", "boxed", truncated=False)
    assert not gave_up(tower, None, "boxed", truncated=False)
    assert not gave_up(tower, " ", "boxed", truncated=False)
