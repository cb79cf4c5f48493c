"""Answers that have a number instead of a gold one: a rule's, a reward model's or a judge's.

Floor 4, pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evals.samples import REWARD, REWARDS, Category, Row, Sample, metric
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards.scoring import Scored


def score_sample(prompt: Prompt, index: int, completion: Completion, scored: Scored, name: str | None) -> Sample:
    """Return a completion with its score: the reward of that name, or what all rewards make together."""
    number = scored.reward if name is None else scored.scores[name]
    truncated = completion.stop_reason is StopReason.LENGTH
    category = Category.TRUNCATED if truncated else Category.SCORED
    if number is None:
        category = Category.COULD_NOT_GRADE
    return Sample.of(prompt, index, completion, category=str(category), score=number, scored=scored)


def summarise_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Return each reward, and what they make together, as lm-evaluation-harness names metrics."""
    columns = [column for column in rows[0] if column == REWARD or column.startswith(REWARDS)]
    found = [metric(column.removeprefix(REWARDS), rows, column) for column in columns]
    return {"results": {name: value for each in found for name, value in each.items()}}


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    score = summary["score"]
    return (
        f"{summary['task']}: mean score {score['mean']:.3g} (95% CI {score['low']:.3g} to {score['high']:.3g}), "
        f"{summary['problems']} prompts x {summary['num_samples']}"
    )
