"""Worked solutions of nano problems, in several styles, right or deliberately wrong.

Floor 0. Two ways of solving matter for what reinforcement learning finds out: `steps` writes one operation at a
time, which a small model can compute; `terse` writes the whole expression and its value at once, which it mostly
cannot. The demonstrations write short problems out and skip the steps of most long ones, as people in a hurry do.
"""

import random

from posttrain.nano.problems import LARGEST, Operation, Problem, apply

TERSE_SHARE = {1: 0.0, 2: 0.15, 3: 0.75, 4: 0.85}  # of the demonstrations, by level; at level 1 both are the same
_LINKS = ("Then", "Next", "After that,", "Now")


def expression(problem: Problem) -> str:
    """Return the chain as one expression, with brackets only where precedence needs them: `(34+27)*3`."""
    text = str(problem.operations[0].left)
    weakest = "*"
    for operation in problem.operations:
        binds_tighter = operation.operator in "*/" and weakest in "+-"
        text = f"({text})" if binds_tighter else text
        weakest = "*" if operation.operator in "*/" else "+"
        text += f"{operation.operator}{operation.right}"
    return text


def terse(problem: Problem) -> str:
    """Solve in one line: `(34+27)*3=183.`"""
    return f"{expression(problem)}={problem.answer}."


def steps(problem: Problem) -> str:
    """Solve one operation at a time: `34+27=61. 61*3=183.`"""
    return " ".join(f"{operation}." for operation in problem.operations)


def worded_steps(problem: Problem, draw: random.Random) -> str:
    """Solve one operation at a time, with link words: `First 34+27=61. Then 61*3=183.`"""
    words = ["First", *(draw.choice(_LINKS) for _ in problem.operations[1:])]
    return " ".join(f"{word} {operation}." for word, operation in zip(words, problem.operations, strict=True))


def wrong(problem: Problem, draw: random.Random) -> Problem:
    """Return the problem with a fault in one step (a slip in the result, or the wrong operator) carried to the end."""
    faulty = draw.randrange(problem.level)
    value = problem.operations[0].left
    chain: list[Operation] = []
    for index, operation in enumerate(problem.operations):
        operator, right = operation.operator, operation.right
        if index == faulty and draw.random() < 0.5:
            operator = {"+": "-", "-": "+", "*": "+", "/": "-"}[operator]
        result = apply(operator, value, right)
        if index == faulty and operator == operation.operator:
            result += draw.choice((-100, -10, -2, -1, 1, 2, 10, 100))
        result = min(max(result, 1), LARGEST)
        if index == faulty and operator == operation.operator and result == apply(operator, value, right):
            result += 1 if result < LARGEST else -1  # the bounds undid the slip
        chain.append(Operation(value, operator, right, result))
        value = result
    return Problem(problem.question, tuple(chain))


def misread(problem: Problem, draw: random.Random) -> Problem:
    """Return the problem as someone solves it who misreads it: one operator is another, or all numbers are.

    They have as many digits, the steps are computed without a slip, and the answer is another one.
    """

    def another(number: int) -> int:
        return draw.randrange(10 ** (len(str(number)) - 1), 10 ** len(str(number)))

    while True:
        faulty = draw.randrange(problem.level) if draw.random() < 0.5 else None
        value = problem.operations[0].left if faulty is not None else another(problem.operations[0].left)
        chain: list[Operation] = []
        for index, operation in enumerate(problem.operations):
            operator, right = operation.operator, operation.right
            if index == faulty:
                operator = {"+": "-", "-": "+", "*": "+", "/": "-"}[operator]
            elif faulty is None:
                right = another(right)
            chain.append(Operation(value, operator, right, apply(operator, value, right)))
            value = chain[-1].result
        exact = all(step.operator != "/" or step.left % step.right == 0 for step in chain)
        if exact and value != problem.answer and all(1 <= step.result <= LARGEST for step in chain):
            return Problem(problem.question, tuple(chain))


def demonstration(problem: Problem, *, seed: int) -> str:
    """Return a right solution in the style that its level and its seed pick."""
    return terse(problem) if random.Random(seed).random() < TERSE_SHARE[problem.level] else steps(problem)
