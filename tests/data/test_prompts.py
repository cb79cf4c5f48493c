"""Prompt styles and the completions that answer them."""

import pytest

from posttrain.data.prompts import COMPLETION_STYLES, PROMPT_STYLES, end_with_boxed, last_boxed

QUESTION = r"What is {1} + \frac{1}{2}?"


def test_every_prompt_style_has_its_completion_of_the_same_form() -> None:
    assert PROMPT_STYLES.keys() == COMPLETION_STYLES.keys()
    for name, prompt in PROMPT_STYLES.items():
        rendered, completion = prompt(QUESTION), COMPLETION_STYLES[name]("because", "7")
        assert isinstance(rendered, str) == isinstance(completion, str), name
        assert QUESTION in (rendered if isinstance(rendered, str) else rendered[-1]["content"])


def test_r1_zero_opens_the_thinking_that_its_completion_closes() -> None:
    prompt = PROMPT_STYLES["r1_zero"](QUESTION)
    assert isinstance(prompt, str)
    assert prompt.endswith(f"User: {QUESTION}\nAssistant: <think>")
    assert all(tag in prompt for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    assert COMPLETION_STYLES["r1_zero"]("3 + 4 = 7", "7") == " 3 + 4 = 7 </think> <answer>7</answer>"
    assert PROMPT_STYLES["nano"](QUESTION) == f"User: {QUESTION}\nAssistant: <think>"


def test_boxed_is_one_user_message_and_its_reply_ends_in_the_box() -> None:
    (message,) = PROMPT_STYLES["boxed"](QUESTION)
    assert message == {"role": "user", "content": message["content"]}
    assert r"\boxed{}" in message["content"]
    (reply,) = COMPLETION_STYLES["boxed"]("3 + 4 = 7", "7")
    assert reply["role"] == "assistant"
    assert reply["content"].endswith(r"$\boxed{7}$.")


def test_a_solution_that_ends_in_its_box_is_left_alone() -> None:
    solution = r"Half of it is $\boxed{\frac{1}{2}}$."
    assert end_with_boxed(solution, r"\frac{1}{2}") == solution
    assert end_with_boxed(solution, "0.5").endswith(r"\boxed{0.5}$.")


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"so $\boxed{7}$.", "7"),
        (r"\boxed{1} and then \boxed{ 2 }", "2"),
        (r"\boxed{\frac{a}{b_{1}}}", r"\frac{a}{b_{1}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {5}", "5"),
        (r"\fbox{x}", "x"),
        (r"$\boxed 5$.", "5"),
        (r"\boxed{1", None),
        (r"\boxed", None),
        (r"\boxed $", None),
        ("7", None),
        (r"\boxed{}", ""),
    ],
)
def test_last_boxed(text: str, held: str | None) -> None:
    assert last_boxed(text) == held
