"""Whether a completion holds an answer at all, in the form in which its reward looks for one; right or wrong.

Floor 3, pure text work: what tells a form that is learned from answers that are.
"""

from collections.abc import Iterable

from posttrain.rewards.extraction import Profile, extract

FORMS: dict[str, Profile] = {"r1_zero": "r1_zero", "boxed_answer": "boxed", "math_answer": "lenient"}  # of 0 or 1


def answer_form(rewards: Iterable[str]) -> Profile | None:
    """Return the form that the first of these rewards asks for that asks for one."""
    return next((FORMS[name] for name in rewards if name in FORMS), None)


def has_answer(text: str, form: Profile, *, truncated: bool) -> bool:
    """Return whether the text gives an answer in this form."""
    return extract(text, profile=form, truncated=truncated).text is not None
