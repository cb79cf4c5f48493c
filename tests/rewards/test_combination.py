"""How parts become a reward: worked by hand."""

import math

import pytest

from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards.combination import SUM, Combination, combine
from posttrain.rewards.failures import Failed
from posttrain.rewards.scoring import score

WEIGHTS = {"right": 1.0, "form": 0.5}
GROUP = [
    {"right": 1.0, "form": 1.0},
    {"right": 0.0, "form": 1.0},
    {"right": None, "form": 1.0},
    {"right": 1.0, "form": None},
]


def test_a_sum_leaves_out_what_does_not_apply() -> None:
    assert combine(GROUP, WEIGHTS, SUM) == [1.5, 0.5, 0.5, 1.0]


def test_a_gate_pays_the_rest_for_right_answers_only() -> None:
    assert combine(GROUP, WEIGHTS, Combination("gated", "right")) == [1.5, 0.0, None, 1.0]
    assert combine(GROUP, {"right": 0.0, "form": 0.5}, Combination("gated", "right")) == [0.5, 0.0, None, 0.0]
    punished = [{"right": 0.0, "form": -1.0}, {"right": 1.0, "form": -1.0}]
    assert combine(punished, WEIGHTS, Combination("gated", "right")) == [0.0, 0.5]


def test_normalised_parts_weigh_the_same_whatever_their_size() -> None:
    group = [{"a": 0.0, "b": 1000.0}, {"a": 1.0, "b": 0.0}, {"a": None, "b": None}]
    found = combine(group, {"a": 1.0, "b": 1.0}, Combination("normalized_sum"))
    half = 1 / math.sqrt(2)  # two values, 0 and 1: mean 1/2, unbiased deviation 1/sqrt(2)
    assert found == [pytest.approx(-half + half), pytest.approx(half - half), None]
    found = combine(group, {"a": 2.0, "b": 1.0}, Combination("normalized_sum"))
    assert found == [pytest.approx(-half), pytest.approx(half), None]


def test_a_part_that_is_equal_in_a_group_gives_nothing_and_a_missing_one_stays_missing() -> None:
    group = [{"a": 1.0, "b": 3.0}, {"a": 0.0, "b": 3.0}, {"a": None, "b": 3.0}]
    found = combine(group, {"a": 1.0, "b": 5.0}, Combination("normalized_sum"))
    assert found == [pytest.approx(1 / math.sqrt(2)), pytest.approx(-1 / math.sqrt(2)), 0.0]
    assert combine([{"a": 7.0}], {"a": 1.0}, Combination("normalized_sum")) == [0.0]
    assert combine([], {"a": 1.0}, Combination("normalized_sum")) == []


def test_groups_are_normalised_by_themselves() -> None:
    prompts = [Prompt(name, (1,), name, {}) for name in "ab"]
    group = [Completion((5,), (-0.1,), StopReason.EOS, text) for text in ("x", "y")]
    scored = score(
        prompts, [group, group], {"a": 1.0}, {"a": lambda **_: [0.0, 1.0, 5.0, 9.0]}, Combination("normalized_sum")
    )
    half = 1 / math.sqrt(2)
    assert [each.reward for each in scored] == pytest.approx([-half, half, -half, half])
    assert [each.scores["a"] for each in scored] == [0.0, 1.0, 5.0, 9.0]


def test_a_failed_part_leaves_no_reward_unless_it_is_only_watched() -> None:
    prompt = Prompt("a", (1,), "?", {})
    group = [Completion((5,), (-0.1,), StopReason.EOS, text) for text in ("x", "y")]
    functions = {"a": lambda **_: [1.0, 1.0], "b": lambda **_: [Failed("raised"), 1.0]}
    first, second = score([prompt], [group], {"a": 1.0, "b": 1.0}, functions)
    assert (first.reward, first.scores, first.failed) == (None, {"a": 1.0, "b": None}, ("b",))
    assert (second.reward, second.failed) == (2.0, ())
    watched, _ = score([prompt], [group], {"a": 1.0, "b": 0.0}, functions)
    assert (watched.reward, watched.failed) == (1.0, ("b",))
    gated, _ = score([prompt], [group], {"a": 1.0, "b": 0.0}, functions, Combination("gated", "b"))
    assert gated.reward is None
