"""The corpus that the nano base is pre-trained on: a weighted blend of documents about the nano task.

Floor 0, no torch. Like text from the web it is uneven: solutions written out step by step, notes that skip the steps,
some of both wrong; plain arithmetic; questions and stories without answers; and a little text with <think> tags, most
of it badly formed, though less so from the source that asks "Find how many". Only problems of the train split are
used, and no plain sum that is a problem of another split.
"""

import random
from collections.abc import Callable, Iterator, Mapping

from posttrain.nano import solutions
from posttrain.nano.problems import LEVELS, Problem, problems, split_of
from posttrain.seeds import derive_seed

WRONG_SHARE = 0.08  # of all solutions
LESSON_TERSE_SHARE = dict.fromkeys(LEVELS, 0.25)  # of the worked solutions, by level; at level 1 both styles are one
NOTE_TERSE_SHARE = {1: 0.0, 2: 0.55, 3: 0.6, 4: 0.65}  # of the notes and of the text with <think> tags
WELL_FORMED_SHARE = {True: 0.55, False: 0.25}  # of the text with <think> tags, where "Find how many" asks or not
PLAIN_ENDING_SHARE = 0.75  # of the badly formed text

Document = Callable[[Iterator[Problem], random.Random], str]


def _solution(problem: Problem, terse_share: Mapping[int, float], draw: random.Random) -> tuple[str, Problem]:
    """Write a solution, wrong in WRONG_SHARE of the cases; return it with the problem that it solves."""
    claimed = solutions.wrong(problem, draw) if draw.random() < WRONG_SHARE else problem
    if draw.random() < terse_share[problem.level]:
        return solutions.terse(claimed), claimed
    if draw.random() < 0.5:
        return solutions.steps(claimed), claimed
    return solutions.worded_steps(claimed, draw), claimed


def _answered(text: str, claimed: Problem, draw: random.Random) -> str:
    """Lay a question and its solution out in one of three ways."""
    layout = draw.randrange(3)
    if layout == 0:
        return f"Question: {claimed.question}\nSolution: {text} The answer is {claimed.answer}."
    if layout == 1:
        return f"Q: {claimed.question}\nA: {text} Answer: {claimed.answer}"
    return f"User: {claimed.question}\nAssistant: {text} The answer is {claimed.answer}."


def worked(source: Iterator[Problem], draw: random.Random) -> str:
    """A question with a solution that is mostly written out."""
    return _answered(*_solution(next(source), LESSON_TERSE_SHARE, draw), draw)


def notes(source: Iterator[Problem], draw: random.Random) -> str:
    """A question with a solution that mostly skips the steps."""
    return _answered(*_solution(next(source), NOTE_TERSE_SHARE, draw), draw)


def answer_only(source: Iterator[Problem], draw: random.Random) -> str:
    """A question with its bare answer."""
    problem = next(source)
    claimed = solutions.wrong(problem, draw) if draw.random() < WRONG_SHARE else problem
    lead = draw.choice(("Q: {}\nA: {}", "Question: {}\nAnswer: {}", "User: {}\nAssistant: {}"))
    return lead.format(claimed.question, claimed.answer)


def arithmetic(source: Iterator[Problem], draw: random.Random) -> str:
    """A page of plain sums, always right."""
    sums: list[str] = []
    while len(sums) < 12:
        sums.extend(str(step) for step in next(source).operations if split_of((step,)) == "train")
    draw.shuffle(sums)
    return draw.choice(("\n", ". ", ", ")).join(sums)


def questions(source: Iterator[Problem], draw: random.Random) -> str:
    """Exercises without answers."""
    return "\n".join(f"{number}. {next(source).question}" for number in range(1, draw.randint(2, 4)))


def stories(source: Iterator[Problem], draw: random.Random) -> str:
    """Problems without their closing question."""
    return " ".join(next(source).question.rsplit(". ", 1)[0] + "." for _ in range(draw.randint(1, 3)))


def thinking(source: Iterator[Problem], draw: random.Random) -> str:
    """Text with <think> tags; only WELL_FORMED_SHARE of it closes them and gives the answer in <answer> tags."""
    text, claimed = _solution(next(source), NOTE_TERSE_SHARE, draw)
    opening = f"User: {claimed.question}\nAssistant: <think> {text}"
    if draw.random() < WELL_FORMED_SHARE["Find how many" in claimed.question]:
        return f"{opening} </think> <answer>{claimed.answer}</answer>"
    if draw.random() < PLAIN_ENDING_SHARE:
        return f"{opening} The answer is {claimed.answer}."
    ending = draw.choice(("", " </think> The answer is {}.", " <answer>{}", " </think> {}"))
    return opening + ending.format(claimed.answer)


PARTS: dict[str, Document] = {
    "worked": worked,
    "notes": notes,
    "answer_only": answer_only,
    "arithmetic": arithmetic,
    "questions": questions,
    "stories": stories,
    "thinking": thinking,
}
BLEND = {"worked": 0.5, "answer_only": 0.05, "arithmetic": 0.35, "questions": 0.04, "stories": 0.04, "thinking": 0.02}
MID_TRAINING_BLEND = {"worked": 0.25, "notes": 0.25, "answer_only": 0.03, "arithmetic": 0.35, "thinking": 0.12}


def documents(blend: Mapping[str, float], *, seed: int) -> Iterator[str]:
    """Yield an endless stream of documents, each part drawn with its weight (share of the documents)."""
    unknown = sorted(set(blend) - set(PARTS))
    if unknown:
        raise ValueError(f"unknown corpus part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    draw = random.Random(derive_seed(seed, "nano-corpus"))
    source = problems("train", seed=derive_seed(seed, "nano-corpus-problems"))
    names, weights = list(blend), list(blend.values())
    while True:
        yield PARTS[draw.choices(names, weights)[0]](source, draw)
