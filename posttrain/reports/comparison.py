"""Compare finished evaluations: read their directories, write the report beside them, show it.

Floor 5: only reads what the stages left. The statistics are in `contrasts.py`, the report's parts in `parts/`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from posttrain.errors import ConfigError
from posttrain.reports.contrasts import Comparison, compare_tasks
from posttrain.reports.export import write_report
from posttrain.reports.inputs import read_inputs
from posttrain.reports.pages import print_comparison
from posttrain.reports.report import build_report
from posttrain.runs import durable
from posttrain.runs.directory import StageRun
from posttrain.settings import CompareSettings

COMPARISON_FILE = "comparison.json"


def compare_stage(settings: CompareSettings, run: StageRun) -> None:
    """Compare the evaluation stages beside this one, write the report, print the tables and finish the run."""
    found = compare({name: run.path.parent / name for name in settings.models}, settings.baseline, run.path)
    print_comparisons(found.values(), run.path)
    run.finish({"verdicts": [sentence for comparison in found.values() for sentence in comparison.sentences()]})


def compare(
    evaluations: Mapping[str, Path], baseline: str, out_dir: Path, *, allow_mismatch: bool = False
) -> dict[str, Comparison]:
    """Compare evaluations (name to stage directory, in order), write the report, and return what each task shows.

    Raises DataError when an evaluation is missing, or when two were not scored alike and `allow_mismatch` is not set.
    """
    if baseline not in evaluations:
        raise ConfigError(f"the baseline {baseline} is none of {', '.join(evaluations)}")
    inputs = read_inputs(evaluations, baseline)
    if len(inputs.models) < 2:
        raise ConfigError(
            f"{', '.join(evaluations)} are all of one model, {inputs.baseline}: there is nothing to compare it with",
            fix="posttrain compare RUN/BASE_EVALUATION RUN/OTHER_EVALUATION",
        )
    found = compare_tasks(inputs, allow_mismatch=allow_mismatch)
    write_report(build_report(inputs, found), out_dir)
    durable.write_json(out_dir / COMPARISON_FILE, {task: asdict(comparison) for task, comparison in found.items()})
    return found


def print_comparisons(comparisons: Iterable[Comparison], directory: Path) -> None:
    """Print the tables and sentences of each task, and where the report lies."""
    console = Console()
    for comparison in comparisons:
        print_comparison(comparison, console)
    console.print(f" report  {directory / 'report.html'}", highlight=False, soft_wrap=True)
