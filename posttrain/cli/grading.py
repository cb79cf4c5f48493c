"""The verbs `posttrain grade` and `posttrain rescore`: what the mathematics grader says, and why.

Floor 7: parses and prints, no more.
"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from posttrain.cli.parsing import JsonFlag, print_result

ProfileFlag = Annotated[
    Literal["r1_zero", "boxed", "gsm8k", "math", "choice", "lenient"] | None,
    Parameter(help="How to find the answer in a response; without it, the text is the answer."),
]


def grade(text: str, gold: str | None = None, *, profile: ProfileFlag = None, as_json: JsonFlag = False) -> None:
    """Grade an answer or a response against a gold answer, or every row of a file; say which rule decided.

    Parameters
    ----------
    text
        The answer or response; without a gold, a file whose rows have a response (or completion) and an answer.
    gold
        The gold answer, or a solution that ends in #### or holds a box.
    """
    from posttrain.pipeline.grading import as_content, grade_lines, graded_file, graded_pair

    graded = graded_file(Path(text), profile) if gold is None else [graded_pair(text, gold, profile)]
    content = [as_content(each) for each in graded]
    print_result(content if gold is None else content[0], "\n".join(grade_lines(graded)), as_json=as_json)


def rescore(
    run: Path,
    *,
    shown: Annotated[int, Parameter(help="How many flips to show.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Grade the stored completions of a run again, and show whose verdict flips. Nothing is changed.

    Parameters
    ----------
    run
        Directory of a run, or of a stage: GRPO or PPO with a reward for right answers, or an evaluation.
    """
    from posttrain.pipeline.grading import rescore as grade_again
    from posttrain.pipeline.grading import rescore_lines, rescore_report

    report = rescore_report(run, grade_again(run))
    print_result(report, "\n".join(rescore_lines(report, shown=shown)), as_json=as_json)
