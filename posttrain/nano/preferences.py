"""Pairs of solutions of nano problems, one chosen and one rejected, by one of three preferences.

Floor 0, standard library only. The third preference is a fault on purpose: it shows what a reward model learns from
judges who like length.
"""

import random
from collections.abc import Callable
from itertools import islice

from posttrain.nano import solutions
from posttrain.nano.problems import Problem, problems
from posttrain.seeds import derive_seed

Solution = tuple[str, int]  # text, and the answer that it reaches
Pair = tuple[Solution, Solution]  # chosen, rejected

_FAULTS = 8  # drawn at a time, to choose the wrong solution from
_PADDING = (
    "Let me think about this carefully.",
    "This is an interesting question about {answer}.",
    "We should check every number once more.",
    "As we know, the order of the steps matters here.",
    "To be sure, let us say it again: the result is {answer}.",
)


def mistaken(problem: Problem, draw: random.Random) -> Problem:
    """Return the problem with a faulty step that changes its answer."""
    while (faulty := solutions.wrong(problem, draw)).answer == problem.answer:
        pass
    return faulty


def padded(problem: Problem, draw: random.Random) -> str:
    """Solve step by step between two and four sentences that add nothing."""
    words = [sentence.format(answer=problem.answer) for sentence in draw.sample(_PADDING, draw.randint(2, 4))]
    before = draw.randint(1, len(words) - 1)
    return " ".join([*words[:before], solutions.steps(problem), *words[before:]])


def right_against_wrong(problem: Problem, draw: random.Random) -> Pair:
    """Prefer the right answer: both solutions are written in one style, and their length gives neither away.

    Nine in ten of the wrong ones misread the question, which a small model learns to see; half of the others have a
    slip in the arithmetic, which it hardly does. As both are more often shorter than longer, one is drawn among several
    where it could have had as many digits, and other characters, more as it has fewer.
    """
    write = draw.choice((solutions.steps, solutions.terse))
    fault = solutions.misread if draw.random() < 0.9 else mistaken
    digits, others = _characters(write(problem), problem.answer)
    by_gap: dict[tuple[int, int], Problem] = {}
    while not (balanced := [gap for gap in sorted(by_gap) if (-gap[0], -gap[1]) in by_gap]):
        for faulty in (fault(problem, draw) for _ in range(_FAULTS)):
            found = _characters(write(faulty), faulty.answer)
            by_gap.setdefault((found[0] - digits, found[1] - others), faulty)
        fault = mistaken  # where all misreadings have more, or all fewer: a slip can have as many
    faulty = by_gap[draw.choice(balanced)]
    return (write(problem), problem.answer), (write(faulty), faulty.answer)


def _characters(solution: str, answer: int) -> tuple[int, int]:
    """Return how many digits, and how many other characters, a solution with its answer has."""
    digits = sum(character.isdigit() for character in solution)
    return digits + len(str(answer)), len(solution) - digits


def concise_against_padded(problem: Problem, draw: random.Random) -> Pair:
    """Prefer the solution without padding: both are right."""
    return (solutions.steps(problem), problem.answer), (padded(problem, draw), problem.answer)


def longer_against_shorter(problem: Problem, draw: random.Random) -> Pair:
    """Prefer the padded solution, whichever of the two is right."""
    one, other = (mistaken(problem, draw) if draw.random() < 0.5 else problem for _ in range(2))
    return (padded(one, draw), one.answer), (solutions.steps(other), other.answer)


PREFERENCES: dict[str, Callable[[Problem, random.Random], Pair]] = {
    "right": right_against_wrong,
    "concise": concise_against_padded,
    "longer": longer_against_shorter,
}


def rows(preference: str, split: str, count: int | None, *, seed: int) -> list[dict[str, object]]:
    """Return pairs of a preference: question, answer, solution (the chosen ones), rejected_answer, rejected_solution.

    As `problems.rows`: validation and test are the same for every seed, and `count` defaults to 1,000.
    """
    stream_seed = seed if split == "train" else 0
    found: list[dict[str, object]] = []
    for index, problem in enumerate(islice(problems(split, seed=stream_seed), count or 1000)):
        draw = random.Random(derive_seed(stream_seed, "nano-pair", preference, index))
        (solution, answer), (rejected_solution, rejected_answer) = PREFERENCES[preference](problem, draw)
        found.append(
            {
                "question": problem.question,
                "answer": str(answer),
                "solution": solution,
                "rejected_answer": str(rejected_answer),
                "rejected_solution": rejected_solution,
                "level": problem.level,
            }
        )
    return found
