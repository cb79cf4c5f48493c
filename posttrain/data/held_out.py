"""A held-out split for sources that have one split only, the same on every machine, in every run and from any file.

Floor 1. Which side a row is on depends on how its conversation begins and on nothing else: neither on the run's seed
nor on the other rows nor on columns, format or prompt style. Rows held out at 0.1 are held out at 0.2 too.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.files import SPLITS, splits_in
from posttrain.data.formats import HH_TURN, transcript
from posttrain.data.named import SOURCES
from posttrain.data.rows import Row, normalised
from posttrain.errors import ConfigError
from posttrain.settings import DataSettings


def split_to_read(settings: DataSettings) -> str:
    """Return the split of the source that the rows are read from; with `held_out`, the only one that it has.

    Raises ConfigError for a split that the source does not have, and for `held_out` where it has several.
    """
    split, held_out = settings.split, settings.held_out
    hub = SOURCES.get(settings.source) if settings.path is None else None
    path = Path(settings.path or settings.source)
    splits = hub.splits if hub else splits_in(path) if path.is_dir() else ()
    if held_out and split not in SPLITS:
        raise ConfigError(f'data.held_out makes the splits {", ".join(SPLITS)}, not "{split}"', fix="--data.split test")
    if held_out and len(splits) > 1:
        raise ConfigError(
            f"data.held_out is for sources with one split, and {settings.source} has {', '.join(splits)}",
            fix="--data.held_out 0",
        )
    if held_out:
        return splits[0] if splits else "train"
    if hub and split in SPLITS and split not in splits:
        fix = "--data.held_out 0.1" if splits == ("train",) else f"--data.split {splits[-1]}"
        raise ConfigError(f'{settings.source} has no split "{split}", only {", ".join(splits)}', fix=fix)
    return split


def is_in_split(row: Row, settings: DataSettings) -> bool:
    """Return whether a row, read without prompt style, is in the split; "validation" names the same rows as "test"."""
    held_out = int(conversation_key(row), 16) < settings.held_out * 16**16
    return held_out == (settings.split != "train")


def conversation_key(row: Row) -> str:
    """Return a hash of how a row's conversation begins: of its first turns up to and with the first of the user.

    Rows that continue one conversation have the same key, and so have prompts that differ in case and white space.
    """
    return hashlib.blake2b(normalised(_opening(row)).encode(), digest_size=8).hexdigest()


def _opening(row: Row) -> str:
    begun = next(text for text in (row.messages, row.prompt, row.text) if text is not None)
    if isinstance(begun, str) and not HH_TURN.match(begun):
        return begun
    turns: Sequence[Mapping[str, Any]] = transcript(begun, "prompt") if isinstance(begun, str) else begun
    users = [number for number, turn in enumerate(turns, start=1) if turn["role"] == "user"]
    return "\n\n".join(turn["content"] for turn in turns[: users[0] if users else len(turns)])
