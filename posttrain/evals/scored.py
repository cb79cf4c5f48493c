"""Answers that have a number instead of a gold one: a rule's, a reward model's or a judge's.

Floor 4, pure.
"""

from collections.abc import Mapping
from typing import Any

from posttrain.evals.samples import Category, Sample
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


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    score = summary["score"]
    return (
        f"{summary['task']}: mean score {score['mean']:.3g} (95% CI {score['low']:.3g} to {score['high']:.3g}), "
        f"{summary['problems']} prompts x {summary['num_samples']}"
    )
