"""The report: its parts in the order in which they are read.

Floor 5: one visible list. A part that its runs cannot fill says so, and what would fill it.
"""

from collections.abc import Callable, Mapping

from posttrain.reports.contrasts import Comparison
from posttrain.reports.inputs import Inputs
from posttrain.reports.part import Part, Report
from posttrain.reports.parts.examples import examples_part
from posttrain.reports.parts.scores import scores_part
from posttrain.reports.parts.verdict import verdict_part

PARTS: tuple[Callable[[Inputs, Mapping[str, Comparison]], Part], ...] = (
    verdict_part,
    scores_part,
    examples_part,
)


def build_report(inputs: Inputs, comparisons: Mapping[str, Comparison]) -> Report:
    """Return the report of models on their tasks."""
    names = [model.name for model in inputs.models]
    counts = {task: comparison.models[0].summary["problems"] for task, comparison in comparisons.items()}
    problems = ", ".join(f"{count} prompts of {task}" for task, count in counts.items())
    return Report(
        title=f"{', '.join(names[:-1])} and {names[-1]}",
        subtitle=f"{problems}; compared with {inputs.baseline}",
        parts=tuple(part(inputs, comparisons) for part in PARTS),
    )
