"""Compare finished evaluations: read their directories, write the comparison beside them, show it.

Floor 5: only reads what the evaluation stages left. The statistics are in `contrasts.py`, the layout in `pages.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from posttrain.errors import ConfigError, DataError
from posttrain.evals.evaluate import SAMPLES_FILE, SUMMARY_FILE
from posttrain.reports.contrasts import Comparison, Evaluation, compare_evaluations
from posttrain.reports.pages import markdown, print_comparison
from posttrain.runs import durable
from posttrain.runs.directory import StageRun
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import CompareSettings


def compare_stage(settings: CompareSettings, run: StageRun) -> None:
    """Compare the evaluation stages beside this one, print the tables and finish the run."""
    comparison = compare({name: run.path.parent / name for name in settings.models}, settings.baseline, run.path)
    print_comparison(comparison, Console())
    run.finish({"verdicts": comparison.sentences()})


def compare(evaluations: Mapping[str, Path], baseline: str, out_dir: Path) -> Comparison:
    """Compare evaluations (name to stage directory, in order) and write comparison.json and comparison.md.

    Raises DataError when an evaluation is missing, or when two were not scored alike.
    """
    if baseline not in evaluations:
        raise ConfigError(f"the baseline {baseline} is none of {', '.join(evaluations)}")
    comparison = compare_evaluations([load_evaluation(name, path) for name, path in evaluations.items()], baseline)
    durable.write_json(out_dir / "comparison.json", asdict(comparison))
    durable.write_file(out_dir / "comparison.md", markdown(comparison).encode())
    return comparison


def load_evaluation(name: str, path: Path) -> Evaluation:
    """Read an evaluation from its stage directory, or from the artifact itself."""
    directory = path / "artifact" if (path / "artifact").is_dir() else path
    try:
        summary = json.loads((directory / SUMMARY_FILE).read_bytes())
        return Evaluation(name, summary, read_rollouts(directory / SAMPLES_FILE))
    except FileNotFoundError as error:
        raise DataError(
            f"{name} is no finished evaluation: {error.filename} is missing", fix=f"posttrain eval --name {name}"
        ) from None
