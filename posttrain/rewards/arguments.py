"""What every reward function is given: texts, gold answers, lengths and groups, out of TRL's arguments.

Floor 3: pure; knows lists of columns, no reward.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posttrain.errors import RewardError
from posttrain.records import Message

GOLD_COLUMNS = ("answer", "solution")


def completion_text(completion: str | Sequence[Message]) -> str:
    """Return the text of a completion, which conversational rows hold as messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """Return a prompt as one text; of messages, each after its role."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def gold_column(columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """Return the first of the gold columns that the rows have; raises RewardError when there is none."""
    for name in GOLD_COLUMNS:
        if name in columns:
            return columns[name]
    raise RewardError(
        f"grading needs a column {' or '.join(GOLD_COLUMNS)}; the rows have: {', '.join(columns) or 'none'}",
        fix='data.columns.answer = "<your gold column>"',
    )


def token_lengths(columns: Mapping[str, Sequence[Any]]) -> list[int]:
    """Return the tokens of each completion, its end token included; raises RewardError where nobody counted them."""
    if "completion_ids" not in columns:
        raise RewardError(
            f"a reward of lengths needs a column completion_ids; there are {', '.join(columns) or 'none'}"
        )
    return [len(ids) for ids in columns["completion_ids"]]


def groups(prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> Iterable[list[int]]:
    """Return the places of each prompt's completions; without the column prompt_id, equal prompts are one."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(columns.get("prompt_id", prompts)):
        places.setdefault(key if isinstance(key, str) else repr(key), []).append(place)
    return places.values()
