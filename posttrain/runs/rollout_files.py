"""The rollouts of a step as a Parquet file that any table reader opens.

Floor 1: knows rows of plain values, not rewards or tokens.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from posttrain.runs import durable


def write_rollouts(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows atomically; a column that a row lacks is null there."""
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: pyarrow.array([row.get(name) for row in rows]) for name in columns})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    durable.write_file(path, buffer.getbuffer())


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """Return the rows of one step's file."""
    return pyarrow.parquet.read_table(path).to_pylist()
