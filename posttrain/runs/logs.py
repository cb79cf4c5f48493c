"""The line logs of a run: JSON objects, one a line, appended as they happen and cut back on resume.

Floor 1: knows files of JSON lines. JSON has no word for NaN and the infinities, so they are written as the strings
"NaN", "Infinity" and "-Infinity", which `float()` reads.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import StorageError
from posttrain.runs import durable

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any) -> Any:
    """Return a value as strict JSON holds it: numbers of array libraries as Python's, non-finite ones as strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar or a tensor of one number
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one line for each row."""
    durable.append_lines(path, [json.dumps(plain(row), allow_nan=False) for row in rows])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log that may still be growing: a torn last line is left out, an absent file has none.

    Raises StorageError naming the line when another one is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_row(line, f"{path}:{index}") for index, line in enumerate(lines, 1)]


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line).items()
    except (ValueError, AttributeError):
        raise StorageError(f"{place} is damaged: {line[:40]!r}", fix="delete that line, or restore the file") from None
    return {key: NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row}


def drop_torn_line(path: Path) -> None:
    """Cut a last line that its writer did not live to finish."""
    if path.is_file():
        content = path.read_bytes()
        if (whole := content.rfind(b"\n") + 1) < len(content):
            durable.truncate(path, whole)


def cut(path: Path, offset: int, orphan: Path) -> int:
    """Move what follows byte `offset` of a log to the file `orphan`, and return how many whole lines that was."""
    content = path.read_bytes() if path.is_file() else b""
    tail = content[offset:]
    if tail:
        durable.write_file(orphan, tail)
        durable.truncate(path, offset)
    return tail.count(b"\n")
