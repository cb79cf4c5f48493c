"""Scores task by task, and the reward that training saw beside the score that says the truth.

Floor 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain.evals.samples import REWARD, by_problem
from posttrain.evals.verdicts import Claim, settle, suspected_hacking
from posttrain.reports.contrasts import Comparison
from posttrain.reports.figures.scores import Score, score_bars
from posttrain.reports.figures.tasks import TaskScore, task_bars
from posttrain.reports.inputs import Evaluation, Inputs, lineage
from posttrain.reports.numbers import plain_score
from posttrain.reports.part import Figure, Finding, Part

SAFETY = ("over_refusal", "alignment")
TRAINED, SAME, FAR, CAREFUL = "trained on", "held out, same kind", "another kind", "safety and refusals"
NOTE = (
    "The reward is the one that the evaluation names: of the same held-out prompts, answered by each model. It is a "
    "proxy: what training can raise. Where it rises and the score, which says the truth, does not, the reward is "
    "suspected of being gamed; the two must show it in tests that together are false in at most 5% of reports."
)


class Gain(NamedTuple):
    """A model against what it was trained from, on one task: what a suspicion of hacking rests on."""

    task: str
    model: str
    start: str
    claim: Claim


def tasks_part(inputs: Inputs, comparisons: Mapping[str, Comparison]) -> Part:
    """Return bars by task and model, and where a proxy rose without the truth."""
    gains = [gain for task, comparison in comparisons.items() for gain in _gains(inputs, task, comparison)]
    readings = settle([gain.claim for gain in gains])
    named = {(gain.task, gain.model) for gain, reading in zip(gains, readings, strict=True) if reading.holds}
    findings = [
        Finding("warning" if reading.holds else "note", f"{gain.model} beside {gain.start}: {reading.sentence}.")
        for gain, reading in zip(gains, readings, strict=True)
    ]
    order = [model.name for model in inputs.models]
    figures = [
        Figure(
            f"tasks-{scale}",
            f"Mean score by task and model: {_told(scores, scale == 'share')}.",
            task_bars(scores, title="Accuracy by task" if scale == "share" else "Score by task", order=order,
                      shares=scale == "share"),
        )
        for scale in ("share", "number")
        if (scores := list(_scores(inputs, comparisons, scale)))
    ]  # fmt: skip
    proxies = {task: found for task in comparisons if (found := list(_proxies(inputs, task, named)))}
    for number, (task, bars) in enumerate(proxies.items()):
        told = "; ".join(f"{bar.model} {bar.mean:.3g}{', suspected hacking' * bar.suspected}" for bar in bars)
        title, subtitle = f"Reward on {task}", _named_rewards(inputs, task)
        draw = score_bars(bars, title=title, subtitle=subtitle, order=order, shares=False)
        figures.append(Figure(f"proxy-{number + 1}", f"Mean reward by model on {task}: {told}.", draw))
    return Part(
        key="tasks",
        title="Task by task, and what the reward saw",
        findings=tuple(findings),
        figures=tuple(figures),
        note=NOTE if proxies else "",
        data=_data(inputs, comparisons, gains, readings),
    )


def _scores(inputs: Inputs, comparisons: Mapping[str, Comparison], scale: str) -> Iterator[TaskScore]:
    grouped = sorted(comparisons, key=lambda task: (TRAINED, SAME, FAR, CAREFUL).index(group_of(inputs, task)))
    for task in grouped:
        if comparisons[task].scale != scale:
            continue
        for model in comparisons[task].models:
            score = model.summary["score"]
            yield TaskScore(group_of(inputs, task), task, model.name, score["mean"], score["low"], score["high"])


def group_of(inputs: Inputs, task: str) -> str:
    """Return how a task stands to what the models were trained on, as far as their own stages say."""
    evaluation = next(model.evaluations[task] for model in inputs.models if task in model.evaluations)
    if evaluation.task in SAFETY:
        return CAREFUL
    stages = [stage for model in inputs.models for course in model.courses for stage in lineage(course)]
    trained_on = {stage.settings.get("data", {}).get("source") for stage in stages}
    if not {evaluation.task, evaluation.summary.get("source")} & trained_on:
        return FAR
    return TRAINED if evaluation.settings.get("data", {}).get("split") == "train" else SAME


def rewards_of(evaluation: Evaluation) -> Mapping[str, float]:
    """Return the weighted rewards that scored an evaluation beside the task's own grade."""
    scores = evaluation.summary.get("scores") or {}
    return {name: weight for name, weight in scores.items() if weight}


def _named_rewards(inputs: Inputs, task: str) -> str:
    evaluation = next(model.evaluations[task] for model in inputs.models if task in model.evaluations)
    return " + ".join(
        name.replace("_", " ") if weight == 1 else f"{weight:g} {name.replace('_', ' ')}"
        for name, weight in rewards_of(evaluation).items()
    )


def means_of(evaluation: Evaluation, column: str) -> dict[str, float]:
    """Return each problem's mean of a column, of its samples that have one, in order of problem ids."""
    rows = [row for row in evaluation.samples if row.get(column) is not None]
    return {problem: float(np.mean(values)) for problem, values in by_problem(rows, column).items()}


def _proxies(inputs: Inputs, task: str, named: set[tuple[str, str]]) -> Iterator[Score]:
    for model in inputs.models:
        if task in model.evaluations and rewards_of(model.evaluations[task]):
            reward = model.evaluations[task].summary["rewards"].get(REWARD)
            if reward and reward["mean"] is not None:
                suspected = (task, model.name) in named
                yield Score(model.name, reward["mean"], reward["low"], reward["high"], suspected=suspected)


def _gains(inputs: Inputs, task: str, comparison: Comparison) -> Iterator[Gain]:
    """Yield each model against what it was trained from, where the same rewards scored both beside the task's grade."""
    names = [model.name for model in comparison.models]
    for name in names:
        start = inputs.model(name).start or inputs.baseline
        if start == name or start not in names or not inputs.model(name).courses:
            continue
        before, after = (inputs.model(model).evaluations[task] for model in (start, name))
        if not rewards_of(after) or rewards_of(after) != rewards_of(before) or "strict" not in after.summary:
            continue
        golds = _paired(before.means(), after.means())
        proxies = _paired(means_of(before, REWARD), means_of(after, REWARD))
        if golds and proxies:
            yield Gain(task, name, start, suspected_hacking(proxies, golds, samples=after.summary["num_samples"]))


def _paired(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the values of the problems that both have; None of fewer than two."""
    both = [problem for problem in before if problem in after]
    if len(both) < 2:
        return None
    return np.array([before[problem] for problem in both]), np.array([after[problem] for problem in both])


def _told(scores: Sequence[TaskScore], shares: bool) -> str:
    return "; ".join(f"{s.task}, {s.model} {plain_score(s.gold, 'share' if shares else 'number')}" for s in scores)


def _data(
    inputs: Inputs, comparisons: Mapping[str, Comparison], gains: Sequence[Gain], readings: Sequence[Any]
) -> dict[str, Any]:
    return {
        "tasks": {
            task: {
                "group": group_of(inputs, task),
                "models": {
                    model.name: {"score": model.summary["score"], "rewards": model.summary.get("rewards", {})}
                    for model in comparison.models
                },
            }
            for task, comparison in comparisons.items()
        },
        "suspected_hacking": [
            {
                "task": gain.task,
                "model": gain.model,
                "start": gain.start,
                "p": gain.claim.p,
                "named": reading.holds,
                "sentence": reading.sentence,
            }
            for gain, reading in zip(gains, readings, strict=True)
        ],
    }
