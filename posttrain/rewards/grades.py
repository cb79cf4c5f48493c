"""The rewards that say the truth, and whether a completion gives an answer at all in the form that one asks for.

Floor 3, pure but for the grader: what tells a form that is learned from answers that are.
"""

from collections.abc import Iterable
from functools import lru_cache

from posttrain.rewards.extraction import Profile, extract
from posttrain.rewards.math_answers import LENIENT, Grade, Verdict, gold_error, grade

GRADES = ("r1_zero", "boxed_answer", "math_answer", "exact_match", "numeric_match")  # 1 for a right answer, else 0
FORMS: dict[str, Profile] = {"r1_zero": "r1_zero", "boxed_answer": "boxed", "math_answer": "lenient"}


def answer_form(rewards: Iterable[str]) -> Profile | None:
    """Return the form that the first of these rewards asks for that asks for one."""
    return next((FORMS[name] for name in rewards if name in FORMS), None)


def has_answer(text: str, form: Profile, *, truncated: bool) -> bool:
    """Return whether the text gives an answer in this form, right or wrong."""
    return extract(text, profile=form, truncated=truncated, last_number=True).text is not None


def gave_up(text: str, gold: str | None, form: Profile, *, truncated: bool) -> bool:
    """Return whether the grader could not grade an answer, which then scores 0; unusable golds are not counted."""
    found = None if gold is None else grade_once(text, gold, form, truncated)
    return found is not None and found.verdict is Verdict.COULD_NOT_GRADE


@lru_cache(maxsize=4096)
def grade_once(text: str, gold: str, form: Profile, truncated: bool) -> Grade | None:
    """Return the grade that rewards pay by; None for an unusable gold. A step's metrics ask for it again."""
    if gold_error(gold) is not None:
        return None
    return grade(text, gold, profile=form, truncated=truncated, policy=LENIENT)
