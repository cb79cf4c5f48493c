"""Which columns a source has, under which names, and what to say when the ones it needs are missing.

Floor 1. Columns are renamed only as the settings say; the guesses here appear in messages and nowhere else.
"""

import difflib
import json
from collections.abc import Iterable, Sequence

from posttrain.data.files import Record
from posttrain.errors import DataError

COLUMN_GUESSES = {
    "prompt": ("question", "problem", "instruction", "query", "input"),
    "messages": ("conversations", "conversation", "dialogue", "turns"),
    "text": ("content", "body", "document"),
    "chosen": ("preferred", "win", "response_j", "response_0", "completion"),
    "rejected": ("dispreferred", "lose", "response_k", "response_1"),
    "choices": ("options", "endings", "answers"),
    "question": ("prompt", "problem", "query", "instruction"),
    "problem": ("prompt", "question", "query", "instruction"),
    "answer": ("gold", "ground_truth", "target", "solution", "label"),
    "solution": ("answer", "output", "response", "completion"),
}


def closest(name: str, names: Iterable[str]) -> str:
    """Return the name most like a mistyped one; the first of them when none is like it."""
    known = list(names)
    return (difflib.get_close_matches(name, known, n=1, cutoff=0.4) or known)[0]


def column_names(records: Iterable[Record]) -> list[str]:
    """Return the columns of all records together, in the order met."""
    return list(dict.fromkeys(name for record in records for name in record))


def rename(record: Record, renames: dict[str, str]) -> Record:
    """Return the record with each target column read from the column the settings name for it."""
    kept = {name: value for name, value in record.items() if name not in renames.values()}
    return kept | {target: record.get(name) for target, name in renames.items()}


def check_renames(place: str, columns: Sequence[str], renames: dict[str, str]) -> None:
    """Raise DataError when a column to read from does not exist."""
    for target, name in renames.items():
        if name not in columns:
            raise DataError(
                f'{place} has no column "{name}" to read "{target}" from. Found: {", ".join(columns)}',
                fix=f"--data.columns.{target} {closest(name, columns)}",
            )


def missing_column(place: str, needed: str, columns: Sequence[str], first: Record) -> DataError:
    """Return the error for a source without a column it needs, with the likely rename as its fix."""
    guess = next((name for name in COLUMN_GUESSES.get(needed, ()) if name in columns), None)
    target = needed
    if guess is None and needed == "prompt":  # rows without a prompt may be conversations or text
        target, guess = next(
            ((kind, name) for kind in ("messages", "text") for name in COLUMN_GUESSES[kind] if name in columns),
            (needed, None),
        )
    shown = json.dumps(first, default=str)
    return DataError(
        f'{place} has no column "{needed}". Found: {", ".join(columns)}. '
        f"First row: {shown[:200]}{'...' if len(shown) > 200 else ''}",
        fix=f"--data.columns.{target} {guess or 'COLUMN'}",
    )


def preference_pairs(place: str, first: Record) -> DataError:
    """Return the error for a file of preference pairs with implicit prompts, with the use of the chosen as its fix."""
    target = "text" if isinstance(first.get("chosen"), str) else "messages"
    return DataError(
        f"{place} holds preference pairs (chosen, rejected), expected prompt, prompt and completion, messages or text",
        fix=f"--data.columns.{target} chosen",
    )
