"""Every format, as written by the libraries that people write it with, and the ways each can be broken."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.data.files import READERS, Fault, Malformed, parse_json, read_file, read_path
from posttrain.errors import DataError

ROWS = [{"prompt": "Hello\u2028there", "n": 1}, {"prompt": 'a "quoted", line\nand another', "n": 2}]


def written(folder: Path, extension: str) -> Path:
    """ROWS in a file of each format."""
    path = folder / f"rows{extension}"
    table = pa.Table.from_pylist(ROWS)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if extension == ".jsonl":
        path.write_bytes(lines)
    elif extension == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif extension == ".json":
        path.write_text(json.dumps({"data": ROWS}))
    elif extension == ".csv":
        path.write_bytes('prompt,n\r\nHello\u2028there,1\r\n"a ""quoted"", line\nand another",2\r\n'.encode())
    elif extension == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return path


def faults(path: Path) -> list[tuple[str, Fault]]:
    """Where the malformed entries of a file stand, without its folder."""
    return [(origin.rsplit("/")[-1], entry.fault) for origin, entry in read_file(path) if isinstance(entry, Malformed)]


@pytest.mark.parametrize("extension", READERS)
def test_every_format_gives_the_same_rows(extension: str, tmp_path: Path) -> None:
    path = written(tmp_path, extension)
    expected = [{**row, "n": str(row["n"])} for row in ROWS] if extension == ".csv" else ROWS
    entries = list(read_file(path))
    assert [record for _, record in entries] == expected
    second = {".jsonl": "2", ".jsonl.gz": "2", ".csv": "3"}.get(extension, "row 2")
    assert entries[1][0] == f"{path}:{second}"


def test_arrow_files_are_read_like_arrow_streams(tmp_path: Path) -> None:
    table, path = pa.Table.from_pylist(ROWS), tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert [record for _, record in read_file(path)] == ROWS


def test_a_folder_saved_by_datasets_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert [record for _, record in read_file(arrow)] == ROWS


def test_json_may_be_a_list_or_lines_under_the_wrong_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    assert [record for _, record in read_file(path)] == ROWS
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    assert [origin for origin, _ in read_file(path)] == [f"{path}:1", f"{path}:2"]
    for row in (ROWS[0], {"data": "a column of this name"}):
        path.write_text(json.dumps(row) + "\n")
        assert list(read_file(path)) == [(f"{path}:1", row)]


def test_byte_order_mark_crlf_and_blank_lines_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n')
    assert list(read_file(path)) == [(f"{path}:1", {"prompt": "a"}), (f"{path}:3", {"prompt": "b"})]
    table = tmp_path / "windows.csv"
    table.write_bytes(b"\xef\xbb\xbfprompt\r\na\r\n\r\nb\r\n")
    assert [record for _, record in read_file(table)] == [{"prompt": "a"}, {"prompt": "b"}]


def test_bad_lines_of_jsonl_are_told_apart_and_hide_no_good_one(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [b'{"a": 1}', b'{"a": }', b'{"a": "\xff"}', b"[1]", b'{"a": NaN}', b"1" * 5000, b"[" * 100_000]
    path.write_bytes(b"\n".join(lines) + b'\n{"a": 2}\n{"a": "cut')
    assert faults(path) == [
        ("bad.jsonl:2", Fault.JSON),
        ("bad.jsonl:3", Fault.ENCODING),
        ("bad.jsonl:4", Fault.NOT_A_ROW),
        ("bad.jsonl:5", Fault.JSON),
        ("bad.jsonl:6", Fault.JSON),
        ("bad.jsonl:7", Fault.JSON),
        ("bad.jsonl:9", Fault.TRUNCATED),
    ]
    assert [entry for _, entry in read_file(path) if isinstance(entry, dict)] == [{"a": 1}, {"a": 2}]


def test_a_line_cut_inside_a_character_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xe2\x82')
    assert faults(path) == [("cut.jsonl:2", Fault.TRUNCATED)]


def test_a_whole_last_line_without_newline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "whole.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert not faults(path)


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b'prompt,answer\nok,1\nshort\nlong,1,2\n\xff,1\n"two\nlines",1\n"bad"quote,1\nok again,1\n"open,1\n'
    )
    assert faults(path) == [
        ("bad.csv:3", Fault.CSV),
        ("bad.csv:4", Fault.CSV),
        ("bad.csv:5", Fault.ENCODING),
        ("bad.csv:8", Fault.CSV),
        ("bad.csv:10", Fault.CSV),
    ]
    good = [(origin.rsplit(":")[-1], entry["prompt"]) for origin, entry in read_file(path) if isinstance(entry, dict)]
    assert good == [("2", "ok"), ("6", "two\nlines"), ("9", "ok again")]


def test_a_megabyte_in_one_cell_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text("prompt\n" + "x" * 1_000_000 + "\n")
    ((_, record),) = read_file(path)
    assert isinstance(record, dict)
    assert len(record["prompt"]) == 1_000_000


def test_one_bad_string_in_parquet_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    strings = pa.array([b"a", b"b", b"\xff\xfe", b"d"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": strings}), path)
    assert faults(path) == [("bad.parquet:row 3", Fault.ENCODING)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{\n  "rows": []\n}', "expected a list of rows"),
        ("a.json", b"3", "expected a list of rows"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b'["\xff"]', "not valid UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "stands twice"),
        ("a.csv", b'"a"b\n', "the header is not valid CSV"),
        ("a.jsonl.gz", b'{"a": 1}\n', "not a readable gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-4], "not a readable gzip file"),
        ("a.parquet", b"PAR1 no more", "not a readable Parquet file"),
        ("a.arrow", b"nothing", "not a readable Arrow file"),
        ("a.arrow", b"ARROW1nothing", "not a readable Arrow file"),
        ("a.txt", b"text", r"expected a file ending in \.jsonl"),
    ],
)
def test_unreadable_files_are_refused_as_a_whole(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_file(tmp_path / name))
    assert name in str(caught.value)


def test_empty_files_have_no_entries(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).touch()
        assert list(read_file(tmp_path / name)) == []


def test_the_split_chooses_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in (0, 1):
        pq.write_table(pa.table({"n": [shard]}), tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    (tmp_path / "test.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "README.md").write_text("train")
    assert [record for _, record in read_path(tmp_path, "train")] == [{"n": 0}, {"n": 1}]
    assert [record for _, record in read_path(tmp_path, "test")] == [{"n": 2}]
    with pytest.raises(DataError, match=r'no file for the split "validation"\. Found: test\.jsonl, train-00000'):
        list(read_path(tmp_path, "validation"))
    (tmp_path / "test.csv").write_text("n\n3\n")
    with pytest.raises(DataError, match="more than once"):
        list(read_path(tmp_path, "test"))
    (tmp_path / "validation.jsonl.gz").write_bytes(gzip.compress(b'{"n": 4}\n', mtime=0))
    assert [record for _, record in read_path(tmp_path, "validation")] == [{"n": 4}]


def test_json_is_strict() -> None:
    for text in ("NaN", "[Infinity]", "{'a': 1}", "", "1 2"):
        with pytest.raises(Malformed):
            parse_json(text)
