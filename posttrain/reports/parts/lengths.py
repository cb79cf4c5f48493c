"""Length: what it has to do with the reward, whether models only got longer, and how much their samples still differ.

Floor 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.evals.bias import SMALL, UNIT, Slope, number_of_each, within_slopes
from posttrain.evals.diversity import Diversity, diversity, mean_diversity, mode_collapse
from posttrain.evals.length_slopes import LengthSlopes, OverallSlope, length_slopes
from posttrain.evals.samples import REWARD, REWARDS
from posttrain.evals.stats import Interval, mean_interval, paired_difference, share_interval
from posttrain.evals.tasks import GIVEN
from posttrain.evals.verdicts import only_longer
from posttrain.records import StopReason
from posttrain.reports.claims import Claim, adjust
from posttrain.reports.figures.lengths import Cloud, Lengths, length_densities, length_scatter
from posttrain.reports.inputs import Evaluation, Inputs
from posttrain.reports.numbers import plain_interval, plain_score, scale_of
from posttrain.reports.paired import Sample, problem_means, side_by_side
from posttrain.reports.part import Figure, Part, Tone
from posttrain.reports.tables import Cell, Table

KEY, TITLE = "lengths", "Length and diversity"
NOTE = (
    "Slopes are of the reward for 100 tokens more. Over all completions they mix what the reward likes with which "
    "prompts have long answers; among the answers to one prompt they do not. Longer but not better needs two tests: "
    "that completions grew, and that a gain of the score that would be worth having is ruled out. Similarity is of two "
    "answers to one prompt, by their runs of two words; it falls neither with length nor with the number of samples, "
    "as distinct n-grams do."
)
ABSENT = "No task here has sampled completions: `posttrain eval --task gsm8k`."
NONE = Cell("-", style="dim")
DIVERSITY = {  # measure: how a page calls it, and whether it is a share of completions
    "self_similarity": ("similarity", False),
    "distinct_1": ("distinct words", False),
    "distinct_2": ("of 2", False),
    "distinct_3": ("of 3", False),
    "duplicates": ("duplicates", True),
    "looping": ("loops", True),
    "length_spread": ("spread of lengths", False),
}


@dataclass(frozen=True, slots=True)
class Told:
    """What the completions of one model on one task say; arrays are of its scored samples, (N,)."""

    model: str
    samples: Sequence[Sample]
    rewards: np.ndarray
    lengths: np.ndarray  # tokens
    slopes: LengthSlopes
    diversity: Mapping[str, Diversity]  # by problem; none of single samples
    num_samples: int


def lengths_part(inputs: Inputs) -> Part:
    """Return slopes of reward on length, lengths of right and wrong answers, and diversity, by task and model."""
    tasks = {task: found for task in inputs.tasks if (found := sampled_evaluations(inputs, task))}
    if not tasks:
        return Part(KEY, TITLE, absent=ABSENT)
    claims: list[Claim] = []
    figures: list[Figure] = []
    tables: list[Table] = []
    data = {}
    for place, (task, evaluations) in enumerate(tasks.items(), 1):
        column = proxy_column(list(evaluations.values()))
        told = [read(evaluation, column) for evaluation in evaluations.values()]
        name = column.removeprefix(REWARDS)
        claims += _slope_claims(task, name, told)
        claims += _changes(task, evaluations, {each.model: each for each in told}, inputs.baseline)
        figures += _figures(place, task, name, evaluations, told, [model.name for model in inputs.models])
        tables += [_slope_table(task, name, told), _length_table(task, told), *_diversity_tables(task, told)]
        data[task] = {"reward": name, "models": {each.model: _data(each) for each in told}}
    tested = adjust(claims)
    return Part(
        KEY,
        TITLE,
        tested.findings,
        tuple(figures),
        tuple(tables),
        note=NOTE,
        data={"tasks": data, "claims": tested.data},
    )


def sampled_evaluations(inputs: Inputs, task: str) -> dict[str, Evaluation]:
    """Return the evaluations of a task whose completions were sampled, unlike choices, and differ in length."""
    found = {model.name: model.evaluations[task] for model in inputs.models if task in model.evaluations}
    sampled = all(evaluation.summary["kind"] not in GIVEN for evaluation in found.values())
    lengths = {sample["num_tokens"] for evaluation in found.values() for sample in evaluation.samples}
    return found if sampled and len(lengths) > 1 else {}


def proxy_column(evaluations: Sequence[Evaluation]) -> str:
    """Return the column of what training can raise: the first reward that every model has, else the task's score."""
    columns = [REWARD, *(column for column in evaluations[0].samples[0] if column.startswith(REWARDS))]
    return next((column for column in columns if all(_has(each, column) for each in evaluations)), "score")


def _has(evaluation: Evaluation, column: str) -> bool:
    return any(sample.get(column) is not None for sample in evaluation.samples)


def read(evaluation: Evaluation, column: str) -> Told:
    """Return what a model's completions say, with `column` as the reward."""
    samples = [sample for sample in evaluation.samples if sample.get(column) is not None]
    rewards = np.array([sample[column] for sample in samples], dtype=float)
    lengths = np.array([sample["num_tokens"] for sample in samples], dtype=float)
    slopes = length_slopes(rewards, lengths, _prompts(samples))
    return Told(
        evaluation.name,
        samples,
        rewards,
        lengths,
        slopes,
        _diversity(evaluation.samples),
        int(evaluation.summary["num_samples"]),
    )


def _prompts(samples: Sequence[Sample]) -> np.ndarray:
    return number_of_each([sample["problem_id"] for sample in samples])


def _diversity(samples: Sequence[Sample]) -> dict[str, Diversity]:
    """Return the diversity of each problem's completions; of several seeds, the mean of each seed's."""
    groups: dict[tuple[str, Any], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample["problem_id"], sample.get("seed")), []).append(sample)
    found: dict[str, list[Diversity]] = {}
    for (problem, _), group in groups.items():
        if len(group) > 1:
            texts, lengths = [sample["completion"] for sample in group], [sample["num_tokens"] for sample in group]
            found.setdefault(problem, []).append(diversity(texts, lengths))
    return {problem: Diversity(*np.mean(of_seeds, axis=0).tolist()) for problem, of_seeds in found.items()}


def _slope_claims(task: str, reward: str, told: Sequence[Told]) -> Iterator[Claim]:
    """Yield for each model that longer answers to one prompt have another reward, at equal grades if there are any."""
    for each in told:
        slope, alike = _slope_at_equal_grades(each, reward)
        if slope is None or abs(slope.standardised) < SMALL:
            continue
        yield Claim(
            "note",
            f"{task}: of two answers of {each.model} to one prompt{alike}, the longer one has the "
            f"{'higher' if slope.slope > 0 else 'lower'} {reward}: {slope.slope:+.3g} for {UNIT} tokens "
            f"(95% CI {slope.interval.low:+.3g} to {slope.interval.high:+.3g})",
            slope.p,
        )


def _slope_at_equal_grades(told: Told, reward: str) -> tuple[Slope | None, str]:
    grades = [sample.get("strict") for sample in told.samples]
    if reward == "score" or None in grades:
        return told.slopes.within, ""
    features = [told.lengths / UNIT, np.array(grades, dtype=float)]
    return within_slopes(told.rewards, features, _prompts(told.samples))[0], ", graded alike"


def _changes(
    task: str, evaluations: Mapping[str, Evaluation], told: Mapping[str, Told], baseline: str
) -> Iterator[Claim]:
    """Yield for each model that it only got longer than the baseline, and that its samples became more alike."""
    if baseline not in evaluations:
        return
    for name, after in evaluations.items():
        if name == baseline:
            continue
        before = evaluations[baseline]
        scores = side_by_side(before.means(), after.means())
        samples = int(after.summary["num_samples"]) if scale_of((before, after)) == "share" else None
        lengths = side_by_side(*(problem_means(each.samples, _tokens) for each in (before, after)))
        if len(scores[0]) and len(lengths[0]):
            claim = only_longer(scores, lengths, samples=samples, within=_slope_of_score(after))
            yield Claim("warning", f"{task}: {name} beside {baseline}: {claim.holds or claim.open}", claim.p)
        shared = sorted(told[baseline].diversity.keys() & told[name].diversity.keys())
        if shared and before.summary.get("sampling") == after.summary.get("sampling"):
            collapse = mode_collapse(
                *([told[model].diversity[problem] for problem in shared] for model in (baseline, name))
            )
            better = len(scores[0]) > 1 and paired_difference(*scores, samples=samples).interval.low > 0
            tone: Tone = "note" if better else "warning"  # answers that are right are alike
            yield Claim(tone, f"{task}: {name} beside {baseline}: {collapse.holds}", collapse.p)


def _slope_of_score(evaluation: Evaluation) -> Slope | None:
    samples = [sample for sample in evaluation.samples if sample["score"] is not None]
    scores = np.array([sample["score"] for sample in samples], dtype=float)
    lengths = np.array([sample["num_tokens"] for sample in samples], dtype=float)
    return within_slopes(scores, [lengths / UNIT], _prompts(samples))[0]


def _figures(
    place: int,
    task: str,
    reward: str,
    evaluations: Mapping[str, Evaluation],
    told: Sequence[Told],
    order: Sequence[str],
) -> Iterator[Figure]:
    clouds = [_cloud(each) for each in told]
    slopes = "; ".join(f"{cloud.model} {cloud.slope_text or 'no slope'}" for cloud in clouds)
    yield Figure(
        f"length-reward-{place}",
        f"{reward} over length of the completions on {task}, by model: {slopes}.",
        length_scatter(clouds, title=f"Length and {reward} on {task}", subtitle=f"{reward} over tokens.", order=order),
    )
    graded = [_lengths(each) for each in told]
    if any(row.right or row.wrong for row in graded):
        means = "; ".join(
            f"{row.model} {_mean_or_none(row.right)} tokens where right, {_mean_or_none(row.wrong)} where wrong"
            for row in graded
        )
        draw = length_densities(
            graded, title=f"Length of right and wrong answers on {task}", limit=_limit(list(evaluations.values()))
        )
        yield Figure(f"length-grades-{place}", f"Lengths of completions on {task}, mean: {means}.", draw)


def _cloud(told: Told) -> Cloud:
    overall = told.slopes.least_squares
    if overall is None:
        return Cloud(told.model, told.lengths.tolist(), told.rewards.tolist())
    text = f"{overall.slope:+.3g} for {UNIT} tokens"
    return Cloud(told.model, told.lengths.tolist(), told.rewards.tolist(), overall.slope, text)


def _lengths(told: Told) -> Lengths:
    of_grade = {
        grade: [float(sample["num_tokens"]) for sample in told.samples if sample.get("strict") is grade]
        for grade in (True, False)
    }
    return Lengths(told.model, of_grade[True], of_grade[False])


def _limit(evaluations: Sequence[Evaluation]) -> tuple[str, float] | None:
    """Return the token limit, where all models had one and some completion reached it."""
    limits = {(each.summary.get("sampling") or {}).get("max_completion_length") for each in evaluations}
    reached = any(_truncated(sample) for each in evaluations for sample in each.samples)
    limit = limits.pop()
    return (f"cut off at {limit}", float(limit)) if reached and not limits and limit is not None else None


def _tokens(sample: Sample) -> float:
    return float(sample["num_tokens"])


def _truncated(sample: Sample) -> bool:
    return bool(sample["stop_reason"] == StopReason.LENGTH)


def _slope_table(task: str, reward: str, told: Sequence[Told]) -> Table:
    rows = tuple((Cell(each.model), *(_slope_cell(slope) for slope in each.slopes)) for each in told)
    return Table(
        f"Slope of {reward} for {UNIT} tokens more, on {task}, with 95% intervals",
        ("model", "least squares", "Theil-Sen", "within prompts"),
        rows,
        "intervals over prompts: of Theil-Sen's slope by the bootstrap, of the others by the jackknife",
    )


def _slope_cell(slope: OverallSlope | Slope | None) -> Cell:
    if slope is None:
        return NONE
    low, high = slope.interval
    return Cell(f"{slope.slope:+.3g}", f"{low:+.3g} to {high:+.3g}")


def _length_table(task: str, told: Sequence[Told]) -> Table:
    rows = tuple(
        (
            Cell(each.model),
            _number_cell(*_mean_length(each)),
            *(Cell(_mean_or_none(values)) for values in (_lengths(each).right, _lengths(each).wrong)),
            _share_cell(*_share_truncated(each)),
        )
        for each in told
    )
    return Table(f"Tokens of a completion on {task}", ("model", "mean", "of right", "of wrong", "cut off"), rows)


def _mean_length(told: Told) -> tuple[float, Interval]:
    means = np.array(list(problem_means(told.samples, _tokens).values()))
    return float(means.mean()), mean_interval(means[:, None])


def _share_truncated(told: Told) -> tuple[float, Interval]:
    means = np.array(list(problem_means(told.samples, _truncated).values()))
    return float(means.mean()), share_interval(means, told.num_samples)


def _mean_or_none(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3g}" if len(values) else "-"


def _diversity_tables(task: str, told: Sequence[Told]) -> Iterator[Table]:
    several = [each for each in told if each.diversity]
    if not several:
        return
    rows = []
    for each in several:
        means = mean_diversity(list(each.diversity.values()), each.num_samples)
        rows.append(
            (
                Cell(each.model),
                *((_share_cell if share else _number_cell)(*means[name]) for name, (_, share) in DIVERSITY.items()),
            )
        )
    yield Table(
        f"Diversity of the answers to one prompt, on {task}",
        ("model", *(words for words, _ in DIVERSITY.values())),
        tuple(rows),
        f"{several[0].num_samples} samples of each; of 2, of 3: different runs of so many words; lengths in tokens",
    )


def _number_cell(mean: float, interval: Interval) -> Cell:
    return Cell(f"{mean:.3g}", f"{interval.low:.3g} to {interval.high:.3g}" if np.isfinite(interval.low) else "")


def _share_cell(mean: float, interval: Interval) -> Cell:
    return Cell(plain_score(mean, "share"), plain_interval(*interval, "share"))


def _data(told: Told) -> dict[str, Any]:
    measured = {"mean_length": _mean_length(told), "cut_off": _share_truncated(told)}
    if told.diversity:
        measured |= mean_diversity(list(told.diversity.values()), told.num_samples)
    return {
        "slopes": {name: _slope_data(slope) for name, slope in told.slopes._asdict().items()},
        **{name: {"mean": mean, **_ends(interval)} for name, (mean, interval) in measured.items()},
    }


def _slope_data(slope: OverallSlope | Slope | None) -> dict[str, Any] | None:
    return None if slope is None else {"slope": slope.slope, **_ends(slope.interval)}


def _ends(interval: Interval) -> dict[str, float | None]:
    return {name: end if np.isfinite(end) else None for name, end in interval._asdict().items()}
