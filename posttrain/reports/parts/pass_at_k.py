"""What several tries solve: pass@k and maj@k with bands, and where a tuned model's curve crosses the baseline's.

Floor 5. pass@k is Chen et al.'s unbiased estimate (arXiv 2107.03374), maj@k the exact mean over all votes of k samples
(Wang et al. 2022, arXiv 2203.11171).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from posttrain.evals.stats import Interval, paired_difference, paired_p, pass_at_k, share_interval
from posttrain.evals.voting import majority_accuracy
from posttrain.reports.claims import Claim, adjust
from posttrain.reports.figures.curves import PassCurve, pass_curves
from posttrain.reports.inputs import Evaluation, Inputs
from posttrain.reports.numbers import plain_difference, plain_interval, plain_score
from posttrain.reports.paired import Sample, side_by_side
from posttrain.reports.part import Figure, Finding, Part
from posttrain.reports.parts.formats import graded_samples, is_graded
from posttrain.reports.tables import Cell, Table

KEY, TITLE = "pass_at_k", "Several tries"
NOTE = (
    "pass@k: the share of problems of which one of k samples is right, under strict grading. maj@k: the share of which "
    "the most frequent answer of k is right; wrong answers are the same where their texts are. Bands are at 95% and "
    "clustered by problem. Tuning often wins with one try and loses with many: it makes likely what the model could "
    "already do. A crossing is called only where both ends are shown by paired tests."
)
ABSENT = (
    "No task here was answered several times: `posttrain eval --num_samples 8 --sampling.temperature 1.0`, for the "
    "baseline and for each model."
)
GOLD = "right"  # every right answer's vote
TEXT = "="  # before a wrong answer's text, which then is never equal to it

Curve = Mapping[int, Mapping[str, float]]  # k: each problem's chance


@dataclass(frozen=True, slots=True)
class Tries:
    """What k samples of each problem solve, for every k up to their number, and what a vote of k solves."""

    samples: int
    solved: Curve
    majority: Curve  # for the powers of 2


class Gain(NamedTuple):
    """What a model solves more or less than the baseline with k tries on a task."""

    task: str
    model: str
    k: int
    claim: Claim


class Crossing(NamedTuple):
    """A model that is better with one try and worse with many, or the other way round, and the k where that changes."""

    model: str
    k: int


def pass_at_k_part(inputs: Inputs) -> Part:
    """Return the curves of each task that was answered several times, and who solves more with one try and with all."""
    tasks = {task: found for task in inputs.tasks if (found := _tries_of(inputs, task))}
    if not tasks:
        return Part(KEY, TITLE, absent=ABSENT)
    gains = [gain for task, models in tasks.items() for gain in _gains(task, models, inputs.baseline)]
    tested = adjust([gain.claim for gain in gains])
    shown = [gain for gain, holds in zip(gains, tested.holds, strict=True) if holds]
    crossings = {task: list(_crossings(task, models, inputs.baseline, shown)) for task, models in tasks.items()}
    order = [model.name for model in inputs.models]
    figures: list[Figure] = []
    tables: list[Table] = []
    data = {}
    for place, (task, models) in enumerate(tasks.items(), 1):
        curves = [_curve(name, found) for name, found in models.items()]
        figures.append(_figure(place, task, curves, order, crossings[task]))
        tables.append(_table(f"Solved within k tries on {task}", "pass", {each.model: each.solved for each in curves}))
        tables.append(_table(f"Solved by a vote of k on {task}", "maj", {each.model: each.majority for each in curves}))
        data[task] = {curve.model: _data(curve, models[curve.model]) for curve in curves}
    crossed = [
        Finding("note", f"{task}: {each.model} and {inputs.baseline} cross at about k = {each.k}.")
        for task, found in crossings.items()
        for each in found
    ]
    return Part(
        KEY,
        TITLE,
        (*tested.findings, *crossed),
        tuple(figures),
        tuple(tables),
        note=NOTE,
        data={
            "tasks": data,
            "claims": tested.data,
            "crossings": {task: [each._asdict() for each in found] for task, found in crossings.items()},
        },
    )


def _tries_of(inputs: Inputs, task: str) -> dict[str, Tries]:
    evaluations = [model.evaluations[task] for model in inputs.models if is_graded(model.evaluations.get(task))]
    found = {each.name: tries(each) for each in evaluations if each.summary["num_samples"] > 1}
    return {name: each for name, each in found.items() if each.solved[1]}


def tries(evaluation: Evaluation) -> Tries:
    """Return what several samples solve; of several seeds, each seed's mean, for a vote is one model's."""
    samples = int(evaluation.summary["num_samples"])
    groups: dict[tuple[str, Any], list[Sample]] = {}
    for sample in graded_samples(evaluation):
        groups.setdefault((sample["problem_id"], sample.get("seed")), []).append(sample)
    whole = {key: found for key, found in groups.items() if len(found) == samples}
    right = {key: sum(bool(sample["strict"]) for sample in found) for key, found in whole.items()}
    answers = {key: [_answer(sample) for sample in found] for key, found in whole.items()}
    return Tries(
        samples,
        {
            k: _by_problem({key: pass_at_k(samples, count, k) for key, count in right.items()})
            for k in range(1, samples + 1)
        },
        {
            k: _by_problem({key: majority_accuracy(votes, (GOLD,), k) for key, votes in answers.items()})
            for k in _shown(samples)
        },
    )


def _answer(sample: Sample) -> str | None:
    """Return what a sample votes for; None where no answer was found in it."""
    if sample["strict"]:
        return GOLD
    return None if sample["extracted"] is None else TEXT + " ".join(str(sample["extracted"]).split())


def _by_problem(values: Mapping[tuple[str, Any], float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for (problem, _), value in values.items():
        found.setdefault(problem, []).append(value)
    return {problem: float(np.mean(of_seeds)) for problem, of_seeds in found.items()}


def _shown(samples: int) -> list[int]:
    """Return the powers of 2 up to the number of samples, and that number."""
    return sorted({*(2**i for i in range(samples.bit_length()) if 2**i <= samples), samples})


def _gains(task: str, models: Mapping[str, Tries], baseline: str) -> Iterator[Gain]:
    """Yield what each model solves more or less than the baseline, with one try and with all that both have."""
    if baseline not in models:
        return
    for name, found in models.items():
        if name == baseline:
            continue
        for k in (1, min(found.samples, models[baseline].samples)):
            before, after = side_by_side(models[baseline].solved[k], found.solved[k])
            if not len(before):
                continue
            gain = paired_difference(before, after, samples=found.samples // k)
            text = (
                f"{task}: {name} solves {'more' if gain.mean > 0 else 'fewer'} problems than {baseline} with "
                f"{'one try' if k == 1 else f'{k} tries'}: {plain_difference(gain.mean, gain.interval, 'share')})"
            )
            yield Gain(task, name, k, Claim("better" if gain.mean > 0 else "worse", text, paired_p(before, after)))


def _crossings(task: str, models: Mapping[str, Tries], baseline: str, shown: Sequence[Gain]) -> Iterator[Crossing]:
    """Yield the models of which both a gain and a loss are shown, with the first k after the curves have crossed."""
    for name, found in models.items():
        own = [gain for gain in shown if (gain.task, gain.model) == (task, name)]
        if {gain.claim.tone for gain in own} == {"better", "worse"}:
            gains = [_mean_gain(models[baseline], found, k) for k in range(1, own[-1].k + 1)]
            yield Crossing(name, next(k for k, gain in enumerate(gains, 1) if gain * gains[0] <= 0))


def _mean_gain(before: Tries, after: Tries, k: int) -> float:
    a, b = side_by_side(before.solved[k], after.solved[k])
    return float((b - a).mean())


@dataclass(frozen=True, slots=True)
class _Band:
    """A curve's mean with its interval at each k that is shown."""

    model: str
    solved: Mapping[int, tuple[float, Interval]]
    majority: Mapping[int, tuple[float, Interval]]


def _curve(name: str, found: Tries) -> _Band:
    curves = (found.solved, found.majority)
    return _Band(
        name,
        *({k: _with_interval(curve[k], found.samples // k) for k in _shown(found.samples)} for curve in curves),
    )


def _with_interval(chances: Mapping[str, float], votes: int) -> tuple[float, Interval]:
    """Return the mean over problems with the interval of a share, each problem worth at most `votes` samples.

    Of 600 made-up evaluations each, of 50 or 200 problems x 8 samples, easy to hard, k of 1, 4, 8, it held the truth in
    92 to 98%; the percentile bootstrap over problems in 5 to 95%, for it is a point where all are solved, or none.
    """
    values = np.array(list(chances.values()))
    return float(values.mean()), share_interval(values, votes)


def _figure(
    place: int, task: str, curves: Sequence[_Band], order: Sequence[str], crossings: Sequence[Crossing]
) -> Figure:
    drawn = [
        PassCurve(
            curve.model,
            list(curve.solved),
            [mean for mean, _ in curve.solved.values()],
            ([i.low for _, i in curve.solved.values()], [i.high for _, i in curve.solved.values()]),
            [mean for mean, _ in curve.majority.values()],
        )
        for curve in curves
    ]
    told = "; ".join(
        f"{curve.model} "
        + ", ".join(f"{plain_score(mean, 'share')} within {k}" for k, (mean, _) in curve.solved.items())
        for curve in curves
    )
    crossover = (crossings[0].k, f"{crossings[0].model} crosses at k = {crossings[0].k}") if crossings else None
    draw = pass_curves(drawn, title=f"Solved within k tries on {task}", order=order, crossover=crossover)
    return Figure(f"pass-at-k-{place}", f"Problems of {task} solved within k samples: {told}.", draw)


def _table(title: str, what: str, bands: Mapping[str, Mapping[int, tuple[float, Interval]]]) -> Table:
    ks = sorted({k for band in bands.values() for k in band})
    rows = tuple((Cell(model), *(_cell(band.get(k)) for k in ks)) for model, band in bands.items())
    return Table(title, ("model", *(f"{what}@{k}" for k in ks)), rows)


def _cell(found: tuple[float, Interval] | None) -> Cell:
    if found is None:
        return Cell("-", style="dim")
    mean, interval = found
    return Cell(plain_score(mean, "share"), plain_interval(*interval, "share"))


def _data(curve: _Band, found: Tries) -> dict[str, Any]:
    return {
        "samples": found.samples,
        "problems": len(found.solved[1]),
        **{
            name: {str(k): {"mean": mean, "low": interval.low, "high": interval.high} for k, (mean, interval) in band}
            for name, band in (("pass", curve.solved.items()), ("maj", curve.majority.items()))
        },
    }
