"""Mean scores as bars with intervals, one dot for each seed.

Floor 5.
"""

from collections.abc import Mapping

from posttrain.reports.contrasts import Comparison
from posttrain.reports.figures.scores import Score, score_bars
from posttrain.reports.inputs import Inputs
from posttrain.reports.numbers import plain_interval, plain_score
from posttrain.reports.part import Figure, Part

NOTE = (
    "Intervals of 95%: Wilson's where there is one answer to each problem, clustered by problem where there are "
    "several, for the answers to one problem are alike. A dot is a seed."
)


def scores_part(inputs: Inputs, comparisons: Mapping[str, Comparison]) -> Part:
    """Return a figure of each task's mean scores."""
    order = [model.name for model in inputs.models]
    figures, data = [], {}
    for number, (task, comparison) in enumerate(comparisons.items()):
        bars = [_score(inputs, task, model.name, model.summary["score"]) for model in comparison.models]
        shares = comparison.scale == "share"
        told = [
            f"{bar.model} {plain_score(bar.mean, comparison.scale)} "
            f"({plain_interval(bar.low, bar.high, comparison.scale)})"
            for bar in bars
        ]
        draw = score_bars(bars, title=f"{'Accuracy' if shares else 'Score'} on {task}", order=order, shares=shares)
        figures.append(
            Figure(f"scores-{number + 1}", f"Mean scores on {task} with 95% intervals: {'; '.join(told)}.", draw)
        )
        data[task] = {
            bar.model: {"mean": bar.mean, "low": bar.low, "high": bar.high, "seeds": list(bar.seeds)} for bar in bars
        }
    return Part("scores", "Scores", figures=tuple(figures), note=NOTE, data=data)


def _score(inputs: Inputs, task: str, name: str, score: Mapping[str, float]) -> Score:
    seeds = inputs.model(name).evaluations[task].seed_scores
    return Score(name, score["mean"], score["low"], score["high"], seeds)
