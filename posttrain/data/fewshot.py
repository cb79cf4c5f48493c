"""Few-shot prompts: worked examples of another split before each prompt.

Floor 1. The run's seed says which, the same for all prompts; where a source divides its examples (MMLU, by subject),
they are the first ones of the prompt's own part, as lm-evaluation-harness takes them. A row that asks what an example
asks is left out, so that no problem is shown with its answer.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.data.choices import letters_opening
from posttrain.data.files import split_files
from posttrain.data.named import SOURCES, Examples, used_style
from posttrain.data.prompts import OPENINGS, Text
from posttrain.data.rows import DEFAULT_CHOICE_STYLE, Row
from posttrain.errors import ConfigError, DataError
from posttrain.records import Message
from posttrain.seeds import derive_seed
from posttrain.settings import DataSettings

logger = logging.getLogger(__name__)

Shown = tuple[Text, Text]  # the prompt of an example, and its completion


def example_settings(settings: DataSettings) -> DataSettings:
    """Return the settings that read the split which examples come from.

    Raises ConfigError where the source has no such split: a single file without `held_out`, or MATH-500.
    """
    source, split = SOURCES.get(settings.source), _examples_of(settings).split
    if not settings.held_out:
        path = Path(settings.path or settings.source)
        if source is not None and settings.path is None:
            found = split in source.splits
        else:
            found = path.is_dir() and _has_split(path, split)
        if not found:
            place = settings.path or settings.source
            raise ConfigError(
                f"data.num_fewshot takes examples from the split {split}, which {place} does not have",
                fix="--data.num_fewshot 0",
            )
    return settings.model_copy(update={"split": split, "rows": None, "num_fewshot": 0})


def with_examples(rows: Sequence[Row], candidates: Sequence[Row], settings: DataSettings, *, seed: int) -> list[Row]:
    """Return the rows with `settings.num_fewshot` of the candidates before each prompt.

    Raises DataError for rows without a prompt, where too few candidates have a solution, and where no row is left.
    """
    without = next((row for row in rows if row.prompt is None), None)
    if without is not None:
        raise DataError(f"data.num_fewshot puts examples before prompts; {without.origin} is a {without.kind} row")
    by, count = _examples_of(settings).by, settings.num_fewshot
    if by is None:
        candidates = sorted(candidates, key=lambda row: derive_seed(seed, "fewshot", row.id))
    examples: dict[Any, list[Shown]] = {}
    for row in candidates:
        own = examples.setdefault(_part(row, by), [])
        if len(own) < count and (shown := _shown(row)):
            own.append(shown)
    asked = {str(prompt) for own in examples.values() for prompt, _ in own}
    kept = [row for row in rows if str(row.prompt) not in asked]
    if not kept:
        raise DataError("no row is left beside the few-shot examples", fix="--data.num_fewshot 0")
    if len(kept) < len(rows):
        logger.warning("%d rows left out: the few-shot examples ask the same", len(rows) - len(kept))
    style = used_style(settings)
    return [_after_examples(row, examples.get(_part(row, by), []), count, _opening(row, style)) for row in kept]


def few_shot_prompt(prompt: Text, examples: Sequence[Shown], opening: str = "") -> Text:
    """Return a prompt after its examples: as earlier turns, or as text with a blank line after each.

    `opening`, with which text prompts may begin, is written once; so is a system turn, the prompt's own.
    """
    if isinstance(prompt, str):
        shots = [f"{_text(asked).removeprefix(opening)}{_text(answer)}\n\n" for asked, answer in examples]
        return "".join([opening, *shots, prompt.removeprefix(opening)])
    before = [turn for asked, answer in examples for turn in (*_without_system(_turns(asked)), *_turns(answer))]
    own = _without_system(prompt)
    return (*prompt[: len(prompt) - len(own)], *before, *own)


def _after_examples(row: Row, examples: Sequence[Shown], count: int, opening: str) -> Row:
    if len(examples) < count:
        raise DataError(
            f"data.num_fewshot = {count}, and {len(examples)} rows with a solution can stand before {row.origin}",
            fix=f"--data.num_fewshot {len(examples)}",
        )
    assert row.prompt is not None
    return replace(row, prompt=few_shot_prompt(row.prompt, examples, opening))


def _examples_of(settings: DataSettings) -> Examples:
    source = SOURCES.get(settings.source)
    return source.examples if source else Examples()


def _has_split(directory: Path, split: str) -> bool:
    try:
        return bool(split_files(directory, split))
    except DataError:
        return False


def _part(row: Row, by: str | None) -> Any:
    return row.columns.get(by) if by else None


def _shown(row: Row) -> Shown | None:
    """Return what an example shows; None for a row without a solution."""
    solution = row.completion
    if row.kind == "choices":
        right = str(row.columns["continuations"][row.columns["answer"]])
        solution = right if isinstance(row.prompt, str) else (Message(role="assistant", content=right),)
    return None if row.prompt is None or solution is None else (row.prompt, solution)


def _opening(row: Row, style: str | None) -> str:
    if row.kind == "choices":
        return letters_opening(row.columns.get("subject")) if (style or DEFAULT_CHOICE_STYLE) == "letters" else ""
    return OPENINGS.get(style or "", "")


def _without_system(turns: Sequence[Message]) -> Sequence[Message]:
    return turns[1:] if turns[0]["role"] in ("system", "developer") else turns


def _text(text: Text) -> str:
    if not isinstance(text, str):
        raise DataError("data.num_fewshot: a prompt is text and its examples are messages")
    return text


def _turns(text: Text) -> tuple[Message, ...]:
    if isinstance(text, str):
        raise DataError("data.num_fewshot: a prompt is messages and its examples are text")
    return text
