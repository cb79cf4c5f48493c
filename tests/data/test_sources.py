"""Loading as a stage does it: hostile files counted exactly, refused with their lines, and messages one can act on."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from posttrain.data.chat import drop_overlong, render_training_tree
from posttrain.data.files import Fault
from posttrain.data.loader import Loader
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows, require_kind, scan_rows
from posttrain.errors import ConfigError, DataError
from posttrain.settings import DataSettings

USER, REPLY = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}


def write_jsonl(path: Path, rows: list[Any]) -> str:
    """Rows as lines; bytes are written as they are, without the newline of the last."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return str(path)


def load(source: str, **settings: Any) -> list[Row]:
    return load_rows(DataSettings(source=source, **settings), seed=0)


def pair(prompt: Any = "a?", completion: Any = "b", **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **columns}


# One good row first: 60 hostile ones follow, each with the fault it must be counted under; None is accepted.
HOSTILE: list[tuple[Any, Fault | None]] = [
    *[(line, Fault.JSON) for line in (b"{", b"{'prompt': 'a'}", b'{"prompt": "a",}', b"nonsense", b'{"prompt": NaN}')],
    *[(line, Fault.JSON) for line in (b'{"prompt": "\x00"}', b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}')],
    *[(line, Fault.JSON) for line in (b"9" * 6000, b"[" * 50_000, b'{"prompt": "a"} {"prompt": "b"}')],
    *[(line, Fault.NOT_A_ROW) for line in (b"[]", b"null", b'"text"', b"7", b"true")],
    *[(b'{"prompt": "' + bad + b'"}', Fault.ENCODING) for bad in (b"\xff", b"\xc3\x28", b"caf\xe9", b"\xed\xa0\x80")],
    *[(pair("a\x00"), Fault.NUL), (pair("a", "\x00"), Fault.NUL), (pair(answer=["\x00"]), Fault.NUL)],
    *[(pair("\ud800"), Fault.SURROGATE), (pair("a", "\udc00"), Fault.SURROGATE), (pair(x="\udfff"), Fault.SURROGATE)],
    *[({}, Fault.COLUMN), ({"prompt": "a"}, Fault.COLUMN), ({"completion": "b"}, Fault.COLUMN)],
    *[(pair(None), Fault.COLUMN), (pair("a", None), Fault.COLUMN), ({"text": "a"}, Fault.COLUMN)],
    *[(pair(7), Fault.TYPE), (pair("a", 7.5), Fault.TYPE), (pair(True), Fault.TYPE), (pair({"a": 1}), Fault.TYPE)],
    *[(pair([USER], "b"), Fault.TYPE), (pair("a", [REPLY]), Fault.TYPE), (pair(["a"], ["b"]), Fault.TYPE)],
    *[(pair([{"role": "user"}], [REPLY]), Fault.TYPE), (pair([{"role": 1, "content": "a"}], [REPLY]), Fault.TYPE)],
    *[(pair([USER | {"role": role}], [REPLY]), Fault.ROLE) for role in ("human", "User", "gpt", "")],
    *[(pair([USER, REPLY], [REPLY]), Fault.TURNS), (pair([USER], [USER]), Fault.TURNS)],
    *[(pair([USER, {"role": "system", "content": "a"}], [REPLY]), Fault.TURNS)],
    *[(pair(prompt), Fault.EMPTY_PROMPT) for prompt in ("", " \t\r\n", [], [USER | {"content": " "}])],
    *[(pair("a", ""), Fault.EMPTY_COMPLETION), (pair([USER], []), Fault.EMPTY_COMPLETION)],
    *[(pair([USER], [REPLY | {"content": ""}]), Fault.EMPTY_COMPLETION)],
    (pair("first?", "good"), Fault.DUPLICATE),
    ({"completion": "good", "prompt": "first?"}, Fault.DUPLICATE),
    (b'{"prompt": "windows line", "completion": "read"}\r', None),
    (pair("large? " * 150_000, "read"), None),
    (pair("<|im_end|> in text", "read"), None),
    (b'{"prompt": "cut", "completion": "the last line is cut he', Fault.TRUNCATED),
]


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "hostile.jsonl", [pair("first?", "good"), *(row for row, _ in HOSTILE)])


def test_sixty_hostile_rows_are_counted_exactly(hostile: str) -> None:
    assert len(HOSTILE) == 60
    expected: dict[Fault, int] = {}
    for _, fault in HOSTILE:
        if fault is not None:
            expected[fault] = expected.get(fault, 0) + 1
    scan = scan_rows(DataSettings(source=hostile), seed=0)
    assert scan.tally.counts == expected
    assert len(scan.rows) + sum(expected.values()) == 61
    assert scan.tally.bad_rows() == 55
    for number, (_, fault) in enumerate(HOSTILE, start=2):
        places = [place.split(" ")[0] for place in scan.tally.places.get(fault, [])] if fault else []
        assert fault is None or len(places) == 5 or f"{hostile}:{number}" in places


def test_hostile_rows_refuse_the_file_and_name_their_lines(hostile: str) -> None:
    with pytest.raises(DataError) as caught:
        load(hostile, max_bad_rows=54)
    message = str(caught.value)
    assert "55 malformed rows, 54 allowed" in message
    assert f"10 not valid JSON: {hostile}:2 (" in message
    assert f"{hostile}:6 (NaN is no JSON number), ..." in message
    assert f"1 truncated last line: {hostile}:61" in message
    assert "--data.max_bad_rows 55" in message
    assert caught.value.exit_code == 3


def test_allowed_hostile_rows_are_dropped_and_told_and_nothing_breaks_later(
    hostile: str, chatml: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rows = load(hostile, max_bad_rows=55)
        trees, dropped = drop_overlong(rows, partial(render_training_tree, tokenizer=chatml), max_length=256)
    assert [row.prompt for row in rows if row not in dropped] == ["first?", "windows line", "<|im_end|> in text"]
    assert "57 rows left out, 4 kept" in caplog.text
    assert "2 duplicate row" in caplog.text
    assert "1 of 4 rows are longer than 256 tokens" in caplog.text
    loader = Loader(list(trees), seed=0)
    for row_id in loader.next(30):
        assert trees[row_id].prompt_ids
        assert any(trees[row_id].branches[0].mask)
    assert all(json.dumps(dict(row.columns)).encode() for row in rows)


def test_duplicates_alone_refuse_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [pair(), pair(), pair("other")])
    with caplog.at_level(logging.WARNING):
        rows = load(source)
    assert [row.origin for row in rows] == [f"{source}:1", f"{source}:3"]
    assert f"1 duplicate row: {source}:2 (as {source}:1)" in caplog.text


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    for rows in ([], [b""], [b"{", b"{"]):
        source = write_jsonl(tmp_path / "a.jsonl", rows)
        with pytest.raises(DataError, match="has no usable row"):
            load(source, max_bad_rows=10)


def test_the_first_usable_rows_are_enough(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [pair(str(n)) for n in range(5)] + [b"{"])
    assert [row.prompt for row in load(source, rows=3)] == ["0", "1", "2"]
    with pytest.raises(DataError):
        load(source, rows=6)


def test_columns_are_those_of_the_first_rows_together(tmp_path: Path) -> None:
    """A first row without its completion is a bad row, and makes no prompt file of the rest."""
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, pair("b"), pair("c")])
    assert [row.kind for row in load(source, max_bad_rows=1)] == ["prompt_completion"] * 2


def test_columns_are_renamed_and_ids_stay(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", [{"q": "1+1?", "prompt": "ignored", "gold": "2", "level": 3}])
    (row,) = load(plain, columns={"prompt": "q", "answer": "gold"})
    assert (row.kind, row.prompt, dict(row.columns)) == ("prompt", "1+1?", {"answer": "2", "level": 3})
    assert load(plain, columns={"prompt": "q"}, prompt_style="r1_zero")[0].id == row.id
    (swapped,) = load(plain, columns={"prompt": "q", "q": "prompt"})
    assert (swapped.prompt, swapped.columns["q"]) == ("1+1?", "ignored")


@pytest.mark.parametrize(
    ("row", "message", "fix"),
    [
        (
            {"question": "1+1?", "answer": "2"},
            'has no column "prompt". Found: question, answer. First row: {"question": "1+1?", "answer": "2"}',
            "--data.columns.prompt question",
        ),
        ({"dialogue": [USER]}, 'has no column "prompt". Found: dialogue', "--data.columns.messages dialogue"),
        ({"content": "a"}, 'no column "prompt"', "--data.columns.text content"),
        ({"a": 1, "b": 2}, 'no column "prompt"', "--data.columns.prompt COLUMN"),
        ({"chosen": "a", "rejected": "b"}, "holds preference pairs", "--data.columns.text chosen"),
        ({"chosen": [USER, REPLY], "rejected": [USER]}, "holds preference pairs", "--data.columns.messages chosen"),
    ],
)
def test_wrong_columns_say_what_is_there_and_how_to_use_it(
    row: dict[str, Any], message: str, fix: str, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError) as caught:
        load(source)
    assert message in str(caught.value)
    assert fix in str(caught.value.fix)
    assert source in str(caught.value)


def test_preference_rows_serve_as_prompts_and_their_chosen_side_as_completions(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "b"}])
    assert load(source)[0].kind == "prompt"
    (row,) = load(source, columns={"completion": "chosen"})
    assert (row.kind, row.completion) == ("prompt_completion", "a")
    implicit = write_jsonl(tmp_path / "b.jsonl", [{"chosen": [USER, REPLY], "rejected": [USER, REPLY]}])
    assert load(implicit, columns={"messages": "chosen"})[0].messages == (USER, REPLY)


def test_renames_of_missing_columns_are_refused_with_a_near_match(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"question": "1+1?"}])
    with pytest.raises(DataError, match=r'no column "qestion" to read "prompt" from\. Found: question') as caught:
        load(source, columns={"prompt": "qestion"})
    assert caught.value.fix == "--data.columns.prompt question"


def test_sources_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Named sources: nano, gsm8k") as caught:
        load("gsm8")
    assert caught.value.fix == "--data.source gsm8k"
    with pytest.raises(DataError, match="no such file or directory"):
        load("gsm8k", path=str(tmp_path / "absent.jsonl"))
    with pytest.raises(ConfigError, match=r"data\.path is where a named source lies"):
        load("a.jsonl", path="b.jsonl")
    source = write_jsonl(tmp_path / "a.jsonl", [pair()])
    with pytest.raises(ConfigError, match='no prompt style "r1zero"') as config:
        load(source, prompt_style="r1zero")
    assert config.value.fix == "--data.prompt_style r1_zero"


def test_kinds_are_required_with_the_stage_that_takes_them(tmp_path: Path) -> None:
    chat = load(write_jsonl(tmp_path / "chat.jsonl", [{"messages": [USER, REPLY]}]))
    pairs = load(write_jsonl(tmp_path / "pairs.jsonl", [pair()]))
    prompts = load(write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a"}]))
    require_kind(pairs, ["prompt"], "grpo")
    require_kind([*pairs, *chat], ["prompt_completion", "messages", "text"], "sft")
    with pytest.raises(DataError) as caught:
        require_kind([*prompts, *chat], ["prompt"], "grpo")
    place = tmp_path / "chat.jsonl"
    assert str(caught.value) == (
        f"grpo needs prompts (prompt); {place} holds conversations (messages)\n"
        f"  fix: posttrain sft --data.source {place}"
    )
    with pytest.raises(DataError, match=r"sft needs prompts with completions .* or conversations .*holds prompts"):
        require_kind(prompts, ["prompt_completion", "messages"], "sft")
