"""How often a model's answers are preferred to the baseline's, raw and at equal length.

Floor 5.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from posttrain.evals.bias import number_of_each
from posttrain.evals.samples import REWARD
from posttrain.evals.winrates import length_controlled_win_rate, win_rate, wins_by_score
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
    "that the evaluation names; a model that was trained on it wins by being trained on it."
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
        others = [model.evaluations[task] for model in inputs.models if task in model.evaluations]
        rates = [rate for other in others if other is not first and (rate := _rate(first, other))]
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
        tables.append(_table(task, baseline.name, judge, rates))
        findings += list(_findings(task, baseline.name, rates))
        data[task] = {"judge": judge, "models": {rate.model: _plain(rate) for rate in rates}}
    if not figures:
        return Part("win_rates", TITLE, absent=ABSENT)
    return Part("win_rates", TITLE, tuple(findings), tuple(figures), tuple(tables), note=NOTE, data=data)


def _rate(first: Evaluation, other: Evaluation) -> WinRate | None:
    """Return the win rate over the samples that both have of the same prompt and number."""
    if rewards_of(first) != rewards_of(other):
        return None
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


def _table(task: str, baseline: str, judge: str, rates: list[WinRate]) -> Table:
    rows = tuple(
        (
            Cell(rate.model),
            Cell(_percent(rate.raw), f"{_percent(rate.raw_low)} to {_percent(rate.raw_high)}"),
            Cell(_percent(rate.controlled), f"{_percent(rate.controlled_low)} to {_percent(rate.controlled_high)}"),
            Cell(_percent(rate.ties)),
        )
        for rate in rates
    )
    return Table(f"Against {baseline} on {task}, by {judge}", ("model", "win rate", "at equal length", "ties"), rows)


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{share:.1%}"


def _plain(rate: WinRate) -> dict[str, float | None]:
    values = {
        "raw": rate.raw, "raw_low": rate.raw_low, "raw_high": rate.raw_high, "controlled": rate.controlled,
        "controlled_low": rate.controlled_low, "controlled_high": rate.controlled_high, "ties": rate.ties,
    }  # fmt: skip
    return {name: None if np.isnan(value) else value for name, value in values.items()}
