"""Completions to read: what changed between the baseline and each model, and the ones that tell most.

Floor 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.data.refusals import is_refusal
from posttrain.evals.samples import REWARD
from posttrain.evals.stats import mcnemar_p
from posttrain.reports.contrasts import Comparison
from posttrain.reports.inputs import Evaluation, Inputs
from posttrain.reports.numbers import plain_p
from posttrain.reports.part import Example, Part
from posttrain.reports.tables import Cell, Table
from posttrain.seeds import derive_seed

Sample = Mapping[str, Any]

NOTE = (
    "Fixed and lost are counted over the first sample of each problem, with McNemar's exact test, not adjusted. The "
    "completions below were chosen by rule, not by hand; the last of each model is drawn at random."
)


def examples_part(inputs: Inputs, comparisons: Mapping[str, Comparison]) -> Part:
    """Return tables of what changed, and up to eight completions of each model beside the baseline's."""
    baseline = inputs.model(inputs.baseline)
    tables, examples, data = [], [], {}
    for task, comparison in comparisons.items():
        if task not in baseline.evaluations:
            continue
        before = first_samples(baseline.evaluations[task])
        others = [inputs.model(m.name).evaluations[task] for m in comparison.models if m.name != inputs.baseline]
        others = [other for other in others if first_samples(other).keys() == before.keys()]
        if comparison.scale == "share" and others:
            counts = {other.name: _counts(before, first_samples(other)) for other in others}
            tables.append(_table(task, inputs.baseline, counts))
            data[task] = counts
        for other in others:
            examples += list(_examples(task, inputs.baseline, before, other))
    if not examples:
        absent = "No two models answered the same problems: `posttrain compare` takes evaluations of one task."
        return Part("examples", "Completions", absent=absent)
    return Part("examples", "Completions", tables=tuple(tables), examples=tuple(examples), note=NOTE, data=data)


def first_samples(evaluation: Evaluation) -> dict[str, Sample]:
    """Return the first sample of each problem that has a score, in order of problem ids."""
    scored = [sample for sample in evaluation.samples if sample["score"] is not None]
    firsts = sorted(scored, key=lambda sample: (sample["problem_id"], -sample["sample"]))
    return {sample["problem_id"]: sample for sample in firsts}


def _counts(before: Mapping[str, Sample], after: Mapping[str, Sample]) -> dict[str, Any]:
    pairs = [(before[i]["score"] > 0.5, after[i]["score"] > 0.5) for i in before]
    fixed, lost = pairs.count((False, True)), pairs.count((True, False))
    return {
        "both_right": pairs.count((True, True)),
        "fixed": fixed,
        "lost": lost,
        "both_wrong": pairs.count((False, False)),
        "mcnemar_p": mcnemar_p(fixed, lost),
    }


def _table(task: str, baseline: str, counts: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            Cell(name),
            *(Cell(str(found[key])) for key in ("both_right", "fixed", "lost", "both_wrong")),
            Cell(plain_p(found["mcnemar_p"]).removeprefix("p = ").removeprefix("p ")),
        )
        for name, found in counts.items()
    )
    headers = ("model", "both right", "fixed", "lost", "both wrong", "McNemar p")
    return Table(f"Problems of {task} beside {baseline}", headers, rows)


def _examples(task: str, baseline: str, before: Mapping[str, Sample], other: Evaluation) -> Iterator[Example]:
    """Yield completions of a model, each chosen by one rule; one that two rules choose comes once."""
    after = first_samples(other)
    told: set[str] = set()
    for mark, place in _chosen(before, after, other.name):
        if place in told:
            continue
        told.add(place)
        yield _example(task, baseline, other.name, mark, before[place], after[place])


def _chosen(before: Mapping[str, Sample], after: Mapping[str, Sample], name: str) -> Iterator[tuple[str, str]]:
    """Yield why a problem is shown, and which."""
    gains = {i: after[i]["score"] - before[i]["score"] for i in before}
    largest, smallest = max(gains, key=lambda i: gains[i]), min(gains, key=lambda i: gains[i])
    if gains[largest] > 0:
        yield "largest gain", largest
    if gains[smallest] < 0:
        yield "largest loss", smallest
    both = [i for i in before if before[i]["score"] == after[i]["score"] == 0]
    if both:
        yield "both wrong", both[0]
    paid = {i: sample[REWARD] for i, sample in after.items() if sample.get(REWARD) is not None}
    unearned = [i for i in paid if after[i]["score"] <= 0]
    if unearned:
        yield "highest reward with nothing right", max(unearned, key=lambda i: paid[i])
    yield "longest", max(after, key=lambda i: after[i]["num_tokens"])
    refused = [i for i, sample in after.items() if is_refusal(sample["completion"])]
    if refused:
        yield "refusal", refused[0]
    ids = list(after)
    yield "drawn at random", ids[derive_seed(0, "example", name) % len(ids)]


def _example(task: str, baseline: str, name: str, mark: str, before: Sample, after: Sample) -> Example:
    texts: Sequence[tuple[str, str | None]] = (
        ("prompt", after["prompt"]),
        ("gold", after.get("gold")),
        (baseline, before["completion"]),
        (name, after["completion"]),
    )
    marks = [mark, *(f"{who}: {_outcome(sample)}" for who, sample in ((baseline, before), (name, after)))]
    shown = tuple((label, text.strip()) for label, text in texts if text is not None)
    return Example(f"{name} on {task}: {mark}", shown, tuple(marks[1:]))


def _outcome(sample: Sample) -> str:
    reward = f", reward {sample[REWARD]:.3g}" if sample.get(REWARD) is not None else ""
    score = f"score {sample['score']:.3g}, " if sample["category"] == "scored" else ""
    return f"{score}{sample['category'].replace('_', ' ')}, {sample['num_tokens']} tokens{reward}"
