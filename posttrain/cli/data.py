"""The verbs of `posttrain data`: look at rows before a stage does, and make pairs out of a run's completions.

Floor 7: parses and prints, no more.
"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from posttrain.cli.parsing import JsonFlag, Overrides, data_settings, print_result
from posttrain.errors import DataError

data_app = App(name="data", help="Look at rows before a stage does, and make pairs out of a run's completions.")
Stage = Annotated[
    Literal["sft", "rm", "dpo", "grpo", "ppo"], Parameter(help="The stage that is to learn from the rows.")
]


@data_app.command
def check(
    source: str,
    *overrides: Overrides,
    stage: Stage = "sft",
    model: Annotated[str | None, Parameter(help="Count tokens by this model's tokenizer.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say how many rows of a source a stage could use, and what is wrong with the others. Exit code 3: it refuses.

    Flags are those of --data: --split test, --path FILE, --columns.prompt question, ...

    Parameters
    ----------
    source
        A named source or a file.
    """
    data = data_settings(source, overrides, "posttrain data check")
    from posttrain.pipeline.data_checks import check_rows, report_lines

    report = check_rows(data, stage=stage, model=model)
    print_result(report, "\n".join(report_lines(report)), as_json=as_json)
    if report["malformed"] > data.max_bad_rows or not report["usable"]:
        raise DataError(
            f"{stage} would refuse it: {report['usable']} usable rows, {report['malformed']} malformed, "
            f"{data.max_bad_rows} allowed",
            fix=f"--max_bad_rows {report['malformed']}" if report["usable"] else None,
        )


@data_app.command
def show(
    source: str,
    *overrides: Overrides,
    model: Annotated[str, Parameter(help="Directory or name of the model that renders them.")] = "nano",
    stage: Stage = "sft",
    count: Annotated[int, Parameter(name=("--count", "-n"), help="Rows to show.")] = 3,
) -> None:
    """Print the first rows of a source as a stage would see them: their tokens, and which of them are trained.

    Parameters
    ----------
    source
        A named source or a file.
    """
    data = data_settings(source, overrides, "posttrain data show")
    from posttrain.pipeline.data_checks import show_rows

    for line in show_rows(data, stage=stage, model=model, count=count):
        print(line)


@data_app.command
def pairs(
    stage: Path,
    *,
    out: Annotated[Path, Parameter(help="File to write, JSONL.")],
    min_gap: Annotated[
        float, Parameter(name=("--min-gap", "--min_gap"), help="How much better the chosen one's reward must be.")
    ] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Make preference pairs of the completions of a GRPO stage or an evaluation: of each prompt the best and the worst.

    Parameters
    ----------
    stage
        Directory of the stage, such as runs/demo/grpo, or of an evaluation with num_samples above 1.
    """
    from posttrain.stages.pairs import make_pairs, write_pairs

    made, without = make_pairs(stage, min_gap=min_gap)
    write_pairs(out, made)
    found = {"pairs": len(made), "groups_without_pair": without}
    print_result(found, f"{len(made)} pairs in {out}; {without} groups made none", as_json=as_json)
