"""Whatever a reward function returns is checked before training sees it."""

import math

import numpy as np
import pytest
import torch

from posttrain.data.rows import Row
from posttrain.errors import ConfigError, DataError, RewardError
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards import GOLD_REWARDS, REWARDS, ROW_COLUMNS
from posttrain.rewards.scoring import require_gold, score

PROMPTS = [
    Prompt(id="a", ids=(1,), content="6 * 7?", columns={"answer": "42"}),
    Prompt(id="b", ids=(2,), content=({"role": "user", "content": "2 + 2?"},), columns={"answer": "4", "level": 1}),
]


def completion(text: str, stop: StopReason = StopReason.EOS) -> Completion:
    return Completion(ids=(5, 6), engine_logprobs=(-0.1, -0.2), stop_reason=stop, text=text)


COMPLETIONS = [
    [completion("</think> <answer>42</answer>"), completion("42", StopReason.LENGTH)],
    [completion("</think> <answer>5</answer>"), completion("\\boxed{4}")],
]


def score_with(function, weight: float = 1.0):
    return score(PROMPTS, COMPLETIONS, {"mine": weight}, {"mine": function})


def test_scores_and_weights_stay_apart() -> None:
    scored = score(PROMPTS, COMPLETIONS, {"r1_zero": 2.0, "format_think_answer": 0.5})
    assert [part.reward for part in scored] == [2.5, 0.0, 0.5, 0.0]
    assert scored[0].scores == {"r1_zero": 1.0, "format_think_answer": 1.0}


def test_functions_get_one_entry_per_completion() -> None:
    seen = {}

    def mine(**arguments):
        seen.update(arguments)
        return [0.0] * 4

    score_with(mine)
    assert seen["prompts"] == ["6 * 7?"] * 2 + [[{"role": "user", "content": "2 + 2?"}]] * 2
    assert seen["completions"][1:3] == ["42", [{"role": "assistant", "content": "</think> <answer>5</answer>"}]]
    assert seen["answer"] == ["42", "42", "4", "4"]
    assert seen["level"] == [None, None, 1, 1]
    assert seen["truncated"] == [False, True, False, False]
    assert seen["completion_ids"] == [[5, 6]] * 4


def test_none_and_nan_are_left_out_of_the_sum() -> None:
    functions = {"a": lambda **_: [1.0, None, math.nan, 2.0], "b": lambda **_: [10.0, 10.0, None, None]}
    scored = score(PROMPTS, COMPLETIONS, {"a": 1.0, "b": 0.1}, functions)
    assert [part.reward for part in scored] == [2.0, 1.0, None, 2.0]
    assert scored[2].scores == {"a": None, "b": None}


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, True, None],
        (1.0, 0.0, 1.0, None),
        np.array([1.0, 0.0, 1.0, np.nan]),
        torch.tensor([1.0, 0, 1, torch.nan]),
    ],
)
def test_vectors_of_any_kind_are_read(values) -> None:
    assert [part.reward for part in score_with(lambda **_: values)] == [1.0, 0.0, 1.0, None]


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([1.0] * 3, "3 values"),
        ([1.0] * 5, "5 values"),
        ([1.0, 1.0, 1.0, math.inf], "inf at index 3"),
        ([1.0, "1", 1.0, 1.0], "str '1' at index 1"),
        (np.ones((4, 1)), r"list \[1.0\] at index 0"),
        (np.float64(1.0), "one number"),
        (1.0, "float 1.0"),
        (None, "NoneType None"),
        ("abcd", "str 'abcd'"),
        ({"a": 1}, "dict"),
        ([1.0, 1.0, [1.0], 1.0], r"list \[1.0\] at index 2"),
    ],
)
def test_wrong_shapes_and_types_are_refused_by_name(values, got: str) -> None:
    with pytest.raises(RewardError, match=f"reward mine must return 4 values, one finite float or None.*got {got}"):
        score_with(lambda **_: values)


def test_an_exception_is_told_with_its_input() -> None:
    def mine(**_):
        raise KeyError("label")

    with pytest.raises(RewardError, match=r"reward mine raised KeyError: 'label'\n.*4 completions.*6 \* 7"):
        score_with(mine)


def test_an_unknown_reward_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"unknown reward r1_zeroo\. Did you mean r1_zero\?"):
        score(PROMPTS, COMPLETIONS, {"r1_zeroo": 1.0})


def test_no_completions_no_scores() -> None:
    assert score([], [], {"r1_zero": 1.0}, {"r1_zero": lambda **_: []}) == []


def test_rows_without_gold_are_named_with_what_they_have() -> None:
    graded = Row("a", "prompt", "rows.jsonl:1", prompt="2 + 2 =", columns={"solution": "#### 4"})
    ungraded = Row("b", "prompt", "rows.jsonl:2", prompt="3 + 3 =", columns={"level": 1, "target": "6"})
    require_gold([graded])
    with pytest.raises(DataError, match=r"1 of 2 rows .* first rows\.jsonl:2: .*found level, target") as caught:
        require_gold([graded, ungraded])
    assert caught.value.fix == "--data.columns.answer target"


@pytest.mark.parametrize("name", REWARDS)
def test_the_rewards_that_need_columns_are_known(name: str) -> None:
    if name in GOLD_REWARDS:
        with pytest.raises(RewardError, match="grading needs a column"):
            REWARDS[name](["2 + 2 ="], ["4"])
    elif name in ROW_COLUMNS:
        with pytest.raises(RewardError, match="this reward needs a column"):
            REWARDS[name](["2 + 2 ="], ["4"])
    else:
        assert len(REWARDS[name](["2 + 2 ="], ["4"])) == 1
