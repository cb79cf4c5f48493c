"""Call reward functions on sampled completions, check what they return, and add up the parts.

The boundary between user code and training: a wrong shape or type stops here, named, before it becomes a gradient.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from posttrain.data.columns import COLUMN_GUESSES, column_names
from posttrain.data.rows import Row
from posttrain.engines import Interrupted
from posttrain.errors import ConfigError, DataError, RewardError
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards import REWARDS
from posttrain.rewards.arguments import GOLD_COLUMNS
from posttrain.rewards.combination import SUM, Combination, combine
from posttrain.rewards.failures import Failed

RewardFunction = Callable[..., Any]


class Compared(NamedTuple):
    """The parts of its comparisons, from 0 to 1 and ties as halves, that a completion won: first and second shown.

    Each comparison was made in both orders, so without position bias the two are alike.
    """

    shown_first: float
    shown_second: float

    @property
    def score(self) -> float:
        """Both orders together."""
        return (self.shown_first + self.shown_second) / 2


Value = float | Compared | Failed | None  # of one completion, by one reward function


class Scored(NamedTuple):
    """Every part's score, and the reward they make; None marks what could not be scored.

    A part that `failed` leaves no reward, unless it is watched only. `compared` has those that are won comparisons.
    """

    scores: dict[str, float | None]
    reward: float | None
    failed: tuple[str, ...] = ()
    compared: Mapping[str, Compared] = MappingProxyType({})


def score(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    rewards: Mapping[str, float],
    functions: Mapping[str, RewardFunction] = REWARDS,
    combination: Combination = SUM,
) -> list[Scored]:
    """Score the completions of each prompt, prompt by prompt in one flat list, by the weighted `rewards`.

    Parts that are None are left out of the reward; where all are, it is None. Raises ConfigError for an
    unknown name, RewardError for a function that raises or does not return one float or None per completion.
    """
    check_names(rewards, functions)
    arguments = reward_arguments(prompts, completions)
    parts = {name: call(name, functions[name], arguments) for name in rewards}
    scored: list[Scored] = []
    for group in completions:
        places = range(len(scored), len(scored) + len(group))
        failed = [tuple(name for name in parts if isinstance(parts[name][place], Failed)) for place in places]
        rows = [{name: _number(values[place]) for name, values in parts.items()} for place in places]
        compared = [
            {name: value for name, values in parts.items() if isinstance(value := values[place], Compared)}
            for place in places
        ]
        scored += [
            Scored(row, None if any(_counts(name, rewards, combination) for name in names) else reward, names, orders)
            for row, reward, names, orders in zip(
                rows, combine(rows, rewards, combination), failed, compared, strict=True
            )
        ]
    return scored


def check_names(rewards: Mapping[str, float], functions: Collection[str] = REWARDS) -> None:
    """Raise ConfigError for the first name that is no reward, with the nearest one."""
    for name in rewards:
        if name not in functions:
            near = difflib.get_close_matches(name, list(functions), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            known = ", ".join(functions)
            fix = f"rewards = {{{near[0]} = 1.0}}" if near else None
            raise ConfigError(f"unknown reward {name}.{hint} Known: {known}", fix=fix)


def gold_answer(columns: Mapping[str, Any]) -> str | None:
    """Return the gold answer among a row's columns, None without one."""
    return next((str(columns[name]) for name in GOLD_COLUMNS if columns.get(name) is not None), None)


def require_gold(rows: Sequence[Row]) -> None:
    """Raise DataError unless every row has a gold answer, naming the first without and the columns it has."""
    without = [row for row in rows if gold_answer(row.columns) is None]
    if not without:
        return
    columns = column_names(dict(row.columns) for row in without)
    guess = next((name for name in COLUMN_GUESSES["answer"] if name in columns), "COLUMN")
    raise DataError(
        f"{len(without)} of {len(rows)} rows have no gold answer, first {without[0].origin}: "
        f"expected a column {' or '.join(GOLD_COLUMNS)}, found {', '.join(columns) or 'none'} beside the prompt",
        fix=f"--data.columns.answer {guess}",
    )


def reward_arguments(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> dict[str, list[Any]]:
    """Return the keyword arguments of a reward function, each a list with one entry per completion.

    `prompts` and `completions` are texts, or message lists where the prompt is one; `completion_ids`, `truncated` and
    `prompt_id`, by which a group is known, come with them; the other keys are the rows' columns, None for a row
    without it.
    """
    pairs = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    columns = {name: [prompt.columns.get(name) for prompt, _ in pairs] for name in names}
    return columns | {
        "prompts": [p.content if isinstance(p.content, str) else list(p.content) for p, _ in pairs],
        "completions": [
            c.text if isinstance(p.content, str) else [{"role": "assistant", "content": c.text}] for p, c in pairs
        ],
        "completion_ids": [list(c.ids) for _, c in pairs],
        "truncated": [c.stop_reason is StopReason.LENGTH for _, c in pairs],
        "prompt_id": [p.id for p, _ in pairs],
    }


def call(name: str, function: RewardFunction, arguments: Mapping[str, list[Any]]) -> list[Value]:
    """Return what `function` gives for each completion, checked; NaN means None."""
    try:
        values = function(**arguments)
    except (RewardError, Interrupted):
        raise
    except Exception as error:
        first = {key: values[0] for key, values in arguments.items() if values and key != "completion_ids"}
        raise RewardError(
            f"reward {name} raised {type(error).__name__}: {error}\n"
            f"  on {len(arguments['completions'])} completions, the first of them: {_shown(first)}"
        ) from error
    return checked(name, values, len(arguments["completions"]))


def checked(name: str, values: Any, count: int) -> list[Value]:
    """Return the scores that a reward function returned; raises RewardError unless there is one for each completion.

    Lists, tuples, and vectors of array libraries are read, of numbers, None, comparisons, or what failed.
    """
    if inspect.isawaitable(values):
        close = getattr(values, "close", None)  # a coroutine would complain that nobody waited for it
        if close is not None:
            close()
        raise _wrong(name, count, "something to await; functions of reward_file may be async")
    if not isinstance(values, list | tuple) and not (hasattr(values, "tolist") and hasattr(values, "shape")):
        raise _wrong(name, count, f"{type(values).__name__} {_shown(values)}")
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or len(values) != count:
        raise _wrong(name, count, f"{len(values)} values" if isinstance(values, list | tuple) else "one number")
    return [_checked(name, count, index, value) for index, value in enumerate(values)]


def _number(value: Value) -> float | None:
    match value:
        case Failed():
            return None
        case Compared():
            return value.score
        case _:
            return value


def _counts(name: str, rewards: Mapping[str, float], combination: Combination) -> bool:
    return rewards[name] != 0 or name == combination.gate


def _checked(name: str, count: int, index: int, value: Any) -> Value:
    if value is None or isinstance(value, Failed | Compared):
        return value
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, int | float):  # bool is an int: True scores 1
        raise _wrong(name, count, f"{type(value).__name__} {_shown(value)} at index {index}")
    if math.isinf(value):
        raise _wrong(name, count, f"{value} at index {index}")
    return None if math.isnan(value) else float(value)


def _wrong(name: str, count: int, got: str) -> RewardError:
    return RewardError(
        f"reward {name} must return {count} values, one finite float or None per completion; got {got}",
        fix="return [1.0 if right else 0.0 for completion in completions]",
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
