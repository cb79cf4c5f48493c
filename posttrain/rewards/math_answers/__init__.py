"""The grader: what a response answers, and whether that is the gold answer."""

from posttrain.rewards.math_answers.grading import (
    GRADER_VERSION,
    LENIENT,
    Grade,
    Policy,
    Verdict,
    exact_value,
    gold_error,
    grade,
    grade_answer,
    grade_many,
)

__all__ = [
    "GRADER_VERSION",
    "LENIENT",
    "Grade",
    "Policy",
    "Verdict",
    "exact_value",
    "gold_error",
    "grade",
    "grade_answer",
    "grade_many",
]
