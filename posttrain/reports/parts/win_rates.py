"""How often a model's answers are preferred to the baseline's, raw and at equal length.

Floor 5.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from posttrain.evals.bias import number_of_each
from posttrain.evals.samples import REWARD, first_shown
from posttrain.evals.winrates import (
    Agreement,
    Rate,
    agreement,
    length_controlled_win_rate,
    win_rate,
    wins_by_score,
)
from posttrain.reports.contrasts import Comparison
from posttrain.reports.figures.judging import WinRate, win_rates
from posttrain.reports.inputs import Evaluation, Inputs
from posttrain.reports.part import Figure, Finding, Part
from posttrain.reports.parts.tasks import rewards_of
from posttrain.reports.tables import Cell, Table

TITLE = "Win rates"
ABSENT = (
    "No evaluation was scored by a reward model or a judge: `posttrain eval --rewards.reward_model 1.0 "
    "--reward_model runs/rm/rm/artifact`, or `--rewards.judge 1.0`, compares answers to the same prompts."
)
NOTE = (
    "A win is a higher reward for the answer to the same prompt, a tie counts half. At equal length: what the logistic "
    "model of length-controlled AlpacaEval predicts where both answers are equally long. The judge here is the reward "
    "that the evaluation names; a model that was trained on it wins by being trained on it. A judge that compares is "
    "asked in both orders, so that a love of the first answer makes ties and no wins. Where the task has a grade of "
    "its own, agreement is how often judge and grade prefer the same answer, of the prompts where the grades differ."
)


def win_rates_part(inputs: Inputs, comparisons: Mapping[str, Comparison]) -> Part:
    """Return each model's win rate against the baseline, by the rewards of their evaluations."""
    baseline = inputs.model(inputs.baseline)
    order = [model.name for model in inputs.models]
    figures, tables, findings, data = [], [], [], {}
    for number, task in enumerate(comparisons):
        first = baseline.evaluations.get(task)
        if first is None or not rewards_of(first):
            continue
        same = [model.evaluations[task] for model in inputs.models if task in model.evaluations]
        others = [other for other in same if other is not first and rewards_of(other) == rewards_of(first)]
        rates = [rate for other in others if (rate := _rate(first, other))]
        if not rates:
            continue
        judge = " + ".join(rewards_of(first))
        draw = win_rates(
            rates, title=f"Win rates on {task}", subtitle=f"by {judge}", baseline=baseline.name, order=order
        )
        told = "; ".join(
            f"{rate.model} {rate.raw:.0%} raw, {_percent(rate.controlled)} at equal length" for rate in rates
        )
        figures.append(Figure(f"win-rates-{number + 1}", f"Win rates against {baseline.name} on {task}: {told}.", draw))
        agreements = {other.name: _agreement(first, other) for other in others}
        shown = first_shown([row for evaluation in (first, *others) for row in evaluation.samples])
        tables.append(_table(task, baseline.name, judge, rates, agreements))
        findings += [*_findings(task, baseline.name, rates), *_order_findings(task, shown)]
        findings += _agreement_findings(task, judge, agreements)
        data[task] = {
            "judge": judge,
            "first_shown_rate": None if shown is None else shown.to_json(),
            "models": {rate.model: _plain(rate) | _plain_agreement(agreements[rate.model]) for rate in rates},
        }
    if not figures:
        return Part("win_rates", TITLE, absent=ABSENT)
    return Part("win_rates", TITLE, tuple(findings), tuple(figures), tuple(tables), note=NOTE, data=data)


def _rate(first: Evaluation, other: Evaluation) -> WinRate | None:
    """Return the win rate over the samples that both have of the same prompt and number."""
    ours, theirs = _scored(other), _scored(first)
    places = sorted(ours.keys() & theirs.keys())
    if not places:
        return None
    scores, opponents = (np.array([side[place][0] for place in places]) for side in (ours, theirs))
    lengths, against = (np.array([side[place][1] for place in places], dtype=float) for side in (ours, theirs))
    prompts = number_of_each([place[0] for place in places])
    wins = wins_by_score(scores, opponents)
    raw = win_rate(wins, prompts)
    controlled = length_controlled_win_rate(wins, lengths - against, prompts)
    low, high = raw.interval
    ties = float((wins == 0.5).mean())
    if controlled is None:
        return WinRate(other.name, raw.rate, low, high, ties=ties)
    return WinRate(other.name, raw.rate, low, high, controlled.rate, *controlled.interval, ties=ties)


def _scored(evaluation: Evaluation) -> dict[tuple[str, int], tuple[float, int]]:
    """Return reward and length of each sample that has a reward, by problem and number."""
    return {
        (row["problem_id"], row["sample"]): (row[REWARD], row["num_tokens"])
        for row in evaluation.samples
        if row.get(REWARD) is not None
    }


def _agreement(first: Evaluation, other: Evaluation) -> Agreement | None:
    """Return how often reward and grade prefer the same answer, of the prompts whose first samples differ in grade.

    None where the task's score is the reward, and where no grades differ.
    """
    if (other.summary.get("scorer") or {}).get("score") == REWARD:
        return None
    ours, theirs = _graded(other), _graded(first)
    preferences = [
        np.sign(np.subtract(ours[problem], theirs[problem])) for problem in sorted(ours.keys() & theirs.keys())
    ]
    told = [(reward, grade) for reward, grade in preferences if grade]
    return agreement(*zip(*told, strict=True)) if told else None


def _graded(evaluation: Evaluation) -> dict[str, tuple[float, float]]:
    """Return reward and score of each problem's first sample."""
    return {
        row["problem_id"]: (row[REWARD], row["score"])
        for row in evaluation.samples
        if row["sample"] == 0 and row.get(REWARD) is not None and row["score"] is not None
    }


def _order_findings(task: str, shown: Rate | None) -> Iterator[Finding]:
    """Say where a judge prefers an answer for its place."""
    if shown is None:
        return
    low, high = shown.interval
    share = f"{shown.rate:.1%} [{low:.1%}, {high:.1%}] of its comparisons"
    if low <= 0.5 <= high:
        yield Finding(
            "note", f"On {task} the judge prefers the answer that it is shown first in {share}: no position bias."
        )
    else:
        place = "first" if low > 0.5 else "second"
        yield Finding(
            "warning",
            f"On {task} the judge prefers the {place} answer for its place: the one shown first wins {share}.",
        )


def _findings(task: str, baseline: str, rates: list[WinRate]) -> Iterator[Finding]:
    """Say where a preference goes with length: won by the raw rate, and not at equal length."""
    for rate in rates:
        if rate.raw_low > 0.5 and rate.controlled_low <= 0.5:
            yield Finding(
                "warning",
                f"{rate.model} wins {rate.raw:.0%} of {task} against {baseline} "
                f"[{rate.raw_low:.0%}, {rate.raw_high:.0%}], at equal length {rate.controlled:.0%} "
                f"[{rate.controlled_low:.0%}, {rate.controlled_high:.0%}]: its length may be what wins.",
            )


def _agreement_findings(task: str, judge: str, agreements: Mapping[str, Agreement | None]) -> Iterator[Finding]:
    """Say where a judge prefers answers with the lower grade."""
    against = {name: found for name, found in agreements.items() if found and found.accuracy.interval.high < 0.5}
    if against:
        told = ", ".join(f"{name} {found.accuracy.rate:.0%} of {found.items}" for name, found in against.items())
        yield Finding(
            "warning",
            f"On {task} {judge} prefers the answer with the lower grade; of the prompts where grades differ from the "
            f"baseline's it agrees with them on: {told}. It is no judge of this task.",
        )


def _table(
    task: str, baseline: str, judge: str, rates: list[WinRate], agreements: Mapping[str, Agreement | None]
) -> Table:
    told = any(agreements.values())
    rows = tuple(
        (
            Cell(rate.model),
            Cell(_percent(rate.raw), f"{_percent(rate.raw_low)} to {_percent(rate.raw_high)}"),
            Cell(_percent(rate.controlled), f"{_percent(rate.controlled_low)} to {_percent(rate.controlled_high)}"),
            Cell(_percent(rate.ties)),
            *([_agreement_cell(agreements[rate.model])] if told else []),
        )
        for rate in rates
    )
    columns = ("model", "win rate", "at equal length", "ties", *(["agrees with the grade"] if told else []))
    return Table(f"Against {baseline} on {task}, by {judge}", columns, rows)


def _agreement_cell(found: Agreement | None) -> Cell:
    if found is None:
        return Cell("-")
    low, high = found.accuracy.interval
    return Cell(_percent(found.accuracy.rate), f"{_percent(low)} to {_percent(high)}, {found.items} prompts")


def _plain_agreement(found: Agreement | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {"agreement": {"prompts": found.items, "accuracy": found.accuracy.to_json(), "kappa": found.kappa}}


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{share:.1%}"


def _plain(rate: WinRate) -> dict[str, float | None]:
    values = {
        "raw": rate.raw, "raw_low": rate.raw_low, "raw_high": rate.raw_high, "controlled": rate.controlled,
        "controlled_low": rate.controlled_low, "controlled_high": rate.controlled_high, "ties": rate.ties,
    }  # fmt: skip
    return {name: None if np.isnan(value) else value for name, value in values.items()}
