"""Rewards for the form of a completion, right or wrong: 1 where it has the form, else 0.

Pure; none of them knows a gold answer, so each can be gamed: `reward_combination = "gated"` pays them for right
answers only.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from posttrain.rewards.arguments import completion_text
from posttrain.rewards.extraction import extract, has_r1_zero_format
from posttrain.settings.rewards import FormatJsonOptions, FormatRegexOptions, LongerThanOptions

_STEP_WORDS = re.compile(r"\b(?:step ?[0-9]|first\b|therefore\b)", re.IGNORECASE)
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


def format_think_answer(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion in the form `... </think> <answer>...</answer>`, right or wrong, else 0."""
    return [float(has_r1_zero_format(completion_text(completion))) for completion in completions]


def format_boxed(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a closed `\\boxed{}` with something in it, right or wrong, else 0."""
    return [float(extract(completion_text(each), profile="boxed").text is not None) for each in completions]


def format_json(
    options: FormatJsonOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 for a completion that is JSON and nothing else, alone or in a fenced block, else 0."""
    return [float(_is_json(completion_text(completion), options.required_keys)) for completion in completions]


def format_regex(
    options: FormatRegexOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 for a completion that the regular expression matches as a whole, else 0."""
    pattern = re.compile(options.pattern, re.DOTALL)
    return [float(pattern.fullmatch(completion_text(completion)) is not None) for completion in completions]


def step_words(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion that says "Step 1", "First" or "Therefore", in small letters too, else 0."""
    return [float(_STEP_WORDS.search(completion_text(completion)) is not None) for completion in completions]


def longer_than(
    options: LongerThanOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 for a completion of more than so many characters, else 0."""
    return [float(len(completion_text(completion)) > options.characters) for completion in completions]


def _is_json(text: str, keys: Sequence[str]) -> bool:
    text = text.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and set(keys) <= value.keys())


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
