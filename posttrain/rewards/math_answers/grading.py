"""Grade a response to a mathematics problem: extract its answer, compare it with the gold, say which rule fired.

Pure but for the child of the symbolic tier. Model text is data: nothing is evaluated, every step is bounded and
counted, no string raises, and the verdict is the same in every thread and process, whatever was graded before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction

from posttrain.rewards.extraction import Profile, extract, gold_text
from posttrain.rewards.math_answers.exact import Undefined, exact
from posttrain.rewards.math_answers.limits import GaveUp, Steps
from posttrain.rewards.math_answers.reading import Answer, choice, is_choice, read
from posttrain.rewards.math_answers.structures import equal
from posttrain.rewards.math_answers.values import Comparison

GRADER_VERSION = "2"
"""Grades of different versions are never compared."""


class Verdict(StrEnum):
    """What grading found; only RIGHT is ever rewarded."""

    RIGHT = "right"
    WRONG = "wrong"
    COULD_NOT_GRADE = "could_not_grade"  # the gold is unusable, or the answer is beyond the grader's bounds


@dataclass(frozen=True, slots=True)
class Policy:
    """What users may want otherwise; the defaults accept nothing that is doubtful."""

    inside_thinking: bool = False  # answers in a thought that never closes count
    last_number: bool = False  # lenient profiles take the last number of a response without an explicit answer
    round_to_gold: bool = False  # a decimal gold takes every value that rounds to it
    lower_case_choices: bool = False  # (c) is (C)


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its evidence: `span` is the extracted part's offsets in the response."""

    verdict: Verdict
    rule: str | None = None  # the extraction rule that fired
    span: tuple[int, int] | None = None
    extracted: str | None = None  # None: the response has no answer in the profile's format
    reason: str = ""  # what decided: the tier that found both equal, or why the answer is not right
    gold_form: str | None = None  # both sides as the grader read them, normalised
    answer_form: str | None = None


STRICT = Policy()
LENIENT = Policy(last_number=True)
"""What evaluations and rewards grade by where they take an answer in any form."""


def grade(
    response: str, gold: str, *, profile: Profile = "r1_zero", truncated: bool = False, policy: Policy = STRICT
) -> Grade:
    """Grade `response` against `gold` (an answer, or a GSM8K or MATH solution); never raises on any text.

    `truncated`: the token limit ended the response, so its last words may be cut off.
    """
    expected = _read_gold(gold)
    if isinstance(expected, str):
        return Grade(Verdict.COULD_NOT_GRADE, reason=expected)
    found = extract(
        response,
        profile=profile,
        truncated=truncated,
        letter=is_choice(expected),
        inside_thinking=policy.inside_thinking,
        last_number=policy.last_number,
    )
    if found.text is None:
        return Grade(Verdict.WRONG, found.rule, found.span, reason=found.reason, gold_form=expected.form)
    graded = _compared(found.text, gold_text(gold), expected, policy)
    return replace(graded, rule=found.rule, span=found.span)


def grade_answer(answer: str, gold: str, *, policy: Policy = STRICT) -> Grade:
    """Grade a bare answer, without extraction, against `gold`; never raises on any text."""
    expected = _read_gold(gold)
    if isinstance(expected, str):
        return Grade(Verdict.COULD_NOT_GRADE, extracted=answer, reason=expected)
    return _compared(answer, gold_text(gold), expected, policy)


def grade_many(
    responses: Sequence[str],
    golds: Sequence[str],
    *,
    profile: Profile = "r1_zero",
    truncated: Sequence[bool] | None = None,
    policy: Policy = STRICT,
) -> list[Grade]:
    """Grade each response against the gold in its place."""
    cut_off = [False] * len(responses) if truncated is None else truncated
    return [
        grade(response, gold, profile=profile, truncated=cut, policy=policy)
        for response, gold, cut in zip(responses, golds, cut_off, strict=True)
    ]


def gold_error(gold: str) -> str | None:
    """Return why nothing can be graded against `gold`, or None when it is usable."""
    expected = _read_gold(gold)
    return expected if isinstance(expected, str) else None


def exact_value(text: str) -> Fraction | None:
    """Return the rational number that a text is, its unit left out; None where it is none, or out of bounds."""
    try:
        tree = read(text).tree
        return exact(tree, Steps()) if tree.head != "percent" else None
    except (GaveUp, Undefined):
        return None


def _read_gold(gold: str) -> Answer | str:
    """The gold as it is understood, or why it is unusable."""
    try:
        expected = read(gold_text(gold))
    except GaveUp as error:
        return f"the gold answer is {error}"
    return expected if expected.form else "the gold answer is empty"


def _compared(answer: str, gold: str, expected: Answer, policy: Policy) -> Grade:
    try:
        given = read(answer)
    except GaveUp as error:
        if answer.strip() == gold.strip():
            return Grade(Verdict.RIGHT, extracted=answer, reason="the same text", gold_form=expected.form)
        return Grade(Verdict.COULD_NOT_GRADE, extracted=answer, reason=f"gave up on {error}", gold_form=expected.form)
    verdict, reason = _verdict(expected, given, answer, policy)
    return Grade(verdict, None, None, answer, reason, expected.form, given.form)


def _verdict(expected: Answer, given: Answer, answer: str, policy: Policy) -> tuple[Verdict, str]:
    if not given.form:
        return Verdict.WRONG, "the answer is empty"
    if expected.form == given.form:
        return Verdict.RIGHT, "the same text"
    if is_choice(expected) and choice(answer, lower_case=policy.lower_case_choices) == expected.tree.value:
        return Verdict.RIGHT, "the same choice"
    if "text" in (expected.tree.head, given.tree.head) and given.letters and given.letters == expected.letters:
        return Verdict.RIGHT, "the same words"  # tie, which alone could be t times i times e
    by = Comparison(policy.round_to_gold)
    try:
        right = equal(expected.tree, given.tree, by)
    except GaveUp as error:
        return Verdict.COULD_NOT_GRADE, f"gave up on {error}"
    except Undefined:
        return Verdict.WRONG, "a part of it has no value"
    except (RecursionError, MemoryError) as error:  # of the caller's own depth or memory: our trees are shallow
        return Verdict.COULD_NOT_GRADE, f"gave up on {type(error).__name__}"
    if right:
        return Verdict.RIGHT, f"equal by {by.decided_by}"
    return Verdict.WRONG, f"it is not mathematics: {given.unreadable}" if given.unreadable else "the values differ"
