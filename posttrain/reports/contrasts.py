"""What a comparison finds: paired differences with intervals, adjusted tests, a verdict in words for each pair.

Floor 5: pure; knows neither files nor tables. Evaluations that were not scored alike are refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from posttrain.errors import DataError
from posttrain.evals.samples import by_problem
from posttrain.evals.stats import Interval, holm, paired_difference, paired_p, smallest_detectable_difference

ALPHA = 0.05
ALIKE = {  # what must agree before scores are compared, and how a message calls it
    "task": "task",
    "task_version": "task version",
    "grader_version": "grader version",
    "strict_profile": "answer format",
    "num_samples": "samples of each problem",
    "sampling": "sampling",
}

Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model's evaluation as its stage left it."""

    name: str
    summary: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]

    def means(self) -> dict[str, float]:
        """Return each problem's mean score, in order of problem ids; samples without a score are left out."""
        scored = [sample for sample in self.samples if sample["score"] is not None]
        return {problem: float(np.mean(values)) for problem, values in by_problem(scored, "score").items()}


@dataclass(frozen=True, slots=True)
class Contrast:
    """One model against another on the same problems; differences are of strict accuracy."""

    reference: str
    difference: float
    interval: Interval  # 95%, not adjusted for further tests
    p_value: float
    adjusted_p: float  # Holm, over all tests of the comparison
    verdict: Verdict
    smallest_detectable: float  # the true difference that this many problems find 4 times in 5
    fixed: int  # problems that the reference got wrong (in most samples) and the model right
    regressed: int


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One row: the evaluation's own summary, and its contrasts where it has them."""

    name: str
    summary: Mapping[str, Any]
    against_baseline: Contrast | None
    against_previous: Contrast | None  # None where it would repeat a contrast with the baseline


@dataclass(frozen=True, slots=True)
class Comparison:
    """The models in the order given, compared with the baseline and each with the one before it."""

    baseline: str
    models: tuple[ModelResult, ...]
    tests: int  # that the p-values are adjusted for
    examples: tuple[Mapping[str, Any], ...]
    notices: tuple[str, ...]  # what a reader should know before believing the numbers

    def findings(self) -> Iterator[tuple[Verdict, str]]:
        """Yield a verdict and its sentence for each contrast: first those with the baseline, then the others."""
        for name in ("against_baseline", "against_previous"):
            for model in self.models:
                found: Contrast | None = getattr(model, name)
                if found is not None:
                    yield found.verdict, _sentence(model, found)

    def sentences(self) -> list[str]:
        """Return the findings in words."""
        return [sentence for _, sentence in self.findings()]


def compare_evaluations(evaluations: Sequence[Evaluation], baseline: str) -> Comparison:
    """Compare evaluations in order, each with the baseline and with the one before it; every test is Holm-adjusted."""
    check_alike(evaluations)
    named = {evaluation.name: evaluation for evaluation in evaluations}
    pairs = {(baseline, other.name) for other in evaluations if other.name != baseline}
    previous = {b.name: a.name for a, b in pairwise(evaluations) if baseline not in (a.name, b.name)}
    pairs |= {(before, name) for name, before in previous.items()}
    ordered = sorted(pairs)
    raw = [contrast(named[reference], named[model], tests=len(pairs)) for reference, model in ordered]
    adjusted = holm([item.p_value for item in raw])
    found = {
        pair: replace(item, adjusted_p=p, verdict=_verdict(item.difference, p))
        for pair, item, p in zip(ordered, raw, adjusted, strict=True)
    }
    models = tuple(
        ModelResult(
            evaluation.name,
            evaluation.summary,
            found.get((baseline, evaluation.name)),
            found.get((previous.get(evaluation.name, ""), evaluation.name)),
        )
        for evaluation in evaluations
    )
    examples = tuple(e for other in evaluations if other.name != baseline for e in changed(named[baseline], other))
    return Comparison(baseline, models, len(pairs), examples, _notices(named[baseline], evaluations))


def check_alike(evaluations: Sequence[Evaluation]) -> None:
    """Raise DataError unless all evaluations have the same task, grader, sampling and problems as the first."""
    first = evaluations[0]
    problems = set(first.means())
    for other in evaluations[1:]:
        faults = [
            f"{words} {_shown(first.summary.get(key))} vs {_shown(other.summary.get(key))}"
            for key, words in ALIKE.items()
            if first.summary.get(key) != other.summary.get(key)
        ]
        if (theirs := set(other.means())) != problems:
            faults.append(f"{len(problems)} vs {len(theirs)} problems, {len(problems & theirs)} shared")
        elif first.summary.get("data_fingerprint") != other.summary.get("data_fingerprint"):
            faults.append("the same problems with other gold answers")
        if faults:
            raise DataError(
                f"{first.name} and {other.name} were not scored alike: {'; '.join(faults)}. No paired test drawn",
                fix=f"evaluate {other.name} again with the task, data and sampling of {first.name}",
            )


def contrast(reference: Evaluation, model: Evaluation, *, tests: int = 1) -> Contrast:
    """Return the paired comparison of two evaluations of the same problems, one of `tests`, p not yet adjusted."""
    before, after = reference.means(), model.means()
    a, b = (np.array([means[problem] for problem in before]) for means in (before, after))
    paired = paired_difference(a, b, samples=int(model.summary["num_samples"]))
    p_value = paired_p(a, b)
    fixed, regressed = int(((a < 0.5) & (b >= 0.5)).sum()), int(((a >= 0.5) & (b < 0.5)).sum())
    return Contrast(
        reference=reference.name,
        difference=paired.mean,
        interval=paired.interval,
        p_value=p_value,
        adjusted_p=p_value,
        verdict=_verdict(paired.mean, p_value),
        smallest_detectable=smallest_detectable_difference(paired.std, len(a), tests=tests),
        fixed=fixed,
        regressed=regressed,
    )


def changed(reference: Evaluation, model: Evaluation, count: int = 2) -> list[dict[str, Any]]:
    """Return up to `count` fixed and `count` regressed problems, in order of problem ids, with both completions."""
    first = {s["problem_id"]: s for s in reference.samples if s["sample"] == 0 and s["strict"] is not None}
    second = {s["problem_id"]: s for s in model.samples if s["sample"] == 0 and s["strict"] is not None}
    examples = []
    for change, was_right in (("fixed", False), ("regressed", True)):
        ids = [i for i in sorted(first) if first[i]["strict"] is was_right and second[i]["strict"] is not was_right]
        examples += [
            {
                "model": model.name,
                "change": change,
                "problem_id": i,
                "prompt": first[i]["prompt"],
                "gold": first[i]["gold"],
                "before": first[i]["completion"],
                "after": second[i]["completion"],
            }
            for i in ids[:count]
        ]
    return examples


def _verdict(difference: float, p_value: float) -> Verdict:
    if p_value >= ALPHA or difference == 0:
        return "cannot tell"
    return "better" if difference > 0 else "worse"


def _notices(baseline: Evaluation, evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    asked = baseline.summary.get("template_hash")
    others = [other.name for other in evaluations if other.summary.get("template_hash") != asked]
    if not others:
        return ()
    return (
        f"{', '.join(others)}: the questions were put in another prompt style or chat template than {baseline.name}'s",
    )


def _sentence(model: ModelResult, found: Contrast) -> str:
    low, high = (f"{100 * end:+.1f}" for end in found.interval)
    words = {
        "better": f"is better than {found.reference}",
        "worse": f"is worse than {found.reference}",
        "cannot tell": f"cannot be told from {found.reference}",
    }[found.verdict]
    return (
        f"{model.name} {words}: {100 * found.difference:+.1f} points (95% CI {low} to {high}, {_p(found.adjusted_p)}), "
        f"{found.fixed} fixed, {found.regressed} lost{_doubt(model, found)}."
    )


def _doubt(model: ModelResult, found: Contrast) -> str:
    """What to add where a verdict is open, or where the interval seems to say something else."""
    excludes_zero = found.interval.low > 0 or found.interval.high < 0
    if found.verdict != "cannot tell":
        return "" if excludes_zero else "; the interval, an approximation, still holds 0"
    conflict = "; the interval leaves out 0, but is not adjusted for the other tests" if excludes_zero else ""
    detectable = f"{100 * found.smallest_detectable:.1f}"
    return f"{conflict}; {model.summary['problems']} problems show differences of {detectable} points or more"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
