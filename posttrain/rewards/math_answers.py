"""Grade a response to a mathematics problem: extract its answer, compare it with the gold, say which rule fired.

Pure; knows no model and no task. Model text is data: nothing is evaluated, every step is bounded, no string raises.
"""

from dataclasses import dataclass
from enum import StrEnum

from posttrain.rewards.answers import Answer, Text, equal, is_choice, parse
from posttrain.rewards.extraction import Profile, extract, gold_text
from posttrain.rewards.numbers import OutOfBounds

GRADER_VERSION = "1"
"""Grades of different versions are never compared."""


class Verdict(StrEnum):
    """What grading found; only RIGHT is ever rewarded."""

    RIGHT = "right"
    WRONG = "wrong"
    COULD_NOT_GRADE = "could_not_grade"  # the gold is unusable, or the answer is beyond the grader's bounds


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its evidence: `span` is the extracted part's offsets in the response."""

    verdict: Verdict
    rule: str | None = None  # the extraction rule that fired
    span: tuple[int, int] | None = None
    extracted: str | None = None  # None: the response has no answer in the profile's format
    reason: str = ""


def grade(response: str, gold: str, *, profile: Profile = "r1_zero", truncated: bool = False) -> Grade:
    """Grade `response` against `gold` (an answer, or a GSM8K or MATH solution); never raises on any text.

    `truncated`: the token limit ended the response, so its last words may be cut off.
    """
    expected = _parse_gold(gold)
    if isinstance(expected, str):
        return Grade(Verdict.COULD_NOT_GRADE, reason=expected)
    found = extract(response, profile=profile, truncated=truncated, letter=is_choice(expected))
    if found.text is None:
        return Grade(Verdict.WRONG, found.rule, found.span, reason=found.reason)
    verdict, reason = grade_answer(found.text, gold)
    return Grade(verdict, found.rule, found.span, found.text, reason)


def grade_answer(answer: str, gold: str) -> tuple[Verdict, str]:
    """Compare an extracted answer with the gold: the verdict and, unless it is RIGHT, the reason."""
    expected = _parse_gold(gold)
    if isinstance(expected, str):
        return Verdict.COULD_NOT_GRADE, expected
    if answer.strip() == gold_text(gold).strip():
        return Verdict.RIGHT, ""
    try:
        right = equal(expected, parse(answer))
    except OutOfBounds as error:
        return Verdict.COULD_NOT_GRADE, f"gave up on {error}"
    return (Verdict.RIGHT, "") if right else (Verdict.WRONG, "the values differ")


def gold_error(gold: str) -> str | None:
    """Return why nothing can be graded against `gold`, or None when it is usable."""
    expected = _parse_gold(gold)
    return expected if isinstance(expected, str) else None


def _parse_gold(gold: str) -> Answer | str:
    """The parsed gold, or why it is unusable."""
    try:
        parsed = parse(gold_text(gold))
    except OutOfBounds as error:
        return f"the gold answer is {error}"
    return "the gold answer is empty" if parsed == Text("") else parsed
