"""Rewards computed by a program, in TRL's signature: one score for each completion, None where there is no gold.

Pure; a completion is its text or a list of messages, the gold answer is the column `answer` or `solution`.
"""

from collections.abc import Sequence
from typing import Any

from posttrain.errors import RewardError
from posttrain.records import Message
from posttrain.rewards.extraction import Profile, has_r1_zero_format
from posttrain.rewards.math_answers import Grade, Policy, Verdict, gold_error, grade

GOLD_COLUMNS = ("answer", "solution")
LENIENT = Policy(last_number=True)


def r1_zero(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a right answer in `... </think> <answer>...</answer>`, else 0: format alone earns nothing."""
    return _graded(completions, columns, "r1_zero")


def boxed_answer(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a right answer in the last `\\boxed{}`, else 0."""
    return _graded(completions, columns, "boxed")


def math_answer(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a right answer wherever the lenient rules find it, else 0."""
    return _graded(completions, columns, "lenient")


def format_think_answer(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion in the form `... </think> <answer>...</answer>`, right or wrong, else 0."""
    return [float(has_r1_zero_format(completion_text(completion))) for completion in completions]


def could_not_grade(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where the grader gave up on an answer, else 0; with the weight 0 it is counted and never paid."""
    grades = _grades(completions, columns, "lenient")
    return [None if grade is None else float(grade.verdict is Verdict.COULD_NOT_GRADE) for grade in grades]


def completion_text(completion: str | Sequence[Message]) -> str:
    """Return the text of a completion, which conversational rows hold as messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def gold_column(columns: Any) -> Sequence[Any]:
    """Return the first of the gold columns that the rows have; raises RewardError when there is none."""
    for name in GOLD_COLUMNS:
        if name in columns:
            return columns[name]
    raise RewardError(
        f"grading needs a column {' or '.join(GOLD_COLUMNS)}; the rows have: {', '.join(columns) or 'none'}",
        fix='data.columns.answer = "<your gold column>"',
    )


def _graded(completions: Sequence[Any], columns: Any, profile: Profile) -> list[float | None]:
    """An answer that the grader gives up on scores 0: None is for golds, which a policy cannot choose."""
    grades = _grades(completions, columns, profile)
    return [None if grade is None else float(grade.verdict is Verdict.RIGHT) for grade in grades]


def _grades(completions: Sequence[Any], columns: Any, profile: Profile) -> list[Grade | None]:
    truncated = columns.get("truncated", [False] * len(completions))
    return [
        _grade(completion_text(completion), gold, profile, cut_off)
        for completion, gold, cut_off in zip(completions, gold_column(columns), truncated, strict=True)
    ]


def _grade(text: str, gold: Any, profile: Profile, truncated: bool) -> Grade | None:
    if gold is None or gold_error(str(gold)) is not None:
        return None
    return grade(text, str(gold), profile=profile, truncated=truncated, policy=LENIENT)
