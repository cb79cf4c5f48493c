"""Answers that are graded against a gold one, strictly and leniently side by side.

Floor 4, pure but for the grader.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.evals.samples import Category, Row, Sample, metric, score_table
from posttrain.evals.stats import accuracy_interval, pass_at_k
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards.extraction import Profile
from posttrain.rewards.math_answers import LENIENT, Grade, Verdict, gold_error, grade
from posttrain.rewards.scoring import Scored, gold_answer


def grade_sample(
    prompt: Prompt, index: int, completion: Completion, profile: Profile, scored: Scored | None = None
) -> Sample:
    """Grade a completion; its prompt has a gold column (`require_gold`), and `profile` is the one form that counts."""
    gold = gold_answer(prompt.columns)
    assert gold is not None
    gradable = gold_error(gold) is None
    truncated = completion.stop_reason is StopReason.LENGTH
    strict = grade(completion.text, gold, profile=profile, truncated=truncated)
    lenient = grade(completion.text, gold, profile="lenient", truncated=truncated, policy=LENIENT)
    # A right answer in the strict form is right however else the lenient rules read the text.
    right = strict.verdict is Verdict.RIGHT
    return Sample.of(
        prompt,
        index,
        completion,
        category=str(categorise(strict, truncated=truncated)),
        score=float(right) if gradable else None,
        gold=gold,
        strict=right if gradable else None,
        lenient=(right or lenient.verdict is Verdict.RIGHT) if gradable else None,
        extracted=strict.extracted,
        rule=lenient.rule,
        reason="" if right else strict.reason,
        scored=scored,
    )


def categorise(strict: Grade, *, truncated: bool) -> Category:
    """Return the category of a strict grade; an answer given before the limit counts, right or wrong."""
    if strict.verdict is Verdict.COULD_NOT_GRADE:
        return Category.COULD_NOT_GRADE
    if strict.verdict is Verdict.RIGHT:
        return Category.CORRECT
    if strict.extracted is not None:
        return Category.WRONG_ANSWER
    return Category.TRUNCATED if truncated else Category.FORMAT_FAILURE


def summarise_grades(rows: Sequence[Row]) -> dict[str, Any]:
    """Return strict and lenient accuracy with 95% intervals, and pass@k for k = 1, 2, 4, ...; some row is graded.

    `results` has them under lm-evaluation-harness's names, where strict-match is in the one form that counts, and
    flexible-extract in any.
    """
    graded = [row for row in rows if row["strict"] is not None]
    strict, lenient = score_table(graded, "strict"), score_table(graded, "lenient")
    num_samples = strict.shape[1]
    ks = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    solved = {str(k): float(np.mean([pass_at_k(num_samples, int(c), k) for c in strict.sum(axis=1)])) for k in ks}
    return {
        "results": {
            **metric("exact_match", graded, "strict", filter="strict-match"),
            **metric("exact_match", graded, "lenient", filter="flexible-extract"),
            **{f"pass@{k},strict-match": share for k, share in solved.items()},
        },
        "strict": _accuracy(strict),
        "lenient": _accuracy(lenient),
        "pass_at_k": solved,
    }


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    strict, lenient = summary["strict"], summary["lenient"]
    return (
        f"{summary['task']}: {100 * strict['accuracy']:.1f}% right "
        f"(95% CI {100 * strict['low']:.1f} to {100 * strict['high']:.1f}), lenient {100 * lenient['accuracy']:.1f}%, "
        f"{summary['problems']} problems x {summary['num_samples']}"
    )


def _accuracy(correct: np.ndarray) -> dict[str, float]:
    interval = accuracy_interval(correct)
    return {"accuracy": float(correct.mean()), "low": interval.low, "high": interval.high}
