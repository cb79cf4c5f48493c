"""Multiple-choice questions: their columns, the two styles, the named sources, and the tokens at the border."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from posttrain.data.chat import render_choices
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows, require_kind
from posttrain.errors import ConfigError, DataError
from posttrain.settings import DataSettings
from tests.conftest import write_rows

MMLU = {
    "question": " Which of these is a prime?",
    "subject": "elementary_mathematics",
    "choices": ["4", "6", "7", "9"],
    "answer": 2,
}
ARC = {
    "id": "Mercury_1",
    "question": "What do plants need?",
    "choices": {"text": ["light", "sand", "salt"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
OWN = {"question": "Which is a fruit?", "choices": ["Stone", "Pear"], "answer": "B"}


def load(rows: list[dict[str, Any]], tmp_path: Path, **settings: Any) -> list[Row]:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    place = {"path": path} if "source" in settings else {"source": path}
    return load_rows(DataSettings(**{**place, **settings}), seed=0, kinds=("choices",))


def test_mmlu_is_asked_by_letters_under_a_line_with_its_subject(tmp_path: Path) -> None:
    (row,) = load([MMLU], tmp_path, source="mmlu", split="test")
    assert row.prompt == (
        "The following are multiple choice questions (with answers) about elementary mathematics.\n\n"
        "Which of these is a prime?\nA. 4\nB. 6\nC. 7\nD. 9\nAnswer:"
    )
    assert row.columns["continuations"] == (" A", " B", " C", " D")
    assert (row.kind, row.columns["answer"], row.columns["subject"]) == ("choices", 2, "elementary_mathematics")


def test_arc_is_asked_without_its_choices_which_are_the_continuations(tmp_path: Path) -> None:
    (row,) = load([ARC], tmp_path, source="arc_easy", split="test")
    assert row.prompt == "Question: What do plants need?\nAnswer:"
    assert row.columns["continuations"] == (" light", " sand", " salt")
    assert row.columns["choices"][row.columns["answer"]] == "light"


def test_own_questions_are_asked_by_letters_and_in_the_other_style_where_it_is_named(tmp_path: Path) -> None:
    (row,) = load([OWN], tmp_path)
    assert row.prompt == (
        "The following are multiple choice questions (with answers).\n\nWhich is a fruit?\nA. Stone\nB. Pear\nAnswer:"
    )
    (cloze,) = load([OWN], tmp_path, prompt_style="cloze")
    assert (cloze.prompt, cloze.columns["continuations"]) == (
        "Question: Which is a fruit?\nAnswer:",
        (" Stone", " Pear"),
    )
    assert cloze.id == row.id
    (arc,) = load([ARC], tmp_path)  # the form is told by its columns
    assert arc.columns["continuations"] == (" A", " B", " C")


@pytest.mark.parametrize("answer", [1, "B", " B ", "Pear"])
def test_an_answer_is_an_index_a_letter_or_a_text(answer: Any, tmp_path: Path) -> None:
    (row,) = load([{**OWN, "answer": answer}], tmp_path)
    assert row.columns["answer"] == 1


def test_a_text_is_looked_for_before_a_letter(tmp_path: Path) -> None:
    (row,) = load([{**OWN, "choices": ["B", "A"], "answer": "A"}], tmp_path)
    assert row.columns["answer"] == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"answer": 2}, "no gold answer.*expected an index from 0 to 1, a letter from A to B"),
        ({"answer": -1}, "no gold answer"),
        ({"answer": True}, "no gold answer"),
        ({"answer": "C"}, "no gold answer.*answer is 'C'"),
        ({"answer": ""}, "no gold answer"),
        ({"choices": ["Pear", "Pear"], "answer": "Pear"}, "no gold answer.*which several choices are"),
        ({"choices": ["Pear"]}, "unusable choices.*expected 2 to 26, came 1"),
        ({"choices": ["Pear", " "]}, r"unusable choices.*choices\[1\] has no content"),
        ({"choices": ["Pear", 3]}, r"wrong type.*choices\[1\] is int"),
        ({"choices": "Pear, Stone"}, "wrong type.*choices is str, not a list of texts"),
        ({"question": " "}, "empty prompt"),
        ({"question": 3}, "wrong type.*question is int"),
    ],
)
def test_unusable_questions_are_named(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"(?s)1 malformed.*{fault}"):
        load([{**OWN, **change}], tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"answerKey": "4"}, "no gold answer.*answerKey is '4', and the labels are 1, 2, 3"),
        ({"choices": {"text": ["a"], "label": ["1", "2"]}}, "unusable choices.*1 texts and 2 labels"),
        ({"choices": ["a", "b"]}, "wrong type.*not lists of text and label"),
    ],
)
def test_unusable_arc_rows_are_named(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"(?s)1 malformed.*{fault}"):
        load([{**ARC, **change}], tmp_path, source="arc_challenge", split="test")


def test_a_missing_column_is_named_with_a_guess(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no column "choices"') as caught:
        load([{"question": "Which?", "options": ["a", "b"], "answer": 0}], tmp_path)
    assert caught.value.fix == "--data.columns.choices options"
    with pytest.raises(DataError, match='no column "question"') as caught:
        load([{"prompt": "Which?", "choices": ["a", "b"], "answer": 0}], tmp_path)
    assert caught.value.fix == "--data.columns.question prompt"


def test_choices_are_read_only_where_they_are_wanted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{**OWN, "prompt": "Which is a fruit?"}])
    (row,) = load_rows(DataSettings(source=path), seed=0)
    assert row.kind == "prompt"
    rows = load([MMLU], tmp_path, source="mmlu", split="test")
    with pytest.raises(DataError, match=r"sft needs prompts.*holds questions with choices") as caught:
        require_kind(rows, ("prompt_completion",), "sft")
    assert str(caught.value.fix).startswith("posttrain eval --task choices --data.source")


def test_a_style_of_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'no prompt style "boxed" of choices\. Styles: letters, letters_chat, cloze'):
        load([OWN], tmp_path, prompt_style="boxed")
    plain = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "1 + 1 ="}])
    with pytest.raises(ConfigError, match=r'no prompt style "cloze"\. Styles: r1_zero'):
        load_rows(DataSettings(source=plain, prompt_style="cloze"), seed=0)


def test_a_held_out_side_does_not_depend_on_the_style(tmp_path: Path) -> None:
    rows = [{**OWN, "question": f"Which is fruit {i}?"} for i in range(40)]
    letters, cloze = (
        {row.id for row in load(rows, tmp_path, prompt_style=style, held_out=0.5, split="test")}
        for style in ("letters", "cloze")
    )
    assert letters == cloze
    assert 0 < len(letters) < 40


def test_prompt_and_continuation_are_tokenized_as_one_text(tmp_path: Path, chatml: PreTrainedTokenizerFast) -> None:
    choices = ["12 eggs", "7 eggs left", "The answer"]
    (row,) = load([{**OWN, "choices": choices, "answer": 1}], tmp_path, prompt_style="cloze")
    tree = render_choices(row, chatml)
    for branch, choice in zip(tree.branches, choices, strict=True):
        whole = chatml(f"{row.prompt} {choice}", add_special_tokens=False)["input_ids"]
        assert [*tree.prompt_ids, *branch.ids] == whole
        assert chatml.decode(branch.ids) == f" {choice}"  # the space belongs to the continuation
    joined = [list(chatml(choice, add_special_tokens=False)["input_ids"]) for choice in choices]
    assert [list(branch.ids) for branch in tree.branches] != joined  # a space alone would be another token


def test_a_chat_asks_in_a_users_turn_and_the_reply_starts_with_the_letter(
    tmp_path: Path, llama3: PreTrainedTokenizerFast
) -> None:
    (row,) = load([OWN], tmp_path, prompt_style="letters_chat")
    content = "Which is a fruit?\nA. Stone\nB. Pear\nAnswer:"
    assert row.prompt == ({"role": "user", "content": content},)
    tree = render_choices(row, llama3)
    text = llama3.apply_chat_template(list(row.prompt), tokenize=False, add_generation_prompt=True)
    for branch, letter in zip(tree.branches, "AB", strict=True):
        whole = llama3(f"{text}{letter}", add_special_tokens=False)["input_ids"]
        assert [*tree.prompt_ids, *branch.ids] == whole
        assert llama3.decode(branch.ids) == letter
    assert tree.prompt_ids.count(llama3.bos_token_id) == 1  # the template's own


def test_a_chat_needs_a_template(tmp_path: Path, sentencepiece: PreTrainedTokenizerFast) -> None:
    (row,) = load([OWN], tmp_path, prompt_style="letters_chat")
    with pytest.raises(DataError, match="no chat template"):
        render_choices(row, sentencepiece)


def test_a_space_that_a_tokenizer_puts_before_each_text_is_not_in_the_continuation(
    tmp_path: Path, sentencepiece: PreTrainedTokenizerFast
) -> None:
    (row,) = load([OWN], tmp_path)
    tree = render_choices(row, sentencepiece)
    assert tree.prompt_ids[0] == sentencepiece.bos_token_id
    for branch, letter in zip(tree.branches, "AB", strict=True):
        whole = sentencepiece(f"{row.prompt} {letter}")["input_ids"]
        assert [*tree.prompt_ids, *branch.ids] == whole


def test_prompts_are_no_questions(tmp_path: Path, chatml: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1 ="}))
    (row,) = load_rows(DataSettings(source=str(path)), seed=0)
    with pytest.raises(DataError, match="is a prompt row, expected a question with choices"):
        render_choices(row, chatml)
