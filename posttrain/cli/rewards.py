"""The verbs of `posttrain rewards`: what can be paid, and what a completion would be paid, part by part.

Floor 7: parses and prints, no more.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from posttrain.cli.parsing import JsonFlag, Overrides, parsed, print_result
from posttrain.errors import ConfigError

rewards_app = App(name="rewards", help="Show what rewards there are, and what completions would be paid.")


@rewards_app.command(name="list")
def list_rewards(
    *,
    reward_file: Annotated[
        Path | None, Parameter(name=("--reward-file", "--reward_file"), help="A file of your own functions.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print every reward: what it pays for, whether it needs a gold answer, and its options."""
    from posttrain.pipeline.reward_trial import described_rewards, list_lines

    found = described_rewards(None if reward_file is None else str(reward_file))
    print_result(found, "\n".join(list_lines(found)), as_json=as_json)


@rewards_app.command(name="try")
def try_rewards(
    source: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    *overrides: Overrides,
    prompt: Annotated[str, Parameter(help="The prompt of a typed completion.")] = "",
    completion: Annotated[
        list[str] | None, Parameter(help="A completion to score; may be given several times.")
    ] = None,
    answer: Annotated[str | None, Parameter(help="The gold answer of a typed prompt.")] = None,
    model: Annotated[str, Parameter(help="Count tokens by this model's tokenizer.")] = "nano",
    show: Annotated[int, Parameter(help="Completions to show of a source.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Score completions as a stage would, with every part shown; nothing is trained and nothing is kept.

    Flags are those of a stage's rewards: --rewards.hybrid 1.0, --reward_file mine.py, --reward_combination gated,
    --reward_options.length_band.min_length 10, ...; and those of its data: --data.split test,
    --data.columns.answer target, ...

    Parameters
    ----------
    source
        A file of rows with completions, or the directory of a GRPO stage, whose rollouts are scored.
    """
    from posttrain.pipeline.reward_trial import TrialSettings, from_source, report_lines, run_trial, typed

    if source is not None and source.startswith("--"):  # without a source, the first of the flags stands there
        overrides, source = (source, *overrides), None
    if (source is None) == (not completion):
        raise ConfigError(
            "rewards try takes a source, or a completion",
            fix='posttrain rewards try rows.jsonl, or posttrain rewards try --completion "..." --answer 42',
        )
    named = [] if source is None else [f"--data.source={source}"]
    settings = parsed(TrialSettings, [*named, *overrides], "posttrain rewards try")
    candidates = typed(prompt, completion, answer) if completion else from_source(str(source), settings)
    report = run_trial(settings, candidates, model=model)
    print_result(report, "\n".join(report_lines(report, show=show)), as_json=as_json)
