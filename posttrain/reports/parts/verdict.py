"""The verdict: one sentence for each model and task, and the tables behind it.

Floor 5.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from posttrain.reports.contrasts import Comparison
from posttrain.reports.inputs import Inputs
from posttrain.reports.pages import score_table
from posttrain.reports.part import Finding, Part

NOTE = (
    "A difference is paired: of the same problems, answered by both models. Its interval is at 95% and by itself; a "
    "verdict is given only where the test, adjusted for every test on this page (Holm), passes at 5%. The smallest "
    "difference that is shown is the true one that a test of this size finds four times in five."
)


def verdict_part(inputs: Inputs, comparisons: Mapping[str, Comparison]) -> Part:
    """Return what became of each model against the baseline and against the model before it."""
    several = len(comparisons) > 1
    findings = [
        Finding(tone, f"{task}: {sentence}" if several else sentence)
        for task, comparison in comparisons.items()
        for tone, sentence in comparison.findings()
    ]
    findings += [Finding("warning", text) for comparison in comparisons.values() for text in comparison.notices]
    findings += [Finding("note", text) for text in _seeds(inputs)]
    return Part(
        key="verdict",
        title="Verdict",
        findings=tuple(findings),
        tables=tuple(score_table(comparison) for comparison in comparisons.values()),
        note=NOTE,
        data={
            "baseline": inputs.baseline,
            "tasks": {task: asdict(comparison) for task, comparison in comparisons.items()},
        },
    )


def _seeds(inputs: Inputs) -> Iterator[str]:
    """Say of how many seeds the trained models are."""
    trained = [model for model in inputs.models if model.courses]
    single = [model.name for model in trained if len(model.courses) == 1]
    if single:
        yield f"{', '.join(single)}: of a single seed; another trains another model, of which no interval speaks."
    for model in trained:
        if len(model.courses) > 1:
            seeds = ", ".join(str(course.seed) for course in model.courses)
            yield f"{model.name}: the seeds {seeds} together; the intervals are over problems, for these seeds."
