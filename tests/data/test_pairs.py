"""Preference rows: schemas, implicit prompts, what is refused or left out, and their trees."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import render_prompt
from posttrain.data.files import Fault, Malformed
from posttrain.data.pairs import branch_labels, render_preference
from posttrain.data.rows import Row, build_row, kind_of
from posttrain.data.sources import load_rows, require_kind, scan_rows
from posttrain.errors import DataError
from posttrain.settings import DataSettings

USER = {"role": "user", "content": "How are you?"}
GOOD = {"role": "assistant", "content": "I am fine."}
BAD = {"role": "assistant", "content": "Go away."}


def build(record: dict[str, Any], **options: Any) -> Row:
    kind = kind_of(record, ("preference", "unpaired"))
    assert kind is not None
    return build_row(record, id="0" * 16, kind=kind, origin="a.jsonl:1", **options)


def fault_of(record: dict[str, Any]) -> Fault:
    with pytest.raises(Malformed) as caught:
        build(record)
    return caught.value.fault


# --- rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "wanted", "kind"),
    [
        (["prompt", "chosen", "rejected"], ("preference",), "preference"),
        (["chosen", "rejected", "messages"], ("preference",), "preference"),
        (["prompt", "chosen", "rejected", "messages"], (), "messages"),
        (["prompt", "chosen", "rejected"], (), "prompt"),
        (["prompt", "completion", "label"], ("preference", "unpaired"), "unpaired"),
        (["prompt", "completion", "label"], (), "prompt_completion"),
        (["prompt", "completion"], ("preference", "unpaired"), "prompt_completion"),
    ],
)
def test_columns_mean_pairs_only_to_a_stage_that_wants_them(
    columns: list[str], wanted: tuple[Any, ...], kind: str
) -> None:
    assert kind_of(columns, wanted) == kind


def test_pairs_with_a_prompt_standard_and_conversational() -> None:
    row = build({"prompt": "2+2?", "chosen": " 4", "rejected": " 5", "margin": 1.5, "score": 3})
    assert (row.prompt, row.chosen, row.rejected) == ("2+2?", " 4", " 5")
    assert dict(row.columns) == {"margin": 1.5, "score": 3}
    row = build({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    assert (row.prompt, row.chosen, row.rejected) == ((USER,), (GOOD,), (BAD,))
    assert build({"prompt": "2+2?", "chosen": " 4", "rejected": " 5"}, prompt_style="nano").prompt == (
        "User: 2+2?\nAssistant: <think>"
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "rests"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Hi you", "\n\nHuman: Hi\n\nAssistant: Hi there", "\n\nHuman: Hi\n\nAssistant:",
         (" Hi you", " Hi there")),
        ("\n\nAssistant: A\n\nHuman: B\n\nAssistant: C", "\n\nAssistant: A\n\nHuman: B\n\nAssistant: D",
         "\n\nAssistant: A\n\nHuman: B\n\nAssistant:", (" C", " D")),
        ("The sky is bluish", "The sky is blue", "The sky is", (" bluish", " blue")),
        ([USER, GOOD], [USER, BAD], [USER], ([GOOD], [BAD])),
        ([USER, GOOD, USER, GOOD], [USER, GOOD, USER, BAD], [USER, GOOD, USER], ([GOOD], [BAD])),
        ([USER, GOOD], [USER, GOOD, USER, BAD], [USER], ([GOOD], [GOOD, USER, BAD])),
    ],
)  # fmt: skip
def test_an_implicit_prompt_is_what_both_begin_with(chosen: Any, rejected: Any, prompt: Any, rests: Any) -> None:
    row = build({"chosen": chosen, "rejected": rejected})
    expected = [tuple(part) if isinstance(part, list) else part for part in (prompt, *rests)]
    assert [row.prompt, row.chosen, row.rejected] == expected


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b "}, Fault.SAME),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]}, Fault.SAME),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, Fault.TYPE),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, Fault.EMPTY_COMPLETION),
        ({"prompt": "a", "chosen": "b", "rejected": None}, Fault.COLUMN),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "large"}, Fault.TYPE),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, Fault.TYPE),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, Fault.TYPE),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "inf"}, Fault.TYPE),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 10**400}, Fault.TYPE),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": [1]}, Fault.TYPE),
        ({"chosen": "yes", "rejected": "no"}, Fault.EMPTY_PROMPT),
        ({"chosen": [GOOD], "rejected": [BAD]}, Fault.EMPTY_PROMPT),
        ({"chosen": "yes", "rejected": [BAD]}, Fault.TYPE),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, Fault.TURNS),
        ({"prompt": "a", "completion": "b", "label": 1}, Fault.TYPE),
        ({"prompt": "a", "completion": "b", "label": "good"}, Fault.TYPE),
    ],
)
def test_faults_of_pairs(record: dict[str, Any], fault: Fault) -> None:
    assert fault_of(record) is fault


def test_labels_and_margins_of_a_csv_are_read(tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    path.write_text("prompt,completion,label\na,b,true\nc,d,False\ne,f,1\ng,h,0\n")
    rows = load_rows(DataSettings(source=str(path)), seed=0, kinds=("preference", "unpaired"))
    assert {row.prompt: row.label for row in rows} == {"a": True, "c": False, "e": True, "g": False}
    path.write_text("prompt,chosen,rejected,margin\na,b,c,0.5\nd,e,f,-2\n")
    rows = load_rows(DataSettings(source=str(path)), seed=0, kinds=("preference",))
    assert {row.prompt: row.columns["margin"] for row in rows} == {"a": 0.5, "d": -2.0}


def test_equal_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": "a", "rejected": "a" if n == 1 else "b"} for n in range(3)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    scan = scan_rows(DataSettings(source=str(path)), seed=0, kinds=("preference",))
    assert len(scan.rows) == 2
    assert scan.tally.counts == {Fault.SAME: 1}
    assert scan.tally.bad_rows() == 0


def test_a_stage_says_which_rows_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "preferred": "b", "rejected": "c"}))
    settings = DataSettings(source=str(path))
    rows = load_rows(settings, seed=0, kinds=("preference",))
    with pytest.raises(DataError, match=r"rm needs preference pairs \(chosen, rejected\); .* holds prompts"):
        require_kind(rows, ("preference",), "rm")
    path.write_text(json.dumps({"preferred": "b", "rejected": "c"}))
    with pytest.raises(DataError, match=r'has no column "chosen".*\n.*--data\.columns\.chosen preferred'):
        load_rows(settings, seed=0, kinds=("preference",))


def test_pairs_are_of_no_use_to_sft() -> None:
    rows = load_rows(DataSettings(source="nano_preferences", rows=2), seed=0)
    with pytest.raises(DataError, match="posttrain dpo"):
        require_kind(rows, ("prompt_completion", "messages", "text"), "sft")


# --- trees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatml", "llama3", "sentencepiece"])
def test_both_branches_follow_the_prompt_that_the_model_meets(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    rows = [build({"prompt": "Janet has 16 eggs", "chosen": " left?", "rejected": "llama"})]
    if tokenizer.chat_template:
        rows.append(build({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}))
    for row in rows:
        tree = render_preference(row, tokenizer)
        assert tree.prompt_ids == render_prompt(row, tokenizer).ids
        assert len(tree.branches) == 2
        for branch, text in zip(tree.branches, (row.chosen, row.rejected), strict=True):
            assert text is not None
            content = text if isinstance(text, str) else text[0]["content"]
            assert content.strip() in tokenizer.decode(branch.ids)
            assert all(branch.mask)
        assert branch_labels(row) == (True, False)


def test_a_judged_completion_has_one_branch(chatml: Any) -> None:
    row = build({"prompt": "2+2?", "completion": " 5", "label": False})
    assert len(render_preference(row, chatml).branches) == 1
    assert branch_labels(row) == (False,)


def test_other_rows_have_no_preference_tree(chatml: Any) -> None:
    with pytest.raises(DataError, match="is a prompt row, expected a pair"):
        render_preference(build_row({"prompt": "a"}, id="0", kind="prompt", origin="a:1"), chatml)
