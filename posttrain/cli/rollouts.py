"""The verb `posttrain rollouts`: the completions behind a step's numbers.

Floor 7: parses and prints, no more.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from posttrain.cli.parsing import JsonFlag, print_result
from posttrain.errors import ConfigError

if TYPE_CHECKING:
    from posttrain.pipeline.rollouts import Order


def rollouts(
    stage: Path,
    *,
    step: Annotated[int | None, Parameter(help="Step to look at; the latest one without it.")] = None,
    worst: Annotated[int | None, Parameter(help="Show so many, the lowest reward first.")] = None,
    best: Annotated[int | None, Parameter(help="Show so many, the highest reward first.")] = None,
    longest: Annotated[int | None, Parameter(help="Show so many, the longest first.")] = None,
    where: Annotated[
        list[str] | None,
        Parameter(help="Only truncated, no_answer, right, wrong, unscorable or repeated ones; may be given twice."),
    ] = None,
    count: Annotated[int, Parameter(name=("--count", "-n"), help="How many to show without an order.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Show completions of a step with their prompts, scores and advantages: what a rising reward is made of.

    Parameters
    ----------
    stage
        Directory of a GRPO or PPO stage, such as runs/demo/grpo.
    """
    from posttrain.pipeline.rollouts import holds, in_order, rollout_lines, rollouts_of, shown

    orders: dict[Order, int | None] = {"worst": worst, "best": best, "longest": longest}
    asked = {name: number for name, number in orders.items() if number is not None}
    if len(asked) > 1:
        raise ConfigError(f"--{' and --'.join(asked)} are different orders: one of them", fix="--best 5 --where wrong")
    order, number = next(iter(asked.items()), (None, count))
    rows = [row for row in rollouts_of(stage, step) if holds(row, where or ())]
    found = in_order(rows, order)[:number]
    lines = [f"{len(found)} of {len(rows)} completions" + (f" that are {' and '.join(where)}" if where else "")]
    lines += [line for row in found for line in ("", *rollout_lines(row))]
    print_result([shown(row) for row in found], "\n".join(lines), as_json=as_json)
