"""Foreign formats and the named sources in them: what becomes of a row, of its odd cases, and of a bad one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.files import Fault, Malformed
from posttrain.data.formats import FORMATS, format_of
from posttrain.data.rows import Row
from posttrain.data.sources import Scan, load_rows, scan_rows
from posttrain.errors import DataError
from posttrain.settings import DataSettings

PREFERENCE = ("preference",)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def scan(rows: list[dict[str, Any]], folder: Path, *, source: str | None = None, kinds: Any = ()) -> Scan:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(source=source, path=str(path)) if source else DataSettings(source=str(path))
    return scan_rows(settings, seed=0, kinds=kinds)


def only(rows: list[dict[str, Any]], folder: Path, **options: Any) -> Row:
    (row,) = scan(rows, folder, **options).rows
    return row


ALPACA = {"instruction": "Sort these.", "input": "3, 1, 2", "output": "1, 2, 3", "text": "### Instruction: ..."}


def test_alpaca(tmp_path: Path) -> None:
    row = only([ALPACA], tmp_path)
    assert row.kind == "prompt_completion"
    assert row.prompt == (user("Sort these.\n\n3, 1, 2"),)
    assert row.completion == (assistant("1, 2, 3"),)


def test_alpaca_with_system_and_history_and_without_input(tmp_path: Path) -> None:
    record = {"instruction": "And now?", "input": "", "output": "5", "system": "Be brief.", "history": [["2+2?", "4"]]}
    row = only([record], tmp_path)
    assert row.prompt == (system("Be brief."), user("2+2?"), assistant("4"), user("And now?"))


def test_sharegpt(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    row = only([{"id": "a", "conversations": [{"from": "system", "value": "Be kind."}, *turns]}], tmp_path)
    assert row.kind == "messages"
    assert row.messages == (system("Be kind."), user("Hi"), assistant("Hello"))
    assert dict(row.columns) == {"id": "a"}
    assert only([{"conversations": turns, "system": "Be kind."}], tmp_path).messages == row.messages
    as_roles = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert only([{"conversations": as_roles}], tmp_path).messages == row.messages[1:]


def test_flan(tmp_path: Path) -> None:
    row = only([{"inputs": "Translate: chat", "targets": "cat", "task": "wmt"}], tmp_path)
    assert (row.kind, row.prompt, row.completion) == ("prompt_completion", "Translate: chat", "cat")
    assert dict(row.columns) == {"task": "wmt"}


@pytest.mark.parametrize("source", [None, "orca_dpo"])
def test_orca_pairs(tmp_path: Path, source: str | None) -> None:
    record = {"system": "You help.", "question": "2+2?", "chosen": "4", "rejected": "5"}
    row = only([record], tmp_path, source=source, kinds=PREFERENCE)
    assert row.kind == "preference"
    assert row.prompt == (system("You help."), user("2+2?"))
    assert (row.chosen, row.rejected) == ((assistant("4"),), (assistant("5"),))
    row = only([{**record, "system": ""}], tmp_path, source=source, kinds=PREFERENCE)
    assert row.prompt == (user("2+2?"),)


BINARIZED = {
    "prompt": "2+2?",
    "prompt_id": "x",
    "chosen": [user("2+2?"), assistant("4")],
    "rejected": [user("2+2?"), assistant("5")],
    "messages": [user("2+2?"), assistant("4")],
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}


def test_binarized_ultrafeedback(tmp_path: Path) -> None:
    row = only([BINARIZED], tmp_path, source="ultrafeedback_binarized", kinds=PREFERENCE)
    assert row.prompt == (user("2+2?"),)
    assert (row.chosen, row.rejected) == ((assistant("4"),), (assistant("5"),))
    assert row.columns["score_chosen"] == 8.5
    assert "margin" not in row.columns


RAW = {
    "instruction": "Name a colour.",
    "source": "ui",
    "completions": [
        {"model": "a", "response": "Red.", "overall_score": 7.0},
        {"model": "b", "response": "Stone.", "overall_score": "2.5"},
        {"model": "c", "response": "Blue, a colour.", "overall_score": 9},
        {"model": "d", "response": "?", "overall_score": None},
    ],
}


@pytest.mark.parametrize("source", [None, "ultrafeedback"])
def test_raw_ultrafeedback_pairs_the_best_with_the_worst(tmp_path: Path, source: str | None) -> None:
    row = only([RAW], tmp_path, source=source, kinds=PREFERENCE)
    assert row.prompt == (user("Name a colour."),)
    assert (row.chosen, row.rejected) == ((assistant("Blue, a colour."),), (assistant("Stone."),))
    assert row.columns["margin"] == 6.5
    equal = {**RAW, "completions": [{**each, "overall_score": 5} for each in RAW["completions"]]}
    assert scan([equal], tmp_path, source=source, kinds=PREFERENCE).tally.counts == Counter({Fault.SAME: 1})


def test_hh_rlhf_as_conversations(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A joke?\n\nAssistant:"
    row = only(
        [{"chosen": f"{start} Knock.", "rejected": f"{start} No."}], tmp_path, source="hh_rlhf", kinds=PREFERENCE
    )
    assert row.prompt == (user("Hi"), assistant("Hello."), user("A joke?"))
    assert (row.chosen, row.rejected) == ((assistant("Knock."),), (assistant("No."),))
    split = "\n\nHuman: Hi\n\nHuman: again\n\nAssistant:"
    row = only([{"chosen": f"{split} Yes?", "rejected": f"{split} No."}], tmp_path, source="hh_rlhf", kinds=PREFERENCE)
    assert row.prompt == (user("Hi\n\nagain"),)


@pytest.mark.parametrize("source", [None, "hh_rlhf"])
def test_the_side_of_a_pair_that_says_nothing_is_named(tmp_path: Path, source: str | None) -> None:
    start = "\n\nHuman: Hi\n\nAssistant:"
    rows = [{"chosen": f"{start} ", "rejected": f"{start} No."}, {"chosen": f"{start} Yes.", "rejected": start}]
    found = scan(rows, tmp_path, source=source, kinds=PREFERENCE)
    assert not found.rows
    chosen, rejected = found.tally.places[Fault.EMPTY_COMPLETION]
    assert "rows.jsonl:1 (chosen" in chosen
    assert "rows.jsonl:2 (rejected" in rejected


def oasst(id: str, parent: str | None, role: str, text: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    return {"message_id": id, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en", **more}


OASST = [
    oasst("q", None, "prompter", "Hi"),
    oasst("worst", "q", "assistant", "What?", 2),
    oasst("best", "q", "assistant", "Hello!", 0),
    oasst("middle", "q", "assistant", "Yes?", 1),
    oasst("gone", "q", "assistant", "Deleted", 0, deleted=True),
    oasst("q2", "best", "prompter", "A joke?"),
    oasst("one", "q2", "assistant", "Knock.", 0),
    oasst("two", "q2", "assistant", "No.", 1),
    oasst("open", "one", "prompter", "Who's there?"),
    oasst("lonely", None, "prompter", "Nobody?"),
]


def test_oasst_conversations_follow_the_best_replies(tmp_path: Path) -> None:
    row = only(OASST, tmp_path, source="oasst")
    assert row.messages == (user("Hi"), assistant("Hello!"), user("A joke?"), assistant("Knock."))
    assert row.columns["lang"] == "en"


def test_oasst_pairs_are_the_first_and_the_last_reply(tmp_path: Path) -> None:
    first, second = scan(OASST, tmp_path, source="oasst_pairs", kinds=PREFERENCE).rows
    assert first.prompt == (user("Hi"),)
    assert (first.chosen, first.rejected) == ((assistant("Hello!"),), (assistant("What?"),))
    assert second.prompt == (user("Hi"), assistant("Hello!"), user("A joke?"))
    assert (second.chosen, second.rejected) == ((assistant("Knock."),), (assistant("No."),))


def test_columns_of_trl_come_first() -> None:
    assert format_of(["messages", "conversations"]) is None
    assert format_of(["prompt", "completion", "instruction", "output"]) is None
    assert format_of(["instruction", "input", "output", "text"]) is FORMATS["alpaca"]
    assert format_of(["system", "question", "chosen", "rejected"]) is None, "no stage asked for pairs"
    assert format_of(["system", "question", "chosen", "rejected"], PREFERENCE) is FORMATS["orca_dpo"]
    assert format_of(["prompt", "chosen", "rejected"], PREFERENCE) is None


BAD = [
    ("alpaca", {"instruction": "a", "output": 5}, Fault.TYPE),
    ("alpaca", {"instruction": None, "output": "b"}, Fault.COLUMN),
    ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, Fault.TYPE),
    ("sharegpt", {"conversations": "Hi"}, Fault.TYPE),
    ("sharegpt", {"conversations": ["Hi"]}, Fault.TYPE),
    ("sharegpt", {"conversations": [{"from": "alien", "value": "Hi"}]}, Fault.ROLE),
    ("flan", {"inputs": ["a"], "targets": "b"}, Fault.TYPE),
    ("orca_dpo", {"question": "a", "chosen": ["b"], "rejected": "c"}, Fault.TYPE),
    ("ultrafeedback", {"instruction": "a", "completions": "b"}, Fault.TYPE),
    ("ultrafeedback", {"instruction": "a", "completions": [{"response": "b", "overall_score": "good"}]}, Fault.TYPE),
]


@pytest.mark.parametrize(("name", "record", "fault"), BAD)
def test_bad_records_are_malformed(name: str, record: dict[str, Any], fault: Fault) -> None:
    with pytest.raises(Malformed) as caught:
        FORMATS[name].convert(record)
    assert caught.value.fault is fault


def test_checks_of_rows_apply_after_the_conversion(tmp_path: Path) -> None:
    empty = {**ALPACA, "output": " "}
    assert scan([ALPACA, empty], tmp_path).tally.counts == Counter({Fault.EMPTY_COMPLETION: 1})
    broken = [{**each, "parent_id": None, "role": "alien"} for each in OASST[:1]]
    assert scan([*OASST, *broken], tmp_path, source="oasst").tally.counts == Counter({Fault.ROLE: 1})


def test_a_file_of_another_schema_is_refused_by_a_named_source(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "2+2?", "answer": "4"}) + "\n")
    with pytest.raises(DataError, match="instruction"):
        load_rows(DataSettings(source="alpaca", path=str(path)), seed=0)
