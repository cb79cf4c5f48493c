"""Reads JSONL (also gzipped), JSON, CSV, Parquet and Arrow files into records, each with the place it came from.

Floor 1. Knows formats, not schemas; a row that cannot be read becomes a `Malformed`, and reading goes on.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from posttrain.errors import DataError


class Fault(StrEnum):
    """What can be wrong with a row; those in LEFT_OUT are left out and told, the others refuse the file."""

    JSON = "not valid JSON"
    CSV = "not valid CSV"
    TRUNCATED = "truncated last line"
    ENCODING = "not valid UTF-8"
    NOT_A_ROW = "not an object with columns"
    NUL = "NUL character"
    SURROGATE = "lone surrogate"
    COLUMN = "missing column"
    TYPE = "wrong type"
    ROLE = "unknown role"
    TURNS = "turns out of order"
    EMPTY_PROMPT = "empty prompt"
    EMPTY_COMPLETION = "empty completion"
    EMPTY_TEXT = "empty text"
    NO_GOLD = "no gold answer"
    CHOICES = "unusable choices"
    DUPLICATE = "duplicate row"
    NOT_GRADABLE = "no final answer to grade (a proof, say)"
    SAME = "chosen and rejected are the same"
    PROMPT_LENGTH = "prompt too short or too long"
    COMPLETION_LENGTH = "completion too short or too long"
    REFUSAL = "refusal"
    LANGUAGE = "in another language"
    REPEATED = "repeated but for case and white space"
    NEAR_DUPLICATE = "near duplicate"


LEFT_OUT = frozenset(
    {
        Fault.DUPLICATE,  # legitimate in public data sets
        Fault.NOT_GRADABLE,
        Fault.SAME,
        Fault.PROMPT_LENGTH,  # by a filter that the settings ask for
        Fault.COMPLETION_LENGTH,
        Fault.REFUSAL,
        Fault.LANGUAGE,
        Fault.REPEATED,
        Fault.NEAR_DUPLICATE,
    }
)


class Malformed(Exception):
    """One row that cannot be used: the kind of fault and what exactly was met."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail


SPLITS = ("train", "validation", "test")
Record = dict[str, Any]
Entry = tuple[str, Record | Malformed]  # where it stands ("file.jsonl:12"), and what stands there


def read_file(path: Path) -> Iterator[Entry]:
    """Yield the entries of one file, by its extension; an empty file yields none."""
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    reader = READERS.get(_ending(path))
    if reader is None:
        raise DataError(f"{path}: expected a file ending in {', '.join(READERS)}, came {path.suffix or 'no extension'}")
    return reader(path)


def _ending(path: Path) -> str:
    """Return the end of a file's name that names its reader, such as ".jsonl.gz"; empty where it has none."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), "")


def read_path(path: Path, split: str) -> Iterator[Entry]:
    """Yield the entries of a file, or of the files of one split in a directory (in it, or in its `data/`)."""
    files = split_files(path, split) if path.is_dir() else [path]
    for file in files:
        yield from read_file(file)


def split_files(directory: Path, split: str) -> list[Path]:
    """Return the files of a split in a directory: `test.jsonl`, or shards such as `test-00000-of-00002.parquet`."""
    found = _data_files(directory)
    chosen = [file for file in found if _is_of_split(file, split)]
    if not chosen:
        listing = ", ".join(file.name for file in found) or "no data file"
        fix = f"--data.path {found[0]}" if found else None
        raise DataError(f'{directory} has no file for the split "{split}". Found: {listing}', fix=fix)
    if len({(file.parent, _ending(file)) for file in chosen}) > 1:
        listing = ", ".join(str(file.relative_to(directory)) for file in chosen)
        raise DataError(
            f'{directory} holds the split "{split}" more than once: {listing}', fix=f"--data.path {chosen[0]}"
        )
    return chosen


def splits_in(directory: Path) -> tuple[str, ...]:
    """Return the splits that a directory has files of."""
    found = _data_files(directory)
    return tuple(split for split in SPLITS if any(_is_of_split(file, split) for file in found))


def _data_files(directory: Path) -> list[Path]:
    return [
        file
        for folder in (directory, directory / "data")
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if _ending(file)
    ]


def _is_of_split(file: Path, split: str) -> bool:
    stem = file.name[: len(file.name) - len(_ending(file))]
    return stem == split or stem.startswith((f"{split}-", f"{split}_"))


def read_jsonl(path: Path) -> Iterator[Entry]:
    """Yield one entry for each line; a byte order mark at the start, CRLF ends and blank lines are no faults."""
    with path.open("rb") as lines:  # bytes: one bad line must not hide the others, and U+2028 ends no line
        yield from _line_entries(path, lines)


def read_gzipped_jsonl(path: Path) -> Iterator[Entry]:
    """Yield the entries of JSON lines in a gzip file; they stand at their lines in what it holds."""
    try:
        with gzip.open(path) as lines:
            yield from _line_entries(path, lines)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable gzip file ({_first_line(error)})") from None


def _line_entries(path: Path, lines: Iterable[bytes]) -> Iterator[Entry]:
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield f"{path}:{number}", _parse_line(line)


def _parse_line(line: bytes) -> Record | Malformed:
    try:
        return _as_record(parse_json(line.decode("utf-8")))
    except Malformed as malformed:
        if line.endswith(b"\n") or malformed.fault is not Fault.JSON:
            return malformed
        return Malformed(Fault.TRUNCATED, malformed.detail)
    except UnicodeDecodeError as error:
        return Malformed(Fault.ENCODING, f"byte {error.start}") if line.endswith(b"\n") else Malformed(Fault.TRUNCATED)


def parse_json(text: str) -> Any:
    """Parse strict JSON: NaN and Infinity, which Python would accept, are faults like any other."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Malformed(Fault.JSON, f"{error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting without end
        raise Malformed(Fault.JSON, str(error).split(";")[0]) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _as_record(value: Any) -> Record | Malformed:
    if isinstance(value, dict):
        return value
    return Malformed(Fault.NOT_A_ROW, f"came {type(value).__name__}")


def read_json(path: Path) -> Iterator[Entry]:
    """Yield the rows of a JSON list or of {"data": [...]}; a file of JSON lines, even of one, is read as such."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        value = parse_json(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {Fault.ENCODING} (byte {error.start})") from None
    except Malformed as malformed:
        first = next(read_jsonl(path), None)
        if first is None or isinstance(first[1], Malformed):
            raise DataError(f"{path}: {malformed.fault} ({malformed.detail})") from None
        yield from read_jsonl(path)
        return
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        if isinstance(value, dict) and "\n" not in text.strip():
            yield from read_jsonl(path)
            return
        raise DataError(f'{path}: expected a list of rows or {{"data": [...]}}, came {type(value).__name__}')
    for number, row in enumerate(rows, start=1):
        yield f"{path}:row {number}", _as_record(row)


def read_csv(path: Path) -> Iterator[Entry]:
    """Yield the rows of a CSV with a header, every value a string; the origin is the line a row begins at."""
    csv.field_size_limit(sys.maxsize)  # the default refuses cells above 128 KB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise DataError(f"{path}:1: the header is {Fault.CSV} ({error})") from None
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: a column name stands twice in the header: {', '.join(header)}")
        while True:
            origin = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield origin, Malformed(Fault.CSV, str(error))
                continue
            if cells is None:
                return
            if cells:
                yield origin, _csv_record(header, cells)


def _csv_record(header: list[str], cells: list[str]) -> Record | Malformed:
    if len(cells) != len(header):
        return Malformed(Fault.CSV, f"{len(cells)} cells under {len(header)} columns")
    if any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell):
        return Malformed(Fault.ENCODING)  # surrogateescape's marks of bytes that are no UTF-8
    return dict(zip(header, cells, strict=True))


def read_parquet(path: Path) -> Iterator[Entry]:
    """Yield the rows of a Parquet file, batch by batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _batch_entries(path, file.iter_batches(batch_size=1024))
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({_first_line(error)})") from None


def read_arrow(path: Path) -> Iterator[Entry]:
    """Yield the rows of an Arrow IPC file, or of an IPC stream as `datasets` writes them."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file:
            if file.read(6) == b"ARROW1":
                opened = pa.ipc.open_file(path)
                batches: Iterator[Any] = (opened.get_batch(index) for index in range(opened.num_record_batches))
                yield from _batch_entries(path, batches)
            else:
                file.seek(0)
                yield from _batch_entries(path, iter(pa.ipc.open_stream(file)))
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Arrow file ({_first_line(error)})") from None


def _batch_entries(path: Path, batches: Iterator[Any]) -> Iterator[Entry]:
    number = 0
    for batch in batches:
        for record in _batch_records(batch):
            number += 1
            yield f"{path}:row {number}", record


def _batch_records(batch: Any) -> list[Record | Malformed]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # one bad string fails the whole batch: find its row
        if batch.num_rows == 1:
            return [Malformed(Fault.ENCODING)]
        return [record for row in range(batch.num_rows) for record in _batch_records(batch.slice(row, 1))]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_gzipped_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
