"""Rewards for what a row's own columns ask: instructions, answering and refusing, accepted answers."""

from typing import Any

import pytest

from posttrain.data.rows import Row
from posttrain.errors import DataError, RewardError
from posttrain.rewards import REWARDS, ROW_COLUMNS
from posttrain.rewards.requirements import READERS, require_columns

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Press Ctrl-C, then use kill -9."
TWO = {
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:exact_words"],
    "kwargs": [{}, {"num_words": 2}],
}


def scores(name: str, completions: list[Any], **columns: list[Any]) -> list[float | None]:
    return REWARDS[name](prompts=["?"] * len(completions), completions=completions, **columns)


def test_instructions_pay_by_their_share_or_all_at_once() -> None:
    texts = ["two words", "two, words", "three, bad words", ""]
    columns = {name: [value] * 4 for name, value in TWO.items()}
    assert scores("follows_instructions", texts, **columns) == [1.0, 0.5, 0.0, 0.0]
    assert scores("follows_every_instruction", texts, **columns) == [1.0, 0.0, 0.0, 0.0]
    message = [[{"role": "assistant", "content": "two words"}]]
    assert scores("follows_instructions", message, **{name: [value] for name, value in TWO.items()}) == [1.0]


def test_a_row_without_instructions_has_no_score() -> None:
    columns = {"instruction_id_list": [None, TWO["instruction_id_list"]], "kwargs": [None, TWO["kwargs"]]}
    assert scores("follows_instructions", ["a", "a b"], **columns) == [None, 1.0]


def test_unreadable_instructions_end_in_an_error_that_names_them() -> None:
    with pytest.raises(RewardError, match="no instruction 'x:y' is known"):
        scores("follows_instructions", ["a"], instruction_id_list=[["x:y"]], kwargs=[[{}]])


def test_refusing_and_answering() -> None:
    texts = [REFUSAL, ANSWER, " "]
    assert scores("refuses", texts) == [1.0, 0.0, 0.0]
    assert scores("answers", texts) == [0.0, 1.0, 0.0]
    assert scores("refuses_rightly", texts, should_refuse=[True] * 3) == [1.0, 0.0, 0.0]
    assert scores("refuses_rightly", texts, should_refuse=[False] * 3) == [0.0, 1.0, 0.0]
    assert scores("refuses_rightly", [ANSWER], should_refuse=[None]) == [None]


@pytest.mark.parametrize(
    ("text", "accepted", "score"),
    [
        ("It is the Nile.", ["Nile"], 1.0),
        ("It is the NILE", ["nile"], 1.0),
        ("It is juvenile.", ["Nile"], 0.0),
        ("It has 6.", ["6", "six"], 1.0),
        ("It has 16.", ["6", "six"], 0.0),
        ("CO₂ of course", ["carbon dioxide", "CO₂"], 1.0),
        ("a+b", ["a+b"], 1.0),
        ("aab", ["a+b"], 0.0),
        ("", ["Nile"], 0.0),
    ],
)
def test_an_accepted_answer_is_found_as_a_word(text: str, accepted: list[str], score: float) -> None:
    assert scores("says_accepted_answer", [text], accepted_answers=[accepted]) == [score]


def test_passes_checks_takes_those_that_a_row_makes_possible() -> None:
    found = scores(
        "passes_checks",
        ["two words", ANSWER, "The Nile", "The Nile", "anything"],
        instruction_id_list=[TWO["instruction_id_list"], None, None, TWO["instruction_id_list"], None],
        kwargs=[TWO["kwargs"], None, None, TWO["kwargs"], None],
        should_refuse=[None, True, None, True, None],
        accepted_answers=[None, None, ["Nile"], ["Nile"], None],
    )
    assert found == [1.0, 0.0, 1.0, 0.0, None]
    assert scores("passes_checks", [REFUSAL], should_refuse=[True]) == [1.0]


@pytest.mark.parametrize("name", list(ROW_COLUMNS))
def test_a_missing_column_is_named(name: str) -> None:
    with pytest.raises(RewardError, match=f"needs a column {ROW_COLUMNS[name][0]}.*; the rows have: level"):
        scores(name, ["a"], level=[3])


def row(**columns: Any) -> Row:
    return Row("a", "prompt", "mine.jsonl:7", prompt="?", columns=columns)


def test_rows_are_checked_before_anything_starts() -> None:
    require_columns([row(**TWO), row()], ["follows_instructions", "refuses"])
    require_columns([row(should_refuse=True)], ["passes_checks"])
    assert {name for names in ROW_COLUMNS.values() for name in names} == set(READERS)


@pytest.mark.parametrize(
    ("rows", "reward", "why"),
    [
        ([row(level=3)], "follows_instructions", "needs a column instruction_id_list; found level beside the prompt"),
        ([row()], "passes_checks", "instruction_id_list or should_refuse or accepted_answers; found none"),
        ([row(level=3)], "r1_zero", "1 of 1 rows have no gold answer"),
        ([row(**TWO), row(**TWO | {"kwargs": [{}, {}]})], "follows_instructions", "mine.jsonl:7: .* needs num_words"),
        ([row(should_refuse="no")], "refuses_rightly", "mine.jsonl:7: should_refuse must be true or false, not 'no'"),
        ([row(accepted_answers="Nile")], "passes_checks", "accepted_answers must be a list of texts, not 'Nile'"),
    ],
)
def test_rows_that_a_reward_cannot_read_are_named(rows: list[Row], reward: str, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        require_columns(rows, [reward])
    assert caught.value.fix
