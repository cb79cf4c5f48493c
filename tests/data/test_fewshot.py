"""Few-shot prompts: which examples, in which form, and never the rows that are asked."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.fewshot import example_settings, few_shot_prompt
from posttrain.data.prompts import R1_ZERO_PREAMBLE
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows
from posttrain.errors import ConfigError, DataError
from posttrain.pipeline.inputs import data_files
from posttrain.settings import DataSettings
from tests.conftest import write_rows

REAL_GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"
GSM8K = [{"question": f"What is {i} + 1?", "answer": f"{i} and 1 are {i + 1}.\n#### {i + 1}"} for i in range(8)]


@pytest.fixture
def gsm8k(tmp_path: Path) -> str:
    """A directory with GSM8K's files: problems 0 to 5 to train, 6 and 7 to test."""
    write_rows(tmp_path / "train.jsonl", GSM8K[:6])
    write_rows(tmp_path / "test.jsonl", GSM8K[6:])
    return str(tmp_path)


def load(path: str, *, seed: int = 0, source: str = "gsm8k", split: str = "test", **settings: Any) -> list[Row]:
    return load_rows(DataSettings(source=source, path=path, split=split, **settings), seed=seed)


def shown(row: Row) -> list[int]:
    """Return the numbers of the problems in a prompt, in order."""
    return [
        i for i in sorted(range(8), key=lambda i: str(row.prompt).find(f"is {i} +")) if f"is {i} +" in str(row.prompt)
    ]


def test_examples_of_a_text_style_stand_before_the_question(gsm8k: str) -> None:
    row, _ = load(gsm8k, num_fewshot=2, prompt_style="question")
    first, second, asked = shown(row)
    assert row.prompt == (
        f"What is {first} + 1?\n{first} and 1 are {first + 1}.\nThe final answer is $\\boxed{{{first + 1}}}$.\n\n"
        f"What is {second} + 1?\n{second} and 1 are {second + 1}.\nThe final answer is $\\boxed{{{second + 1}}}$.\n\n"
        f"What is 6 + 1?"
    )
    assert asked == 6


def test_the_preamble_of_a_style_is_said_once(gsm8k: str) -> None:
    row, _ = load(gsm8k, num_fewshot=1, prompt_style="r1_zero")
    first, _ = shown(row)
    assert row.prompt == (
        f"{R1_ZERO_PREAMBLE}\nUser: What is {first} + 1?\nAssistant: <think> {first} and 1 are {first + 1}. </think> "
        f"<answer>{first + 1}</answer>\n\nUser: What is 6 + 1?\nAssistant: <think>"
    )


@pytest.mark.parametrize("style", ["chat", "boxed"])
def test_examples_of_a_chat_style_are_turns(gsm8k: str, style: str) -> None:
    row, _ = load(gsm8k, num_fewshot=2, prompt_style=style)
    assert isinstance(row.prompt, tuple)
    assert [turn["role"] for turn in row.prompt] == ["user", "assistant", "user", "assistant", "user"]
    first, second, _ = shown(row)
    assert f"What is {second} + 1?" in row.prompt[2]["content"]
    assert row.prompt[1]["content"].endswith(f"\\boxed{{{first + 1}}}$.")


def test_the_examples_are_those_of_the_seed_and_the_same_for_all_problems(gsm8k: str) -> None:
    one, other = load(gsm8k, num_fewshot=3)
    assert shown(one)[:3] == shown(other)[:3]
    assert set(shown(one)[:3]) < set(range(6))
    assert len({tuple(shown(load(gsm8k, seed=seed, num_fewshot=3)[0])[:3]) for seed in range(8)}) > 1
    fewer = load(gsm8k, num_fewshot=2)[0]
    assert shown(fewer)[:2] == shown(one)[:2]


def test_ids_and_gold_stay_those_of_the_problem(gsm8k: str) -> None:
    plain, few = load(gsm8k), load(gsm8k, num_fewshot=2)
    assert [(row.id, row.columns) for row in plain] == [(row.id, row.columns) for row in few]


def test_a_row_that_asks_what_an_example_asks_is_left_out(gsm8k: str, tmp_path: Path, caplog: Any) -> None:
    same = [{**row, "answer": f"Easy.\n#### {i + 1}"} for i, row in enumerate(GSM8K[:6])]
    write_rows(tmp_path / "test.jsonl", [*same, *GSM8K[6:]])
    rows = load(gsm8k, num_fewshot=2)
    assert len(rows) == 6
    examples = set(shown(rows[-1])[:2])
    assert not examples & {shown(row)[-1] for row in rows}
    assert "2 rows left out: the few-shot examples ask the same" in caplog.text


def test_training_rows_give_up_the_examples(gsm8k: str) -> None:
    rows = load(gsm8k, split="train", num_fewshot=2)
    assert len(rows) == 4
    assert all(row.completion is not None for row in rows)
    with pytest.raises(DataError, match="no row is left"):
        load(gsm8k, split="train", num_fewshot=6)


def test_a_source_without_examples_is_refused(gsm8k: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"examples from the split train, which .*test\.jsonl does not have"):
        load(str(tmp_path / "test.jsonl"), num_fewshot=1)
    with pytest.raises(ConfigError, match="the split train, which math500 does not have"):
        example_settings(DataSettings(source="math500", split="test", num_fewshot=1))
    with pytest.raises(DataError, match="num_fewshot = 7, and 6 rows with a solution") as caught:
        load(gsm8k, num_fewshot=7)
    assert caught.value.fix == "--data.num_fewshot 6"
    write_rows(tmp_path / "train.jsonl", [{"problem": "What is 1?", "answer": "1"}])
    write_rows(tmp_path / "test.jsonl", [{"problem": "What is 2?", "answer": "2"}])
    with pytest.raises(DataError, match="num_fewshot = 1, and 0 rows with a solution"):
        load(gsm8k, source="math", num_fewshot=1)


def test_conversations_have_no_place_for_examples(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", [{"messages": turns}])
    with pytest.raises(DataError, match=r"test\.jsonl:1 is a messages row"):
        load_rows(DataSettings(source=str(tmp_path), split="test", num_fewshot=1), seed=0)


def test_held_out_rows_have_their_examples_on_the_other_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i} + 1?", "completion": f" {i + 1}", "answer": str(i + 1)} for i in range(8)]
    path = write_rows(tmp_path / "own.jsonl", rows)
    asked = load_rows(DataSettings(source=path, held_out=0.5, split="test"), seed=0)
    few = load_rows(DataSettings(source=path, held_out=0.5, split="test", num_fewshot=2), seed=0)
    assert [row.id for row in asked] == [row.id for row in few]
    assert not set(shown(few[0])[:2]) & {shown(row)[0] for row in asked}


def test_mmlu_takes_the_first_of_its_subject(tmp_path: Path) -> None:
    def row(subject: str, number: int) -> dict[str, Any]:
        choices = [str(number), "x", "y", "z"]
        return {"question": f"{subject} {number}?", "subject": subject, "choices": choices, "answer": 0}

    write_rows(tmp_path / "dev.jsonl", [row(subject, i) for i in range(5) for subject in ("art", "law")])
    write_rows(tmp_path / "test.jsonl", [row("law", 8), row("art", 9)])
    law, art = load(str(tmp_path), source="mmlu", num_fewshot=2, seed=7)
    assert law.prompt == (
        "The following are multiple choice questions (with answers) about law.\n\n"
        "law 0?\nA. 0\nB. x\nC. y\nD. z\nAnswer: A\n\nlaw 1?\nA. 1\nB. x\nC. y\nD. z\nAnswer: A\n\n"
        "law 8?\nA. 8\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert "law" not in str(art.prompt)
    assert law.columns["continuations"] == (" A", " B", " C", " D")
    with pytest.raises(DataError, match="num_fewshot = 6, and 5 rows"):
        load(str(tmp_path), source="mmlu", num_fewshot=6)


def test_choices_in_a_chat_have_their_examples_as_turns(tmp_path: Path) -> None:
    for split, count in {"train": 2, "test": 1}.items():
        rows = [{"question": f"{split} {i}?", "choices": ["x", "y"], "answer": 1} for i in range(count)]
        write_rows(tmp_path / f"{split}.jsonl", rows)
    data = DataSettings(source=str(tmp_path), split="test", prompt_style="letters_chat", num_fewshot=1)
    (asked,) = load_rows(data, seed=0, kinds=("choices",))
    assert isinstance(asked.prompt, tuple)
    assert [turn["role"] for turn in asked.prompt] == ["user", "assistant", "user"]
    assert (asked.prompt[1]["content"], asked.columns["continuations"]) == ("B", ("A", "B"))


def test_arc_examples_end_in_the_text_of_the_answer(tmp_path: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        labelled = {"text": [f"right {number}", "wrong"], "label": ["A", "B"]}
        return {"question": f"Question {number}?", "choices": labelled, "answerKey": "A"}

    write_rows(tmp_path / "train.jsonl", [row(0)])
    write_rows(tmp_path / "test.jsonl", [row(1)])
    (asked,) = load(str(tmp_path), source="arc_easy", num_fewshot=1)
    assert asked.prompt == "Question: Question 0?\nAnswer: right 0\n\nQuestion: Question 1?\nAnswer:"


def test_a_system_turn_is_said_once() -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}
    example = ((system, {"role": "user", "content": "2 + 2?"}), ({"role": "assistant", "content": "4"},))
    found = few_shot_prompt((system, user), [example])  # type: ignore[arg-type, list-item]
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "user"]  # type: ignore[index]
    with pytest.raises(DataError, match="a prompt is text and its examples are messages"):
        few_shot_prompt("1 + 1?", [example])  # type: ignore[list-item]


def test_the_files_of_examples_are_inputs_too(gsm8k: str) -> None:
    data = DataSettings(source="gsm8k", path=gsm8k, split="test", num_fewshot=1)
    assert [file.name for file in data_files(data)] == ["test.jsonl", "train.jsonl"]
    assert [file.name for file in data_files(data.model_copy(update={"num_fewshot": 0}))] == ["test.jsonl"]


@pytest.mark.skipif(not REAL_GSM8K.is_dir(), reason="the copy of GSM8K is not part of the repository")
def test_real_gsm8k_rows_make_eight_shots() -> None:
    rows = load(str(REAL_GSM8K), rows=20, num_fewshot=8)
    assert len(rows) == 20
    for row in rows:
        assert str(row.prompt).count("</answer>\n\nUser: ") == 8
        assert str(row.prompt).count(R1_ZERO_PREAMBLE) == 1
