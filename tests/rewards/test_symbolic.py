"""The symbolic tier: what it decides, and that nothing in its child can stop, fill or mislead the grader."""

import os
import threading

import pytest

from posttrain.rewards.math_answers import Verdict, grade_answer
from posttrain.rewards.math_answers.limits import GaveUp
from posttrain.rewards.math_answers.parser import parse
from posttrain.rewards.math_answers.symbolic import _CHILDREN, MAX_NODES, ask, encoded
from posttrain.rewards.math_answers.tokens import tokenize
from posttrain.rewards.math_answers.tree import Node, node, number


def tree(text: str) -> Node:
    return parse(tokenize(text))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (r"\sum_{k=1}^{\infty} \frac{1}{2^k}", "1", True),
        (r"\int_0^\pi \sin x \, dx", "2", True),
        (r"\lim_{x \to 0} \frac{\sin x}{x}", "1", True),
        (r"\Gamma(5)", "24", True),
        (r"\zeta(2)", r"\frac{\pi^2}{6}", True),
        (r"\int_0^\pi \sin x \, dx", "3", False),
        (r"\zeta(2)", r"\frac{\pi^2}{7}", False),
    ],
)
def test_what_sympy_decides(first: str, second: str, same: bool) -> None:
    assert ask(tree(first), tree(second)) is same


def test_what_takes_too_long_is_ended_and_the_next_question_is_answered() -> None:
    found = grade_answer(r"\sum_{k=1}^{1000000000} k^k", "42")
    assert found.verdict is Verdict.COULD_NOT_GRADE
    assert "a symbolic comparison: more than" in found.reason
    assert ask(tree(r"\Gamma(5)"), tree("24")) is True


def test_an_expression_that_is_too_large_is_not_asked_about() -> None:
    with pytest.raises(GaveUp, match="too large"):
        encoded(node("+", *(number(n) for n in range(MAX_NODES))))
    with pytest.raises(GaveUp, match="too large"):
        encoded(number(10**2000))


def test_a_child_that_died_is_replaced() -> None:
    assert ask(tree(r"\Gamma(5)"), tree("24")) is True
    child = _CHILDREN._child
    assert child is not None
    child.kill()
    child.wait()
    assert ask(tree(r"\Gamma(5)"), tree("24")) is True
    assert _CHILDREN._child is not child


def test_questions_of_several_threads_do_not_mix() -> None:
    wrong = []

    def work(index: int) -> None:
        for _ in range(3):
            same = ask(tree(rf"\Gamma({index})"), tree("24"))
            if same is not (index == 5):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in (3, 4, 5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_process_has_a_child_of_its_own() -> None:
    assert ask(tree(r"\Gamma(5)"), tree("24")) is True
    fork = os.fork()
    if fork == 0:
        same = ask(tree(r"\Gamma(5)"), tree("24"))
        _CHILDREN.close()
        os._exit(0 if same else 1)
    assert ask(tree(r"\Gamma(6)"), tree("120")) is True
    assert os.waitpid(fork, 0)[1] == 0


def test_names_are_never_evaluated() -> None:
    gold = r"\sum_{k=1}^{\infty} \frac{\text{__import__}}{2^k}"
    assert grade_answer(gold.replace("__import__", "exit"), gold).verdict is not Verdict.RIGHT
    assert grade_answer(r"\text{__import__('os').abort()}", "42").verdict is Verdict.WRONG
