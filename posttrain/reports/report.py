"""The report: its parts in the order in which they are read.

Floor 5: one visible list. A part that its runs cannot fill says so, and what would fill it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from posttrain.reports.contrasts import Comparison
from posttrain.reports.inputs import Inputs
from posttrain.reports.part import Finding, Part, Report
from posttrain.reports.parts.calibration import calibration_part
from posttrain.reports.parts.cost import cost_part
from posttrain.reports.parts.course import course_part
from posttrain.reports.parts.examples import examples_part
from posttrain.reports.parts.formats import formats_part
from posttrain.reports.parts.frontier import frontier_part
from posttrain.reports.parts.lengths import lengths_part
from posttrain.reports.parts.pass_at_k import pass_at_k_part
from posttrain.reports.parts.provenance import provenance_part
from posttrain.reports.parts.scores import scores_part
from posttrain.reports.parts.tasks import tasks_part
from posttrain.reports.parts.verdict import verdict_part
from posttrain.reports.parts.win_rates import win_rates_part

Comparisons = Mapping[str, Comparison]

PARTS: tuple[Callable[[Inputs, Comparisons], Part], ...] = (
    verdict_part,
    scores_part,
    tasks_part,
    lambda inputs, _: course_part(inputs),
    lambda inputs, _: frontier_part(inputs),
    lambda inputs, _: lengths_part(inputs),
    lambda inputs, _: pass_at_k_part(inputs),
    lambda inputs, _: formats_part(inputs),
    lambda inputs, _: calibration_part(inputs),
    win_rates_part,
    examples_part,
    lambda inputs, _: cost_part(inputs),
    lambda inputs, _: provenance_part(inputs),
)


def build_report(inputs: Inputs, comparisons: Comparisons) -> Report:
    """Return the report of models on their tasks; its verdict repeats what any part warns of."""
    names = [model.name for model in inputs.models]
    counts = {task: comparison.models[0].summary["problems"] for task, comparison in comparisons.items()}
    problems = ", ".join(f"{count} prompts of {task}" for task, count in counts.items())
    verdict, *others = (part(inputs, comparisons) for part in PARTS)
    warnings = [finding for part in others for finding in part.findings if finding.tone == "warning"]
    return Report(
        title=f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0],
        subtitle=f"{problems}; compared with {inputs.baseline}",
        parts=(replace(verdict, findings=_before_notes(verdict.findings, warnings)), *others),
    )


def _before_notes(findings: Sequence[Finding], warnings: Sequence[Finding]) -> tuple[Finding, ...]:
    verdicts = [finding for finding in findings if finding.tone != "note"]
    notes = [finding for finding in findings if finding.tone == "note"]
    return (*verdicts, *dict.fromkeys(warnings), *notes)
