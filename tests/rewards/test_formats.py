"""Rewards for form: what counts as the form, at its edges."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards import GOLD_REWARDS, JUDGE, OPTION_REWARDS, REWARDS
from posttrain.rewards.formats import format_json, format_regex, longer_than, step_words
from posttrain.rewards.functions import built_in_rewards
from posttrain.settings import RewardOptions
from posttrain.settings.rewards import FormatJsonOptions, FormatRegexOptions, LongerThanOptions

OF_ROWS = {"instruction_id_list": [["punctuation:no_comma"]], "kwargs": [[{}]]}
OF_ROWS |= {"should_refuse": [False], "accepted_answers": [["4"]]}  # what some rewards read of each row
ALL = built_in_rewards(RewardOptions.model_validate({"format_regex": {"pattern": ".*"}}), 64)


def test_every_table_of_options_has_its_reward() -> None:
    assert set(RewardOptions.model_fields) == {*OPTION_REWARDS, JUDGE}
    assert not REWARDS.keys() & OPTION_REWARDS.keys()
    assert REWARDS.keys() | OPTION_REWARDS.keys() >= GOLD_REWARDS


@pytest.mark.parametrize("name", ALL)
def test_every_built_in_takes_empty_texts_messages_and_rows_without_gold(name: str) -> None:
    completions = ["", [{"role": "assistant", "content": ""}], "x"]
    columns = {"answer": ["4", "4", None], "completion_ids": [[], [2], [5, 2]], "options": ["A", "B", "C"]}
    columns |= {column: values * 3 for column, values in OF_ROWS.items()}
    found = ALL[name](prompts=["2 + 2"] * 3, completions=completions, **columns)
    assert len(found) == 3
    assert found[0] == found[1] or name in ("length_control", "cosine_length", "length_band")
    assert (found[2] is None) == (name in GOLD_REWARDS)
    assert all(value is None or isinstance(value, float) for value in found)
    nothing: dict[str, list[Any]] = {column: [] for column in columns}
    assert ALL[name](prompts=[], completions=[], **nothing) == []


@given(st.text())
def test_no_text_raises_or_leaves_the_range(text: str) -> None:
    for name, function in ALL.items():
        (value,) = function(prompts=["p"], completions=[text], answer=["4"], completion_ids=[[1]], **OF_ROWS)
        assert value is not None, name
        assert -1.0 <= value <= 1.9, name


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Step 1: add", 1.0),
        ("step2 is next", 1.0),
        ("First, add.", 1.0),
        ("It is 4, therefore done", 1.0),
        ("Thirsty firsthand steps 1", 0.0),
        ("", 0.0),
    ],
)
def test_step_words(text: str, score: float) -> None:
    assert step_words(["p"], [text]) == [score]


@pytest.mark.parametrize(("size", "score"), [(100, 0.0), (101, 1.0)])
def test_longer_than_counts_characters_and_means_more(size: int, score: float) -> None:
    assert longer_than(LongerThanOptions(), ["p"], ["é" * size]) == [score]


@pytest.mark.parametrize(
    ("text", "score"),
    [(r"\boxed{4}", 1.0), (r"so $\boxed{ x }$.", 1.0), (r"\boxed{}", 0.0), (r"\boxed{4", 0.0), ("boxed{4}", 0.0)],
)
def test_format_boxed(text: str, score: float) -> None:
    assert REWARDS["format_boxed"](prompts=["p"], completions=[text]) == [score]


@pytest.mark.parametrize(
    ("text", "keys", "score"),
    [
        ('{"a": 1}', [], 1.0),
        (' {"a": 1, "b": 2}\n', ["a"], 1.0),
        ('{"b": 2}', ["a"], 0.0),
        ("[1]", [], 1.0),
        ("[1]", ["a"], 0.0),
        ('```json\n{"a": 1}\n```', ["a"], 1.0),
        ('Here: {"a": 1}', [], 0.0),
        ('{"a": NaN}', [], 0.0),
        ("", [], 0.0),
        ("[" * 100_000, [], 0.0),
        ("9" * 10_000, [], 0.0),
    ],
)
def test_format_json(text: str, keys: list[str], score: float) -> None:
    assert format_json(FormatJsonOptions(required_keys=keys), ["p"], [text]) == [score]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_what_is_dumped_is_json(value: dict) -> None:
    assert format_json(FormatJsonOptions(required_keys=list(value)), ["p"], [json.dumps(value)]) == [1.0]


def test_format_regex_matches_the_whole_over_line_ends() -> None:
    found = format_regex(FormatRegexOptions(pattern=".*#### [0-9]+"), ["p"] * 3, ["so\n#### 4", "#### 4.", "####"])
    assert found == [1.0, 0.0, 0.0]
