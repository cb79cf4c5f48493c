"""What every task keeps of an answer, and what can be said of any table of them.

Floor 4. `score` is the task's own number for a sample, None where there is none: it alone is compared between models.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple, Self

import numpy as np

from posttrain.errors import DataError
from posttrain.evals.bias import number_of_each
from posttrain.evals.stats import Interval, accuracy_interval, mean_interval
from posttrain.evals.winrates import Rate, first_shown_rate
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards import JUDGE
from posttrain.rewards.arguments import prompt_text
from posttrain.rewards.scoring import Scored

Row = Mapping[str, Any]

SUBSETS = {
    "subject": ("subject", "type"),
    "level": ("level",),
    "kind": ("kind",),
    "family": ("family",),
    "dataset": ("dataset",),
}  # columns of a row that divide a task
REWARD, REWARDS = "reward", "rewards/"  # columns: what the weighted rewards make, and each of them
ORDERS = ("judge_shown_first", "judge_shown_second")  # columns of a judge that compares: the parts won in either order


class Category(StrEnum):
    """What became of a sample; exactly one applies."""

    CORRECT = "correct"
    WRONG_ANSWER = "wrong_answer"
    FORMAT_FAILURE = "format_failure"  # no answer in the required form
    TRUNCATED = "truncated"  # the token limit came first
    COULD_NOT_GRADE = "could_not_grade"  # the grader gave up on the answer, or the gold is unusable
    SCORED = "scored"  # has a number, and nothing says what is right


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged answer; `strict` and `lenient` are None where the task has no such grade, or no usable gold."""

    problem_id: str
    sample: int
    prompt: str
    completion: str
    num_tokens: int
    stop_reason: str  # empty where nothing was sampled
    logprob: float | None  # mean over the completion's tokens, at the sampling temperature
    category: str
    score: float | None
    gold: str | None = None
    strict: bool | None = None
    lenient: bool | None = None
    extracted: str | None = None  # under strict grading
    rule: str | None = None  # that found the lenient answer
    reason: str = ""  # why strict grading did not find it right
    subsets: Mapping[str, str] = field(default_factory=dict)
    scored: Scored | None = None  # by the rewards of the evaluation's settings
    further: Mapping[str, Any] = field(default_factory=dict)  # columns of this kind of task, and of the reference

    def row(self) -> dict[str, Any]:
        """Return the sample as a row of the table: subsets, scores and further columns are columns of their own."""
        nested = ("subsets", "scored", "further")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in nested}
        rewards = {f"{REWARDS}{name}": value for name, value in self.scored.scores.items()} if self.scored else {}
        whole = {REWARD: self.scored.reward} if self.scored else {}
        return plain | dict(self.further) | dict(self.subsets) | rewards | whole | self._orders()

    def _orders(self) -> dict[str, float | None]:
        """Return what a judge said of it in either order, where it compares answers."""
        if self.scored is None or JUDGE not in self.scored.compared:
            return {}
        return dict(zip(ORDERS, self.scored.compared[JUDGE], strict=True))

    @classmethod
    def of(cls, prompt: Prompt, index: int, completion: Completion, **judged: Any) -> Self:
        """Return the sample of a completion, with what the task makes of it."""
        logprobs = completion.engine_logprobs
        return cls(
            problem_id=prompt.id,
            sample=index,
            prompt=prompt_text(prompt.content),
            completion=completion.text,
            num_tokens=len(completion.ids),
            stop_reason=str(completion.stop_reason),
            logprob=float(np.mean(logprobs)) if logprobs else None,
            subsets=subsets_of(prompt.columns),
            **judged,
        )


class Answers(NamedTuple):
    """A task that is ready: the ids of its problems, those too long left out, and what answers some of them."""

    ids: Sequence[str]
    dropped: int
    chat_template: object
    answer: Callable[[Sequence[str]], list[Sample]]  # raises Interrupted where a stop was requested


def subsets_of(columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the subsets that a problem belongs to, by what divides the task: subject, level, kind, ...

    MATH's "Level 5" is the level 5 of MATH-500.
    """
    return {
        name: str(value).removeprefix("Level ")
        for name, sources in SUBSETS.items()
        if (value := next((columns[source] for source in sources if columns.get(source) is not None), None)) is not None
    }


def by_problem(rows: Sequence[Row], column: str) -> dict[str, list[Any]]:
    """Return each problem's values of a column, in the order of its samples."""
    table: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: (row["problem_id"], row["sample"])):
        table.setdefault(row["problem_id"], []).append(row[column])
    return table


def score_table(rows: Sequence[Row], column: str) -> np.ndarray:
    """Return a column as (P, n), in the order of problem ids; every problem has n values."""
    return np.array(list(by_problem(rows, column).values()), dtype=float)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return counts, the mean of the task's score with its 95% interval, categories, lengths, subsets and rewards.

    Of a judge that compares answers, `first_shown_rate` too.
    Samples without a score are counted and left out of every other number. Raises DataError when none is left.
    """
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        raise DataError(
            f"none of the {len(rows)} samples has a score: no usable gold answer, or no reward that applies"
        )
    categories = Counter(row["category"] for row in scored)
    logprobs = [row["logprob"] for row in scored if row["logprob"] is not None]
    return {
        "problems": len({row["problem_id"] for row in scored}),
        "num_samples": max(row["sample"] for row in rows) + 1,
        "ungradable_problems": len({row["problem_id"] for row in rows} - {row["problem_id"] for row in scored}),
        "score": mean_with_interval(scored, "score"),
        "subsets": _by_subset(scored),
        "rewards": {
            column.removeprefix(REWARDS): mean_with_interval(scored, column)
            for column in scored[0]
            if column == REWARD or column.startswith(REWARDS)
        },
        "categories": {str(category): categories[category] / len(scored) for category in Category},
        "mean_length": float(np.mean([row["num_tokens"] for row in scored])),
        "mean_logprob": float(np.mean(logprobs)) if logprobs else None,
        "clipped_ratio": float(np.mean([row["stop_reason"] == StopReason.LENGTH for row in scored])),
        **_judging(scored),
    }


def mean_with_interval(rows: Sequence[Row], column: str) -> dict[str, Any]:
    """Return the mean of a column over problems with its 95% interval, clustered by problem; None without a value."""
    values = [row for row in rows if row[column] is not None]
    if not values:
        return {"mean": None, "low": None, "high": None}
    groups = list(by_problem(values, column).values())
    means = np.array([np.mean(group) for group in groups])
    interval = _interval(groups, means)
    return {"mean": float(means.mean()), "low": interval.low, "high": interval.high}


def metric(name: str, rows: Sequence[Row], column: str | None = None, *, filter: str = "none") -> dict[str, Any]:
    """Return the mean of a column over problems and its standard error, under lm-evaluation-harness's names.

    These are `name,filter` and `name_stderr,filter`. The error is that of the mean of problems, each the mean of its
    samples; None for a single one. The column is called as the metric, unless it is named; values of None are left out.
    """
    values = [row for row in rows if row[column or name] is not None]
    means = np.array([np.mean(group) for group in by_problem(values, column or name).values()])
    error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
    return {f"{name},{filter}": float(means.mean()) if len(means) else None, f"{name}_stderr,{filter}": error}


def first_shown(rows: Sequence[Row]) -> Rate | None:
    """Return how often a judge preferred what it was shown first, None where none compared these samples."""
    judged = [row for row in rows if row.get(ORDERS[0]) is not None]
    if not judged:
        return None
    return first_shown_rate(
        wins=np.array([row[order] for order in ORDERS for row in judged]),
        model_first=np.repeat([True, False], len(judged)),
        prompts=np.tile(number_of_each([row["problem_id"] for row in judged]), 2),
    )


def judging_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return what a judge that compares answers adds of its own, in a line of text; none without one."""
    if (found := summary.get("first_shown_rate")) is None:
        return []
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return [f"the judge prefers what it is shown first in {mean:.1f}% (95% CI {low:.1f} to {high:.1f}); 50 is fair"]


def _judging(rows: Sequence[Row]) -> dict[str, Any]:
    found = first_shown(rows)
    return {} if found is None else {"first_shown_rate": found.to_json()}


def _interval(groups: Sequence[Sequence[float]], means: np.ndarray) -> Interval:
    """Wilson's for outcomes of 0 and 1, as many of each problem; else Student's, of the problems' means."""
    whole = len({len(group) for group in groups}) == 1
    if whole and all(value in (0, 1) for group in groups for value in group):
        return accuracy_interval(np.array(groups, dtype=float))
    return mean_interval(means[:, None])


def _by_subset(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in SUBSETS:
        values = sorted({row[name] for row in rows if row.get(name) is not None}, key=_in_order)
        if values:
            found[name] = {value: _subset([row for row in rows if row.get(name) == value]) for value in values}
    return found


def subset_lines(subsets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return the subsets of a summary as a table in lines of text; no line without subsets."""
    lines = []
    for name, values in subsets.items():
        width = max(len(value) for value in (name, *values))
        lines.append(f"  {name:{width}}  score  95% interval    problems")
        for value, found in values.items():
            interval = f"{found['low']:.3f} to {found['high']:.3f}"
            lines.append(f"  {value:{width}}  {found['mean']:.3f}  {interval:14}  {found['problems']}")
    return lines


def _in_order(value: str) -> tuple[bool, int, str]:
    """Order numbers by size, before words."""
    return (False, int(value), "") if value.isdecimal() else (True, 0, value)


def _subset(rows: Sequence[Row]) -> dict[str, Any]:
    return {"problems": len({row["problem_id"] for row in rows}), **mean_with_interval(rows, "score")}
