"""The order of the extraction rules, what ends the search, and the strict formats."""

import pytest

from posttrain.rewards.extraction import extract, gold_text, has_r1_zero_format

LENIENT = [
    ("<think>\\boxed{1}</think> so \\boxed{2}", "boxed", "2"),
    ("</think> <answer>3</answer> \\boxed{4}", "answer_tag", "3"),
    ("</think> <answer>so \\boxed{3}</answer>", "answer_tag", "3"),
    ("\\boxed{1} then \\boxed {\\frac{1}{2}} #### 3", "boxed", "\\frac{1}{2}"),
    ("\\boxed{x = \\boxed{5}}", "boxed", "x = \\boxed{5}"),
    ("\\boxed{1} and $\\boxed{2}$", "boxed", "1, 2"),
    ("#### 3\n#### 4\nThe answer is 5", "hashes", "4"),
    ("The answer is 4. The final answer is: **$5$**.", "phrase", "$5$"),
    ("**Answer:**\n\n42", "phrase", "42"),
    ("The answer is 18. I hope it is right", "phrase", "18"),
    ("first 3, then 4,200.5 eggs", "last_number", "4,200.5"),
    ("<answer> 42", "last_number", "42"),
]


@pytest.mark.parametrize(("response", "rule", "text"), LENIENT)
def test_the_first_rule_that_applies_decides(response: str, rule: str, text: str) -> None:
    found = extract(response, profile="lenient", last_number=True)
    assert (found.rule, found.text) == (rule, text)


@pytest.mark.parametrize(
    "response",
    [
        "<think> it is \\boxed{42}",
        "<think>a</think> <think> 42",
        "<answer></answer> \\boxed{42}",
        "\\boxed{41} no, \\boxed{42",
        "\\boxed{} 42",
        "####\n42",
        "The answer is not 42",
        "The answer isn't 42",
        "",
    ],
)
def test_an_explicit_but_unusable_answer_ends_the_search(response: str) -> None:
    assert extract(response, profile="lenient", last_number=True).text is None


@pytest.mark.parametrize("response", ["6 * 7 = 42", "The answer is 42", "#### 42"])
def test_an_answer_that_may_be_cut_off_is_refused(response: str) -> None:
    assert extract(response, profile="lenient", last_number=True).text == "42"
    assert extract(response, profile="lenient", last_number=True, truncated=True).text is None


def test_the_last_number_counts_only_where_it_is_switched_on() -> None:
    assert extract("6 * 7 = 42", profile="lenient").text is None


def test_a_lone_letter_counts_only_for_a_letter_gold() -> None:
    assert extract(" (C). ", profile="lenient", letter=True).text == "C"
    assert extract("C", profile="lenient").text is None


@pytest.mark.parametrize(
    "response",
    [
        "so </think> <answer>4</answer>",
        "so</think><answer>4</answer>",
        "<think>so</think>\n<answer>4</answer>\n",
    ],
)
def test_r1_zero_accepts_one_thought_and_one_answer(response: str) -> None:
    assert has_r1_zero_format(response)
    assert extract(response, profile="r1_zero").text == "4"


@pytest.mark.parametrize(
    "response",
    [
        "<answer>4</answer>",
        "so </think> 4",
        "so </think> <answer>4",
        "so </think> <answer></answer>",
        "so </think> the answer: <answer>4</answer>",
        "so </think> <answer>4</answer> and more",
        "so </think> <answer>4</answer> <answer>5</answer>",
        "so </think> or </think> <answer>4</answer>",
        "so <think> </think> <answer>4</answer>",
        "so </think> <answer>4</answer",
    ],
)
def test_r1_zero_refuses_every_other_form(response: str) -> None:
    assert not has_r1_zero_format(response)
    assert extract(response, profile="r1_zero").text is None


def test_strict_profiles_know_one_format() -> None:
    assert extract("#### 4", profile="boxed").text is None
    assert extract("\\boxed{4}", profile="gsm8k").text is None
    assert extract("4 + 4 = 8\n#### 8", profile="gsm8k").text == "8"


def test_profiles_of_tasks_know_the_formats_of_their_tasks() -> None:
    assert extract("The final answer is 4", profile="math").text == "4"
    assert extract("#### 4", profile="math").text is None
    assert extract("(C)", profile="choice", letter=True).text == "C"
    assert extract("it is 4", profile="choice", letter=True, last_number=True).text is None


def test_a_thought_that_never_closes_is_read_only_where_it_is_asked_for() -> None:
    assert extract("<think> \\boxed{4}", profile="boxed").reason == "<think> is never closed"
    assert extract("<think> \\boxed{4}", profile="boxed", inside_thinking=True).text == "4"


def test_gold_text() -> None:
    assert gold_text("so 1\n#### 2") == "2"
    assert gold_text("so $\\boxed{\\frac{1}{2}}$") == "\\frac{1}{2}"
    assert gold_text("x^2") == "x^2"
