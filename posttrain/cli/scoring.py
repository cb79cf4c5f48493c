"""The verb `posttrain score`: what a reward model gives to completions, and what these scores are worth.

Floor 7: parses and prints, no more.
"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from posttrain.cli.parsing import JsonFlag, Overrides, data_settings, print_result
from posttrain.errors import ConfigError


def score(
    reward_model: str,
    source: str | None = None,
    *overrides: Overrides,
    prompt: Annotated[str | None, Parameter(help="A prompt, instead of a source.")] = None,
    completion: Annotated[list[str] | None, Parameter(help="A completion of it; may be given several times.")] = None,
    chat: Annotated[bool, Parameter(help="Take both as turns of the chat template.")] = False,
    out: Annotated[Path | None, Parameter(help="File to write the scores of all rows to, JSONL.")] = None,
    correct: Annotated[str | None, Parameter(help="Column that says how right a completion is.")] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Parameter(help="Precision.")] = "auto",
    max_tokens_per_micro_batch: Annotated[int, Parameter(help="Token budget of one forward pass.")] = 4096,
    as_json: JsonFlag = False,
) -> None:
    """Score completions by a trained reward model, and say what the scores are worth: accuracy on pairs, biases.

    Flags are those of --data: --split test, --rows 100, --max_length 1024, --columns.prompt question, ...

    Parameters
    ----------
    reward_model
        The directory of a stage, such as runs/rm/rm, or of a model, or a Hub name.
    source
        A named source, a file, or the directory of a GRPO stage, whose rollouts are scored.
    """
    from posttrain.pipeline.scoring import (
        candidates_of,
        excerpt,
        pasted,
        report_lines,
        report_of,
        reward_model_of,
        score_candidates,
        write_scores,
    )
    from posttrain.runs.display import make_display
    from posttrain.settings import ModelSettings

    if (source is None) == (prompt is None) or (prompt is None) != (not completion):
        raise ConfigError(
            "score takes a source, or a prompt with completions",
            fix=f'posttrain score {reward_model} rows.jsonl, or posttrain score {reward_model} --prompt "..." '
            '--completion "..."',
        )
    reward_model = reward_model_of(reward_model)
    data = data_settings(source or "pasted", overrides, "posttrain score")
    typed = pasted(prompt, completion or [], chat=chat) if prompt is not None else None
    candidates = typed or candidates_of(str(source), data)
    display = make_display("none" if typed else "auto")
    display.start(f"score {source}", len(candidates))
    try:
        scored = score_candidates(
            ModelSettings(name_or_path=reward_model, dtype=dtype),
            candidates,
            max_length=data.max_length,
            max_tokens=max_tokens_per_micro_batch,
            on_progress=lambda done, total: display.update(done, {}),
        )
    finally:
        display.stop()
    if out is not None:
        write_scores(out, scored)
    if typed:
        for each in scored:
            number = "too long" if each.score is None else f"{each.score:8.4f}"
            content = {"prompt": prompt, "completion": each.candidate.row.completion, "score": each.score}
            print_result(content | {"tokens": each.tokens}, f"{number}  {excerpt(each)}", as_json=as_json)
        return
    report = report_of(reward_model, str(source), scored, correct=correct)
    print_result(report, "\n".join(report_lines(report)), as_json=as_json)
