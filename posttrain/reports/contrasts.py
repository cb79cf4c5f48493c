"""What a comparison finds: paired differences with intervals, adjusted tests, a verdict in words for each pair.

Floor 5: pure; knows neither files nor tables. Evaluations that were not scored alike are refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from posttrain.errors import DataError
from posttrain.evals.stats import Interval, holm, paired_difference, paired_p, smallest_detectable_difference
from posttrain.evals.verdicts import Verdict, verdict
from posttrain.reports.inputs import Evaluation, Inputs, Model
from posttrain.reports.numbers import Scale, plain_difference, plain_p, scale_of

ALIKE = {  # what must agree before scores are compared, and how a message calls it
    "task": "task",
    "task_version": "task version",
    "grader_version": "grader version",
    "strict_profile": "answer format",
    "num_samples": "samples of each problem",
    "sampling": "sampling",
    "scorer": "scorer",
}


@dataclass(frozen=True, slots=True)
class Contrast:
    """One model against another on the same problems; differences are of the task's score."""

    reference: str
    difference: float
    interval: Interval  # 95%, not adjusted for further tests
    p_value: float
    adjusted_p: float  # Holm, over all tests of the comparison
    verdict: Verdict
    smallest_detectable: float  # the true difference that this many problems find 4 times in 5
    fixed: int  # problems that the reference got wrong (in most samples) and the model right; of numbers, that rose
    regressed: int


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One row: the evaluation's own summary, and its contrasts where it has them."""

    name: str
    summary: Mapping[str, Any]
    against_baseline: Contrast | None
    against_start: Contrast | None  # what it was trained from, else the one before; None where that is the baseline


@dataclass(frozen=True, slots=True)
class Comparison:
    """The models of one task in the order given, compared with the baseline and with what each was trained from."""

    task: str
    scale: Scale
    baseline: str
    models: tuple[ModelResult, ...]
    tests: int  # that the p-values are adjusted for: those of all tasks
    notices: tuple[str, ...]  # what a reader should know before believing the numbers

    def findings(self) -> Iterator[tuple[Verdict, str]]:
        """Yield a verdict and its sentence for each contrast: first those with the baseline, then the others."""
        for name in ("against_baseline", "against_start"):
            for model in self.models:
                found: Contrast | None = getattr(model, name)
                if found is not None:
                    yield found.verdict, self._sentence(model, found)

    def sentences(self) -> list[str]:
        """Return the findings in words."""
        return [sentence for _, sentence in self.findings()]

    def _sentence(self, model: ModelResult, found: Contrast) -> str:
        words = {
            "better": f"is better than {found.reference}",
            "worse": f"is worse than {found.reference}",
            "cannot tell": f"cannot be told from {found.reference}",
        }[found.verdict]
        moved = "fixed", "lost"
        if self.scale == "number":
            moved = "prompts up", "down"
        return (
            f"{model.name} {words}: {plain_difference(found.difference, found.interval, self.scale)}, "
            f"{plain_p(found.adjusted_p)}), {found.fixed} {moved[0]}, {found.regressed} {moved[1]}"
            f"{self._doubt(model, found)}."
        )

    def _doubt(self, model: ModelResult, found: Contrast) -> str:
        """What to add where a verdict is open, or where the interval seems to say something else."""
        excludes_zero = found.interval.low > 0 or found.interval.high < 0
        if found.verdict != "cannot tell":
            return "" if excludes_zero else "; the interval, an approximation, still holds 0"
        conflict = "; the interval leaves out 0, but is not adjusted for the other tests" if excludes_zero else ""
        size = found.smallest_detectable
        detectable = f"{100 * size:.1f} points" if self.scale == "share" else f"{size:.3g}"
        problems = "problems" if self.scale == "share" else "prompts"
        return f"{conflict}; {model.summary['problems']} {problems} show differences of {detectable} or more"


def compare_tasks(inputs: Inputs, *, allow_mismatch: bool = False) -> dict[str, Comparison]:
    """Return the comparison of each task, by its label.

    Raises DataError where a model shares no task with the baseline, or was not scored like it; with `allow_mismatch`
    no test is drawn for that model, and a notice says why.
    """
    baseline = inputs.model(inputs.baseline)
    for model in inputs.models:
        if not set(model.evaluations) & set(baseline.evaluations):
            raise _no_common_task(baseline, model)
    groups = {
        task: [model.evaluations[task] for model in inputs.models if task in model.evaluations] for task in inputs.tasks
    }
    starts = {model.name: model.start for model in inputs.models if model.start is not None}
    return compare_groups(groups, inputs.baseline, starts, allow_mismatch=allow_mismatch)


def compare_evaluations(evaluations: Sequence[Evaluation], baseline: str) -> Comparison:
    """Compare evaluations of one task; raises as `compare_tasks`."""
    (found,) = compare_groups({evaluations[0].task: evaluations}, baseline).values()
    return found


def compare_groups(
    groups: Mapping[str, Sequence[Evaluation]],
    baseline: str,
    starts: Mapping[str, str] | None = None,
    *,
    allow_mismatch: bool = False,
) -> dict[str, Comparison]:
    """Compare the evaluations of each task; every test of all tasks together is Holm-adjusted.

    Each model is compared with the baseline and with the one that `starts` names, by default the one before it.
    """
    faults = {task: _faults(group, baseline) for task, group in groups.items()}
    if not allow_mismatch:
        for name, words in (fault for found in faults.values() for fault in found.items()):
            raise _not_alike(baseline, name, words)
    pairs = {task: _pairs(group, baseline, faults[task], starts or {}) for task, group in groups.items()}
    places = [(task, pair) for task, found in pairs.items() for pair in found]
    raw = [contrast(*(_named(groups[task], name) for name in pair), tests=len(places)) for task, pair in places]
    adjusted = holm([item.p_value for item in raw])
    found = {
        place: replace(item, adjusted_p=p, verdict=verdict(item.difference, p))
        for place, item, p in zip(places, raw, adjusted, strict=True)
    }
    return {
        task: Comparison(
            task,
            scale_of(group),
            baseline,
            tuple(_results(group, pairs[task], {pair: found[task, pair] for pair in pairs[task]})),
            len(places),
            (*_mismatches(baseline, faults[task]), *_notices(group, baseline)),
        )
        for task, group in groups.items()
    }


def _pairs(
    evaluations: Sequence[Evaluation], baseline: str, unlike: Mapping[str, str], starts: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """Return which are compared, reference and model, and the field of the model's result that this fills."""
    names = [evaluation.name for evaluation in evaluations if evaluation.name not in unlike]
    if baseline not in names:
        return {}
    pairs = {(baseline, name): "against_baseline" for name in names if name != baseline}
    for before, name in zip([None, *names], names, strict=False):
        start = starts.get(name, before)
        if start in names and baseline not in (start, name) and start != name:
            pairs[start, name] = "against_start"
    return pairs


def _results(
    evaluations: Sequence[Evaluation], pairs: Mapping[tuple[str, str], str], found: Mapping[tuple[str, str], Contrast]
) -> Iterator[ModelResult]:
    for evaluation in evaluations:
        own = {place: found[pair] for pair, place in pairs.items() if pair[1] == evaluation.name}
        yield ModelResult(evaluation.name, evaluation.summary, own.get("against_baseline"), own.get("against_start"))


def _named(evaluations: Sequence[Evaluation], name: str) -> Evaluation:
    return next(evaluation for evaluation in evaluations if evaluation.name == name)


def _faults(evaluations: Sequence[Evaluation], baseline: str) -> dict[str, str]:
    """Return, of each model that was not scored like the baseline, in what it differs."""
    first = next((evaluation for evaluation in evaluations if evaluation.name == baseline), None)
    if first is None:
        return {}
    found = {other.name: _differences(first, other) for other in evaluations if other is not first}
    return {name: "; ".join(words) for name, words in found.items() if words}


def _differences(first: Evaluation, other: Evaluation) -> list[str]:
    words = [
        f"{called} {' vs '.join(_shown_apart(first.summary.get(key), other.summary.get(key)))}"
        for key, called in ALIKE.items()
        if first.summary.get(key) != other.summary.get(key)
    ]
    problems, theirs = set(first.means()), set(other.means())
    if theirs != problems:
        words.append(f"{len(problems)} vs {len(theirs)} problems, {len(problems & theirs)} shared")
    elif first.summary.get("data_fingerprint") != other.summary.get("data_fingerprint"):
        words.append("the same problems with other gold answers")
    return words


def _not_alike(baseline: str, name: str, words: str) -> DataError:
    fix = f"evaluate {name} again with the task, data, sampling and rewards of {baseline}"
    if "grader version" in words:
        fix = f"posttrain rescore grades the samples of {name} again; or {fix}"
    return DataError(
        f"{baseline} and {name} were not scored alike: {words}. No paired test drawn",
        fix=f"{fix}; or --allow-mismatch, which the report says",
    )


def _no_common_task(baseline: Model, model: Model) -> DataError:
    theirs, ours = ", ".join(model.evaluations), ", ".join(baseline.evaluations)
    return DataError(
        f"{model.name} was evaluated on {theirs}, and {baseline.name} on {ours}: they share no task",
        fix=f"posttrain eval --task {next(iter(baseline.evaluations.values())).task}",
    )


def _mismatches(baseline: str, faults: Mapping[str, str]) -> Iterator[str]:
    for name, words in faults.items():
        yield f"{name}: no test drawn, not scored like {baseline}: {words}"


def contrast(reference: Evaluation, model: Evaluation, *, tests: int = 1) -> Contrast:
    """Return the paired comparison of two evaluations of the same problems, one of `tests`, p not yet adjusted."""
    before, after = reference.means(), model.means()
    a, b = (np.array([means[problem] for problem in before]) for means in (before, after))
    scale = scale_of((reference, model))
    samples = None if scale == "number" else max(1, len(model.samples) // max(1, len(after)))
    paired = paired_difference(a, b, samples=samples)
    p_value = paired_p(a, b)
    line = 0.5 if scale == "share" else None
    fixed, regressed = _moved(a, b, line), _moved(b, a, line)
    return Contrast(
        reference=reference.name,
        difference=paired.mean,
        interval=paired.interval,
        p_value=p_value,
        adjusted_p=p_value,
        verdict=verdict(paired.mean, p_value),
        smallest_detectable=smallest_detectable_difference(paired.std, len(a), tests=tests),
        fixed=fixed,
        regressed=regressed,
    )


def _moved(a: np.ndarray, b: np.ndarray, line: float | None) -> int:
    """Return how many values rose from below the line to it; without one, how many rose."""
    return int((b > a).sum() if line is None else ((a < line) & (b >= line)).sum())


def _notices(evaluations: Sequence[Evaluation], baseline: str) -> Iterator[str]:
    asked = next((e.summary.get("template_hash") for e in evaluations if e.name == baseline), None)
    others = [other.name for other in evaluations if asked and other.summary.get("template_hash") != asked]
    if others:
        yield (
            f"{', '.join(others)}: the questions were put in another prompt style or chat template than {baseline}'s"
        )


def _shown_apart(one: Any, other: Any) -> tuple[str, str]:
    """Return two values in words, of two objects only the keys in which they differ."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return _shown(one), _shown(other)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    first, second = ({key: value[key] for key in keys if key in value} for value in (one, other))
    return _shown(first), _shown(second)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return str(value)
