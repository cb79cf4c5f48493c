"""The rollouts of a finished or running stage, chosen and printed: what the numbers of a step are made of.

Floor 6: reads the files of `runs/`. The texts are a model's, so that nothing in them may reach the terminal as a
command.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import ConfigError, DataError
from posttrain.records import StopReason
from posttrain.rewards.grades import GRADES
from posttrain.runs.rollout_files import read_rollouts

Row = dict[str, Any]
Order = Literal["worst", "best", "longest"]
TOKENS = ("completion_ids", "engine_logprobs", "messages")  # columns that are not shown


def _right(row: Row) -> bool | None:
    """Return whether the first reward that gives 1 for a right answer gave it; None without one, or without a gold."""
    score = next((row[f"rewards/{name}"] for name in GRADES if f"rewards/{name}" in row), None)
    return None if score is None else score == 1


WHERE: dict[str, Callable[[Row], bool]] = {
    "truncated": lambda row: row["stop_reason"] == StopReason.LENGTH,
    "no_answer": lambda row: row.get("answered") is False,
    "right": lambda row: _right(row) is True,
    "wrong": lambda row: _right(row) is False and row.get("answered") is not False,
    "unscorable": lambda row: row["reward"] is None,
    "repeated": lambda row: row["copies"] > 1,
}
ORDERS: dict[Order, Callable[[Row], float]] = {
    "worst": lambda row: row["reward"],
    "best": lambda row: -row["reward"],
    "longest": lambda row: -row["length"],
}


def rollouts_of(directory: Path, step: int | None) -> list[Row]:
    """Return the rollouts of a step of a stage, the latest one without a step, each with the `copies` of its text.

    Raises DataError where the stage has none, ConfigError where it has none of this step.
    """
    files = {int(file.stem.removeprefix("step-")): file for file in (directory / "rollouts").glob("step-*.parquet")}
    if not files:
        raise DataError(
            f"{directory} has no rollouts: expected the directory of a GRPO or PPO stage, as runs/demo/grpo"
        )
    if step is not None and step not in files:
        message = f"{directory} has rollouts of the steps {min(files)} to {max(files)}, not of {step}"
        raise ConfigError(message, fix=f"--step {max(files)}")
    rows = read_rollouts(files[max(files) if step is None else step])
    if not {"completion", "stop_reason", "prompt_id", "reward"} <= rows[0].keys():
        raise DataError(f"{directory} has no rollouts with rewards: expected the directory of a GRPO or PPO stage")
    copies = Counter((row["prompt_id"], row["completion"]) for row in rows)
    return [{**row, "copies": copies[row["prompt_id"], row["completion"]]} for row in rows]


def holds(row: Row, where: Sequence[str]) -> bool:
    """Return whether a rollout is of all these kinds; raise ConfigError for one that there is not."""
    for name in where:
        if name not in WHERE:
            raise ConfigError(f"no kind of rollout {name!r}; there are {', '.join(WHERE)}")
    return all(WHERE[name](row) for name in where)


def in_order(rows: Sequence[Row], order: Order | None) -> list[Row]:
    """Return rollouts in an order, or as they lie; an order by reward leaves out what has none."""
    if order is None:
        return list(rows)
    return sorted((row for row in rows if order == "longest" or row["reward"] is not None), key=ORDERS[order])


def shown(row: Row) -> Row:
    """Return a rollout without its tokens, for a program."""
    return {name: value for name, value in row.items() if name not in TOKENS}


def rollout_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield a rollout as lines to print: place, scores, prompt, completion."""
    parts = {name.removeprefix("rewards/"): value for name, value in row.items() if name.startswith("rewards/")}
    numbers = {"reward": row["reward"], "advantage": row.get("advantage"), **parts}
    told = "  ".join(f"{name} {'-' if value is None else f'{value:.4g}'}" for name, value in numbers.items())
    yield f"step {row['step']}  prompt {row['prompt_id'][:12]}  sample {row['sample']}  {told}"
    yield f"  {row['length']} tokens, ended by {row['stop_reason']}" + (
        f", {row['copies']} times among its prompt's" if row["copies"] > 1 else ""
    )
    for name in ("prompt", "completion"):
        yield f"  {name}:"
        yield from (f"    {line}" for line in printable(row[name]).split("\n"))


def printable(text: str) -> str:
    """Return a text in which everything but line ends that is no printable character is written as its escape."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )
