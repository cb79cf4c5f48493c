"""Rewards that grade against a gold answer: one score for each completion, None where the gold is unusable.

Pure; a completion is its text or a list of messages, the gold answer is the column `answer` or `solution`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from posttrain.rewards.arguments import completion_text, gold_column
from posttrain.rewards.extraction import Profile, extract, gold_text
from posttrain.rewards.grades import grade_once
from posttrain.rewards.math_answers import Grade, Verdict, exact_value
from posttrain.settings.rewards import NumericMatchOptions

MAX_NUMBER_CHARACTERS = 256
_DIGIT_COMMA = re.compile("(?<=[0-9]),(?=[0-9])")


def r1_zero(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a right answer in `... </think> <answer>...</answer>`, else 0: format alone earns nothing."""
    return graded(completions, columns, "r1_zero")


def boxed_answer(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a right answer in the last `\\boxed{}`, else 0."""
    return graded(completions, columns, "boxed")


def math_answer(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a right answer wherever the lenient rules find it, else 0."""
    return graded(completions, columns, "lenient")


def exact_match(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where the completion, or the answer found in it, is the gold letter for letter but for white space, else 0."""
    return [
        _same_text(completion_text(completion), gold)
        for completion, gold in zip(completions, gold_column(columns), strict=True)
    ]


def could_not_grade(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where the grader gave up on an answer, else 0; with the weight 0 it is counted and never paid."""
    grades = _grades(completions, columns, "lenient")
    return [None if found is None else float(found.verdict is Verdict.COULD_NOT_GRADE) for found in grades]


def numeric_match(
    options: NumericMatchOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 where the number in the last `\\boxed{}`, or else after the last `####`, is the gold's, else 0."""
    return [
        _same_number(completion_text(completion), gold, options.tolerance)
        for completion, gold in zip(completions, gold_column(columns), strict=True)
    ]


def graded(completions: Sequence[Any], columns: Mapping[str, Sequence[Any]], profile: Profile) -> list[float | None]:
    """Return 1 for each right answer and 0 for each wrong one, as the mathematics grader reads it under a profile.

    An answer that the grader gives up on scores 0: None is for golds, which a policy cannot choose.
    """
    grades = _grades(completions, columns, profile)
    return [None if found is None else float(found.verdict is Verdict.RIGHT) for found in grades]


def _grades(completions: Sequence[Any], columns: Mapping[str, Sequence[Any]], profile: Profile) -> list[Grade | None]:
    truncated = columns.get("truncated", [False] * len(completions))
    return [
        None if gold is None else grade_once(completion_text(completion), str(gold), profile, bool(cut_off))
        for completion, gold, cut_off in zip(completions, gold_column(columns), truncated, strict=True)
    ]


def _same_text(text: str, gold: Any) -> float | None:
    wanted = "" if gold is None else " ".join(gold_text(str(gold)).split())
    if not wanted:
        return None
    found = extract(text, profile="lenient", last_number=True).text
    return float(wanted in (" ".join(text.split()), " ".join((found or "").split())))


def _same_number(text: str, gold: Any, tolerance: float) -> float | None:
    wanted = None if gold is None else _number(gold_text(str(gold)))
    if wanted is None:
        return None
    answer = extract(text, profile="boxed").text or extract(text, profile="gsm8k").text
    found = None if answer is None else _number(answer)
    return float(found is not None and abs(found - wanted) <= tolerance)


@lru_cache(maxsize=4096)
def _number(text: str) -> Fraction | None:
    """Return the number that a text is, without its commas and currency signs; None where it is none, or endless."""
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    plain = "".join(character for character in text.replace("\\$", "") if unicodedata.category(character) != "Sc")
    return exact_value(_DIGIT_COMMA.sub("", plain))
