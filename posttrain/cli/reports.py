"""The verbs `posttrain compare` and `posttrain card`: what finished evaluations show, and what to say of a model.

Floor 7: parses and prints, no more.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from posttrain.cli.parsing import JsonFlag, print_result


def compare(
    *directories: Path,
    baseline: Annotated[
        str | None, Parameter(help="Name of the evaluation to compare with; the first by default.")
    ] = None,
    out: Annotated[Path, Parameter(help="Where the report is written: HTML, Markdown, JSON, figures.")] = Path(
        "comparison"
    ),
    fail_on_regression: Annotated[
        float | None,
        Parameter(
            name=("--fail-on-regression", "--fail_on_regression"),
            help="End with exit code 1 where a model's whole 95% interval is this much below the baseline: 0.02.",
        ),
    ] = None,
    allow_mismatch: Annotated[
        bool,
        Parameter(
            name=("--allow-mismatch", "--allow_mismatch"),
            help="Report evaluations that were not scored alike side by side, without a test.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare finished evaluations: one report with intervals, paired tests, figures and completions.

    Parameters
    ----------
    directories
        Evaluations, or runs, which stand for all their evaluations.
    """
    from dataclasses import asdict

    from posttrain.pipeline.evaluations import choose_baseline, find_evaluations, regressions
    from posttrain.reports.comparison import compare as compare_evaluations
    from posttrain.reports.comparison import print_comparisons
    from posttrain.runs.durable import make_directory

    evaluations = find_evaluations(directories)
    chosen = choose_baseline(evaluations, baseline)
    make_directory(out)
    found = compare_evaluations(evaluations, chosen, out, allow_mismatch=allow_mismatch)
    if as_json:
        print(json.dumps({task: asdict(comparison) for task, comparison in found.items()}))
    else:
        print_comparisons(found.values(), out)
    if fail_on_regression is not None and (worse := regressions(found, fail_on_regression)):
        print("\n".join(f"regression: {sentence}" for sentence in worse), file=sys.stderr)
        sys.exit(1)


def card(
    model: Path,
    *evaluations: Path,
    baseline: Annotated[
        str | None, Parameter(help="Name of the evaluation to compare with; the first by default.")
    ] = None,
    out: Annotated[Path, Parameter(help="Where README.md, its figures and results are written.")] = Path("card"),
    as_json: JsonFlag = False,
) -> None:
    """Write a model card: what the model was made of, how it did, and what was found wrong with it.

    Parameters
    ----------
    model
        Directory of the stage that trained it, such as runs/demo/grpo.
    evaluations
        Evaluations, or runs; without any, those of the model's own run.
    """
    from posttrain.pipeline.evaluations import write_model_card

    path = write_model_card(model, evaluations, baseline, out)
    print_result({"card": str(path)}, str(path), as_json=as_json)
