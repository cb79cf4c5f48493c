"""Whether the answer's form or the answer changed: format kept and right, under strict and lenient grading.

Floor 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.evals.samples import SUBSETS
from posttrain.evals.stats import Interval, paired_difference, paired_p, share_interval
from posttrain.reports.claims import Claim, adjust
from posttrain.reports.figures.shares import FormatCounts, format_matrix, outcome_bars
from posttrain.reports.inputs import Evaluation, Inputs
from posttrain.reports.numbers import Scale, plain_difference, plain_interval, plain_score
from posttrain.reports.pages import OUTCOMES
from posttrain.reports.paired import Sample, problem_means, side_by_side
from posttrain.reports.part import Figure, Part, Tone
from posttrain.reports.tables import Cell, Table

KEY, TITLE = "formats", "Format and correctness"
NOTE = (
    "Strict grading accepts an answer in the one form that was asked for. Lenient grading looks for it anywhere, and "
    "also counts every answer that is right under strict grading. A gain of strict accuracy without one of lenient "
    "accuracy is one of form. An answer in the form counts as kept, right or wrong."
)
ABSENT = "No task here is graded against right answers: `posttrain eval --task gsm8k`."
SHARE: Scale = "share"
MEASURES = {  # name: what it is of a sample
    "kept": lambda sample: float(sample["extracted"] is not None),
    "strict": lambda sample: float(sample["strict"]),
    "lenient": lambda sample: float(sample["lenient"]),
}


def formats_part(inputs: Inputs) -> Part:
    """Return how often each model kept the form and was right, and what changed against the baseline."""
    graded = {
        task: found
        for task in inputs.tasks
        if (found := {m.name: m.evaluations[task] for m in inputs.models if is_graded(m.evaluations.get(task))})
    }
    if not graded:
        return Part(KEY, TITLE, absent=ABSENT)
    tested = adjust(
        [claim for task, evaluations in graded.items() for claim in _claims(task, evaluations, inputs.baseline)]
    )
    figures: list[Figure] = []
    tables: list[Table] = []
    data = {}
    for place, (task, evaluations) in enumerate(graded.items(), 1):
        counts = {name: format_counts(evaluation) for name, evaluation in evaluations.items()}
        figures += _figures(place, task, counts, evaluations)
        tables += [_table(task, evaluations), *_subset_tables(task, evaluations)]
        data[task] = {name: _data(counts[name], evaluation) for name, evaluation in evaluations.items()}
    return Part(
        KEY,
        TITLE,
        tested.findings,
        tuple(figures),
        tuple(tables),
        note=NOTE,
        data={"tasks": data, "claims": tested.data},
    )


def is_graded(evaluation: Evaluation | None) -> bool:
    """Whether samples were graded strictly and leniently against a right answer."""
    return evaluation is not None and any(sample.get("strict") is not None for sample in evaluation.samples)


def graded_samples(evaluation: Evaluation) -> list[Sample]:
    """Return the samples with a usable right answer."""
    return [sample for sample in evaluation.samples if sample["strict"] is not None]


def format_counts(evaluation: Evaluation) -> FormatCounts:
    """Return the completions by whether they kept the form and whether they are right in any form."""
    pairs = [(sample["extracted"] is not None, bool(sample["lenient"])) for sample in graded_samples(evaluation)]
    return FormatCounts(
        evaluation.name,
        kept_right=pairs.count((True, True)),
        kept_wrong=pairs.count((True, False)),
        broken_right=pairs.count((False, True)),
        broken_wrong=pairs.count((False, False)),
    )


def _means(evaluation: Evaluation, measure: str) -> dict[str, float]:
    return problem_means(graded_samples(evaluation), MEASURES[measure])


def _claims(task: str, evaluations: Mapping[str, Evaluation], baseline: str) -> Iterator[Claim]:
    if baseline not in evaluations:
        return
    before = evaluations[baseline]
    for name, after in evaluations.items():
        if name == baseline:
            continue
        for measure, more, fewer in (
            ("kept", "keeps the form more often", "keeps the form less often"),
            ("lenient", "is right in any form more often", "is right in any form less often"),
        ):
            a, b = side_by_side(_means(before, measure), _means(after, measure))
            if not len(a):
                continue
            found = paired_difference(a, b, samples=int(after.summary["num_samples"]))
            words = more if found.mean > 0 else fewer
            tone: Tone = "note" if measure == "kept" else "better" if found.mean > 0 else "worse"
            difference = plain_difference(found.mean, found.interval, SHARE)
            yield Claim(tone, f"{task}: {name} {words} than {baseline}: {difference})", paired_p(a, b))


def _figures(
    place: int, task: str, counts: Mapping[str, FormatCounts], evaluations: Mapping[str, Evaluation]
) -> Iterator[Figure]:
    told = "; ".join(
        f"{name} kept and right {found.kept_right}, kept and wrong {found.kept_wrong}, broken and right "
        f"{found.broken_right}, broken and wrong {found.broken_wrong}"
        for name, found in counts.items()
    )
    yield Figure(
        f"format-{place}",
        f"Completions on {task} by format and correctness in any form: {told}.",
        format_matrix(list(counts.values()), title=f"Format and correctness on {task}", subtitle="right in any form"),
    )
    outcomes = _outcomes(evaluations)
    shares = "; ".join(
        f"{name} {', '.join(f'{outcome} {plain_score(share, SHARE)}' for outcome, share in found.items())}"
        for name, found in outcomes
    )
    yield Figure(
        f"outcomes-{place}",
        f"How the samples on {task} ended, under strict grading: {shares}.",
        outcome_bars(outcomes, title=f"How the samples on {task} ended", subtitle="under strict grading"),
    )


def _outcomes(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, dict[str, float]]]:
    """Return each model's shares of the outcomes that any of them has, by the words of a page."""
    categories = {name: evaluation.summary["categories"] for name, evaluation in evaluations.items()}
    occurring = {
        category: words
        for category, (words, _) in OUTCOMES.items()
        if any(shares.get(category) for shares in categories.values())
    }
    return [
        (name, {words: shares.get(category, 0.0) for category, words in occurring.items()})
        for name, shares in categories.items()
    ]


def _table(task: str, evaluations: Mapping[str, Evaluation]) -> Table:
    rows = tuple(
        (Cell(name), *(_share_cell(evaluation, measure) for measure in MEASURES), _gap_cell(evaluation))
        for name, evaluation in evaluations.items()
    )
    headers = ("model", "form kept", "right, strict", "right, lenient", "right in another form")
    return Table(f"Form and answers on {task}, with 95% intervals", headers, rows)


def _share_cell(evaluation: Evaluation, measure: str) -> Cell:
    mean, interval = _share(evaluation, measure)
    return Cell(plain_score(mean, SHARE), plain_interval(*interval, SHARE))


def _share(evaluation: Evaluation, measure: str) -> tuple[float, Interval]:
    means = np.array(list(_means(evaluation, measure).values()))
    return float(means.mean()), share_interval(means, int(evaluation.summary["num_samples"]))


def _gap_cell(evaluation: Evaluation) -> Cell:
    gap = _share(evaluation, "lenient")[0] - _share(evaluation, "strict")[0]
    return Cell(plain_score(gap, SHARE))


def _subset_tables(task: str, evaluations: Mapping[str, Evaluation]) -> Iterator[Table]:
    for column in SUBSETS:
        groups = sorted({str(s[column]) for e in evaluations.values() for s in graded_samples(e) if s.get(column)})
        if not groups:
            continue
        rows = tuple(
            (Cell(group), *(_subset_cell(evaluation, column, group) for evaluation in evaluations.values()))
            for group in groups
        )
        yield Table(
            f"Right on {task} by {column}, strict",
            (column, *evaluations),
            rows,
            "No difference between subsets is tested.",
        )


def _subset_cell(evaluation: Evaluation, column: str, group: str) -> Cell:
    samples = [sample for sample in graded_samples(evaluation) if sample.get(column) == group]
    strict, lenient = (_mean_share(samples, grade) for grade in ("strict", "lenient"))
    return Cell(strict, f"lenient {lenient}, n = {len(samples)}" if samples else "")


def _mean_share(samples: Sequence[Sample], grade: str) -> str:
    return plain_score(float(np.mean([sample[grade] for sample in samples])) if samples else None, SHARE)


def _data(counts: FormatCounts, evaluation: Evaluation) -> dict[str, Any]:
    shares = {}
    for measure in MEASURES:
        mean, interval = _share(evaluation, measure)
        shares[measure] = {"mean": mean, "low": interval.low, "high": interval.high}
    return {
        "kept_right": counts.kept_right,
        "kept_wrong": counts.kept_wrong,
        "broken_right": counts.broken_right,
        "broken_wrong": counts.broken_wrong,
        **shares,
        "categories": dict(evaluation.summary["categories"]),
    }
