"""Find finished evaluations among the directories that a user names, and show a finished comparison again.

Floor 6: knows how a run is laid out (RUNS_DIR/NAME/STAGE), not what an evaluation holds.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from posttrain.config import near_match
from posttrain.errors import ConfigError
from posttrain.evals.evaluate import SUMMARY_FILE
from posttrain.reports.card import write_card
from posttrain.reports.comparison import COMPARISON_FILE, print_comparisons
from posttrain.reports.contrasts import Comparison, compare_tasks
from posttrain.reports.inputs import read_inputs
from posttrain.reports.numbers import signed
from posttrain.reports.report import build_report
from posttrain.runs import durable
from posttrain.runs.directory import EVENTS
from posttrain.runs.logs import read_rows


def find_evaluations(directories: Sequence[Path]) -> dict[str, Path]:
    """Return evaluations by name: a directory of one stands for itself, a run's for all that it holds.

    The name is the stage's, with as many of the directories above it as tell it from the others.
    """
    found = list(dict.fromkeys(path for directory in directories for path in _evaluations_in(directory)))
    parts = {path: path.resolve().parts for path in found}
    return {_shortest_name(parts[path], list(parts.values())): path for path in found}


def _shortest_name(own: tuple[str, ...], everyone: Sequence[tuple[str, ...]]) -> str:
    """Return the fewest last parts of a path that no other path ends in; all of them where there are none."""
    lengths = range(1, len(own) + 1)
    unique = (size for size in lengths if sum(parts[-size:] == own[-size:] for parts in everyone) == 1)
    return "/".join(own[-next(unique, len(own)) :])


def show_comparison(directory: Path) -> None:
    """Print the comparison of a finished stage as it was printed when it was made; point to one of an older layout."""
    content = json.loads((directory / COMPARISON_FILE).read_bytes())
    try:
        comparisons = TypeAdapter(dict[str, Comparison]).validate_python(content)
    except ValidationError:
        print(directory)
    else:
        print_comparisons(comparisons.values(), directory)


def regressions(comparisons: Mapping[str, Comparison], margin: float) -> list[str]:
    """Return, in words, where the whole interval of a model's difference from the baseline is below -margin."""
    return [
        f"{model.name} on {task}: {signed(found.difference, comparison.scale)}, at best "
        f"{signed(found.interval.high, comparison.scale)}"
        for task, comparison in comparisons.items()
        for model in comparison.models
        if (found := model.against_baseline) is not None and found.interval.high < -margin
    ]


def choose_baseline(evaluations: dict[str, Path], wanted: str | None, *, at_least: int = 2) -> str:
    """Return the name of the baseline: the one wanted, else the first."""
    if len(evaluations) < at_least:
        found = ", ".join(str(path) for path in evaluations.values()) or "none"
        raise ConfigError(
            f"a comparison needs two finished evaluations; found {found}", fix="posttrain compare DIR DIR"
        )
    if wanted is None:
        return next(iter(evaluations))
    if wanted not in evaluations:
        raise ConfigError(f"no evaluation {wanted} here{near_match(wanted, list(evaluations))}")
    return wanted


def _evaluations_in(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        beside = (
            [path.name for path in directory.parent.iterdir() if path.is_dir()] if directory.parent.is_dir() else []
        )
        raise ConfigError(f"no directory {directory}{near_match(directory.name, beside)}")
    if _is_evaluation(directory):
        yield directory
        return
    inside = sorted((path for path in directory.iterdir() if _is_evaluation(path)), key=_begun)
    if not inside:
        raise ConfigError(f"{directory} is no finished evaluation and holds none")
    yield from inside


def _begun(path: Path) -> tuple[float, str]:
    """Order evaluations as a run made them; copies without their log come last, by name."""
    return next((event["time"] for event in read_rows(path / EVENTS)), math.inf), path.name


def _is_evaluation(path: Path) -> bool:
    """Whether a directory is a finished evaluation stage's, or an artifact by itself."""
    return any((place / SUMMARY_FILE).is_file() for place in (path, path / "artifact"))


def write_model_card(stage: Path, directories: Sequence[Path], baseline: str | None, out_dir: Path) -> Path:
    """Write the card of the model that a stage trained, from the evaluations of its run or of those named.

    Raises ConfigError where none of them is of this model.
    """
    evaluations = find_evaluations(directories or [stage.resolve().parent])
    inputs = read_inputs(evaluations, choose_baseline(evaluations, baseline, at_least=1))
    own = stage.resolve()
    found = [model for model in inputs.models if own in {course.path.resolve() for course in model.courses}]
    if not found:
        known = ", ".join(model.name for model in inputs.models)
        raise ConfigError(
            f"none of these evaluations is of the model of {stage}: they are of {known}",
            fix=f"posttrain eval --model.name_or_path {stage / 'artifact'}",
        )
    comparisons = compare_tasks(inputs)
    durable.make_directory(out_dir)
    return write_card(inputs, comparisons, build_report(inputs, comparisons), found[0].name, out_dir)
