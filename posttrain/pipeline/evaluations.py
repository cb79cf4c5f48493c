"""Find finished evaluations among the directories that a user names.

Floor 6: knows how a run is laid out (RUNS_DIR/NAME/STAGE), not what an evaluation holds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.config import near_match
from posttrain.errors import ConfigError
from posttrain.evals.evaluate import SUMMARY_FILE


def find_evaluations(directories: Sequence[Path]) -> dict[str, Path]:
    """Return evaluations by name: a directory of one stands for itself, a run's for all that it holds.

    The name is the stage's, with the run's before it where two would be the same.
    """
    found = list(dict.fromkeys(path for directory in directories for path in _evaluations_in(directory)))
    names = [path.name for path in found]
    return {
        (path.name if names.count(path.name) == 1 else f"{path.resolve().parent.name}/{path.name}"): path
        for path in found
    }


def choose_baseline(evaluations: dict[str, Path], wanted: str | None) -> str:
    """Return the name of the baseline: the one wanted, else the first."""
    if len(evaluations) < 2:
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
    inside = sorted(path for path in directory.iterdir() if _is_evaluation(path))
    if not inside:
        raise ConfigError(f"{directory} is no finished evaluation and holds none")
    yield from inside


def _is_evaluation(path: Path) -> bool:
    """Whether a directory is a finished evaluation stage's, or an artifact by itself."""
    return any((place / SUMMARY_FILE).is_file() for place in (path, path / "artifact"))
