"""TRL's schemas, standard and conversational, and everything that can be wrong with a single row."""

from typing import Any

import pytest

from posttrain.data.files import Fault, Malformed
from posttrain.data.rows import build_row, kind_of, record_id

USER = {"role": "user", "content": "Hello"}
REPLY = {"role": "assistant", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}


def build(record: dict[str, Any], **options: Any) -> Any:
    kind = kind_of(record)
    assert kind is not None
    return build_row(record, id="0" * 16, kind=kind, origin="a.jsonl:1", **options)


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (["prompt"], "prompt"),
        (["prompt", "completion", "answer"], "prompt_completion"),
        (["messages"], "messages"),
        (["prompt", "prompt_id", "messages"], "messages"),
        (["text", "label"], "text"),
        (["prompt", "text"], "prompt"),
        (["question", "answer"], None),
        (["completion"], None),
        ([], None),
    ],
)
def test_columns_decide_the_kind(columns: list[str], kind: str | None) -> None:
    assert kind_of(columns) == kind


def test_standard_and_conversational_rows_of_each_kind() -> None:
    assert build({"prompt": "a"}).prompt == "a"
    assert build({"prompt": [SYSTEM, USER]}).prompt == (SYSTEM, USER)
    assert build({"prompt": "a", "completion": "b"}).completion == "b"
    assert build({"prompt": [USER], "completion": [REPLY, USER, REPLY]}).completion == (REPLY, USER, REPLY)
    assert build({"messages": [SYSTEM, USER, REPLY]}).messages == (SYSTEM, USER, REPLY)
    assert build({"text": " a "}).text == " a "


def test_further_columns_are_kept_read_only_and_without_blanks() -> None:
    row = build({"prompt": "a", "answer": "7", "info": {"tags": ["x"]}, "level": None})
    assert dict(row.columns) == {"answer": "7", "info": {"tags": ("x",)}}
    with pytest.raises(TypeError):
        row.columns["answer"] = "8"


def test_keys_of_messages_that_templates_read_are_kept() -> None:
    thinking = {**REPLY, "reasoning_content": "hm", "tool_calls": None}
    assert build({"messages": [USER, thinking]}).messages[1] == {**REPLY, "reasoning_content": "hm"}


def test_a_style_turns_a_prompt_column_into_its_prompt() -> None:
    assert build({"prompt": "1+1?"}, prompt_style="nano").prompt == "User: 1+1?\nAssistant: <think>"
    with pytest.raises(Malformed) as caught:
        build({"prompt": [USER]}, prompt_style="nano")
    assert caught.value.fault is Fault.TYPE


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"prompt": ""}, Fault.EMPTY_PROMPT),
        ({"prompt": " \n"}, Fault.EMPTY_PROMPT),
        ({"prompt": []}, Fault.EMPTY_PROMPT),
        ({"prompt": None}, Fault.COLUMN),
        ({"prompt": 7}, Fault.TYPE),
        ({"prompt": {"role": "user"}}, Fault.TYPE),
        ({"prompt": ["Hello"]}, Fault.TYPE),
        ({"prompt": [{"role": "user"}]}, Fault.TYPE),
        ({"prompt": [{"content": "Hello"}]}, Fault.TYPE),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, Fault.TYPE),
        ({"prompt": [{"role": "human", "content": "Hello"}]}, Fault.ROLE),
        ({"prompt": [{"role": "user", "content": " "}]}, Fault.EMPTY_PROMPT),
        ({"prompt": [USER, REPLY]}, Fault.TURNS),
        ({"prompt": [USER, SYSTEM]}, Fault.TURNS),
        ({"prompt": "a", "completion": ""}, Fault.EMPTY_COMPLETION),
        ({"prompt": "a", "completion": None}, Fault.COLUMN),
        ({"prompt": "a", "completion": [REPLY]}, Fault.TYPE),
        ({"prompt": [USER], "completion": "b"}, Fault.TYPE),
        ({"prompt": [USER], "completion": []}, Fault.EMPTY_COMPLETION),
        ({"prompt": [USER], "completion": [USER]}, Fault.TURNS),
        ({"messages": "Hello"}, Fault.TYPE),
        ({"messages": []}, Fault.EMPTY_PROMPT),
        ({"messages": [USER]}, Fault.EMPTY_COMPLETION),
        ({"messages": [REPLY]}, Fault.TURNS),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, Fault.EMPTY_COMPLETION),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, Fault.TYPE),
        ({"text": "\t"}, Fault.EMPTY_TEXT),
        ({"text": ["a"]}, Fault.TYPE),
    ],
)
def test_each_fault_is_named(record: dict[str, Any], fault: Fault) -> None:
    with pytest.raises(Malformed) as caught:
        build(record)
    assert caught.value.fault is fault


def test_ids_are_of_the_content() -> None:
    row_id = record_id({"prompt": "a", "answer": 1, "level": None})
    assert row_id == record_id({"answer": 1, "prompt": "a"})
    assert len({row_id, record_id({"prompt": "a", "answer": 2}), record_id({"prompt": "a"})}) == 3
    assert record_id({"prompt": "é"}) == "97ff3ba506fd0533"  # the same on every machine, in every run


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"prompt": "a\x00"}, Fault.NUL),
        ({"messages": [{"role": "user", "content": "\x00"}]}, Fault.NUL),
        ({"prompt": "a", "tags": [("k", "\x00")]}, Fault.NUL),
        ({"prompt": "a", "an\x00swer": 1}, Fault.NUL),
        ({"prompt": "\ud800"}, Fault.SURROGATE),
        ({"prompt": "a", "info": {"\udfff": 1}}, Fault.SURROGATE),
    ],
)
def test_characters_that_break_files_and_tokenizers_are_found_in_every_column(
    record: dict[str, Any], fault: Fault
) -> None:
    with pytest.raises(Malformed) as caught:
        record_id(record)
    assert caught.value.fault is fault
    assert record_id({"prompt": r"a written \u0000 and \ud800, and 😀"})
