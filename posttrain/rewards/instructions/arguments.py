"""How the arguments of an instruction are read from a row: each reader returns the value or raises ValueError.

Pure. The message completes "NAME ...".
"""

from collections.abc import Sequence
from typing import Any

from posttrain.data.filters import language_identifier

RELATIONS = ("at least", "less than")


def count(value: Any) -> int:
    """Read a whole number that is not negative; 3.0, as tables with gaps have it, is one."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    if not whole or value < 0:
        raise ValueError(f"must be a whole number, not {value!r}")
    return int(value)


def text(value: Any) -> str:
    """Read a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a text, not {value!r}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """Read a list of texts that is not empty."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"must be a list of texts, not {value!r}")
    return tuple(text(each) for each in value)


def flag(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def one_character(value: Any) -> str:
    """Read a single character: a letter, or a mark such as `#`."""
    if not isinstance(value, str) or len(value) != 1:
        raise ValueError(f"must be a single letter or mark, not {value!r}")
    return value


def relation(value: Any) -> str:
    """Read how a count is compared."""
    if value not in RELATIONS:
        raise ValueError(f"must be {' or '.join(map(repr, RELATIONS))}, not {value!r}")
    return str(value)


def language(value: Any) -> str:
    """Read a language by its code of ISO 639-1 that py3langid knows."""
    known = language_identifier().labels
    if value not in known:
        raise ValueError(f"must be one of {', '.join(sorted(known))}, not {value!r}")
    return str(value)
