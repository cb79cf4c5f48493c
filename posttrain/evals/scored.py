"""Answers that have a number instead of a gold one: a rule's, a reward model's or a judge's.

Floor 4, pure but for the rewards. A rule that is a task's own gives 1 or 0, so that its mean is a share; what the
settings weigh may be any number.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from posttrain.data.rows import Row as DataRow
from posttrain.errors import DataError
from posttrain.evals.instructions import instruction_verdicts, summarise_instructions
from posttrain.evals.samples import REWARD, REWARDS, Category, Row, Sample, mean_with_interval, metric
from posttrain.evals.tasks import Task
from posttrain.evals.winrates import win_rate, wins_by_score
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards.arguments import completion_text
from posttrain.rewards.functions import combination_of
from posttrain.rewards.identity import reward_identity
from posttrain.rewards.scoring import RewardFunction, Scored, score
from posttrain.settings import TaskSettings


def own_rule(task: Task, settings: TaskSettings) -> str | None:
    """Return the reward that is the task's number; None where that is what the weighted rewards make."""
    return None if task.rewards_decide and any(settings.rewards.values()) else task.score


def score_identity(task: Task, settings: TaskSettings) -> dict[str, Any]:
    """Return what decides the task's number, as flat JSON."""
    rule = own_rule(task, settings)
    return {"score": rule} if rule is not None else {"score": REWARD, **reward_identity(settings)}


def score_samples(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    task: Task,
    settings: TaskSettings,
    rewards: Mapping[str, float],
    functions: Mapping[str, RewardFunction],
    references: Mapping[str, Completion],
) -> Iterator[Sample]:
    """Yield every completion with its score; a prompt's reference is scored among its completions and kept beside."""
    offered = [
        [*group, *([references[prompt.id]] if prompt.id in references else [])]
        for prompt, group in zip(prompts, completions, strict=True)
    ]
    parts = iter(score(prompts, offered, rewards, functions, combination_of(settings)))
    rule = own_rule(task, settings)
    for prompt, group in zip(prompts, completions, strict=True):
        scores = list(islice(parts, len(group)))
        reference = references.get(prompt.id)
        beside = {} if reference is None else {"reference": reference.text, "reference_reward": next(parts).reward}
        for index, (completion, scored) in enumerate(zip(group, scores, strict=True)):
            yield score_sample(prompt, index, completion, scored, rule, beside)


def score_sample(
    prompt: Prompt,
    index: int,
    completion: Completion,
    scored: Scored,
    rule: str | None,
    beside: Mapping[str, Any] | None = None,
) -> Sample:
    """Return a completion with its score: the rule's, or what all rewards make together; `beside` are its columns."""
    number = scored.reward if rule is None else scored.scores[rule]
    return Sample.of(
        prompt,
        index,
        completion,
        category=str(_category(number, completion, has_verdict=rule is not None)),
        score=number,
        scored=scored,
        further={**(beside or {}), **instruction_verdicts(prompt.columns, completion.text)},
    )


def reference_texts(rows: Sequence[DataRow]) -> dict[str, str]:
    """Return the answer that each row came with, by its id; raises DataError where none has one."""
    found = {row.id: completion_text(row.completion) for row in rows if row.completion is not None}
    if not found:
        raise DataError(
            f"score_reference scores the answers that come with the prompts, and {rows[0].origin} and the others have "
            "none: expected a column completion, or instruction and output",
            fix="--score_reference false",
        )
    return found


def as_completion(text: str, tokenizer: Any) -> Completion:
    """Return a text as if it had been sampled to its end."""
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Completion(ids, (0.0,) * len(ids), StopReason.EOS, text)


def summarise_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Return each reward and what all make together, as lm-evaluation-harness names metrics, and what there is more.

    That is what became of instructions, and how the samples stand to the references.
    """
    columns = [column for column in rows[0] if column == REWARD or column.startswith(REWARDS)]
    metrics = [metric(column.removeprefix(REWARDS), rows, column) for column in columns]
    instructions = summarise_instructions(rows)
    results = {name: value for each in (*metrics, instructions.pop("results", {})) for name, value in each.items()}
    return {"results": results, **instructions, **summarise_references(rows)}


def summarise_references(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the references' mean reward and the share of them that the samples beat, ties by half; {} of none."""
    compared = [row for row in rows if row.get("reference_reward") is not None and row[REWARD] is not None]
    if not compared:
        return {}
    numbers = {problem: number for number, problem in enumerate(dict.fromkeys(row["problem_id"] for row in compared))}
    wins = wins_by_score(*(np.array([row[name] for row in compared]) for name in (REWARD, "reference_reward")))
    found = win_rate(wins, np.array([numbers[row["problem_id"]] for row in compared]))
    return {
        "reference_reward": mean_with_interval(compared, "reference_reward"),
        "win_rate": {"mean": found.rate, "low": found.interval.low, "high": found.interval.high},
    }


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    mean, low, high = (summary["score"][name] for name in ("mean", "low", "high"))
    rule = summary["scorer"]["score"]
    if rule == REWARD:
        found = f"mean score {mean:.3g} (95% CI {low:.3g} to {high:.3g})"
    else:
        found = f"{rule} {100 * mean:.1f}% (95% CI {100 * low:.1f} to {100 * high:.1f})"
    return f"{summary['task']}: {found}, {summary['problems']} prompts x {summary['num_samples']}"


def _category(number: float | None, completion: Completion, *, has_verdict: bool) -> Category:
    if number is None:
        return Category.COULD_NOT_GRADE
    if has_verdict and number == 1:
        return Category.CORRECT
    if completion.stop_reason is StopReason.LENGTH:
        return Category.TRUNCATED
    return Category.WRONG_ANSWER if has_verdict else Category.SCORED
