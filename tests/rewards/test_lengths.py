"""Rewards for length, worked by hand."""

import pytest

from posttrain.errors import RewardError
from posttrain.rewards.functions import built_in_rewards
from posttrain.rewards.lengths import cosine_length, length_band, length_control, soft_overlong
from posttrain.settings import RewardOptions
from posttrain.settings.rewards import CosineLengthOptions, LengthBandOptions, SoftOverlongOptions


def ids(*lengths: int) -> list[list[int]]:
    return [[7] * length for length in lengths]


def test_length_band_has_both_its_ends() -> None:
    options = LengthBandOptions(min_length=2, max_length=4)
    assert length_band(options, ["p"] * 5, [""] * 5, completion_ids=ids(1, 2, 3, 4, 5)) == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_soft_overlong_is_dapos_equation_13() -> None:
    options = SoftOverlongOptions(max_length=20, buffer=4)
    found = soft_overlong(options, ["p"] * 6, [""] * 6, completion_ids=ids(0, 16, 17, 18, 20, 99))
    assert found == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert all(str(value) != "-0.0" or value == 0 for value in found)


def test_soft_overlong_takes_a_fifth_as_its_buffer() -> None:
    options = SoftOverlongOptions(max_length=20480)  # DAPO's own: 16384 free, 4096 to the limit
    assert soft_overlong(options, ["p"] * 2, [""] * 2, completion_ids=ids(16384, 18432)) == [0.0, -0.5]
    assert soft_overlong(SoftOverlongOptions(max_length=3), ["p"] * 2, [""] * 2, completion_ids=ids(2, 3)) == [0, -1]
    wide = SoftOverlongOptions(max_length=10, buffer=50)
    assert soft_overlong(wide, ["p"], [""], completion_ids=ids(5)) == [-0.5]


def test_cosine_length_falls_for_right_answers_rises_for_wrong_ones_and_never_turns() -> None:
    options = CosineLengthOptions(max_length=10)
    lengths = ids(0, 5, 10, 20)
    right = cosine_length(options, ["p"] * 4, ["4"] * 4, answer=["4"] * 4, completion_ids=lengths)
    wrong = cosine_length(options, ["p"] * 4, ["5"] * 4, answer=["4"] * 4, completion_ids=lengths)
    assert right == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert wrong == pytest.approx([-1.0, -0.75, -0.5, -0.5])


def test_length_control_is_kimis_equation_and_knows_its_groups() -> None:
    found = length_control(
        ["p"] * 5,
        ["4", "4", "4", "5", "5"],
        answer=["4"] * 5,
        completion_ids=ids(10, 20, 30, 10, 30),
        prompt_id=["a"] * 5,
    )
    assert found == [0.5, 0.0, -0.5, 0.0, -0.5]
    apart = length_control(
        ["p"] * 4, ["4"] * 4, answer=["4"] * 4, completion_ids=ids(1, 3, 100, 100), prompt_id=["a", "a", "b", "b"]
    )
    assert apart == [0.5, -0.5, 0.0, 0.0]


def test_groups_without_ids_are_equal_prompts() -> None:
    found = length_control(["a", "b", "a"], ["4"] * 3, answer=["4"] * 3, completion_ids=ids(1, 50, 3))
    assert found == [0.5, 0.0, -0.5]


def test_lengths_need_tokens() -> None:
    with pytest.raises(RewardError, match="needs a column completion_ids; there are answer"):
        length_band(LengthBandOptions(), ["p"], ["x"], answer=["4"])


def test_a_limit_that_nobody_gave_is_that_of_the_completions() -> None:
    functions = built_in_rewards(RewardOptions(), 8)
    assert functions["length_band"](["p"] * 2, [""] * 2, completion_ids=ids(8, 9)) == [1.0, 0.0]
    assert functions["soft_overlong"](["p"], [""], completion_ids=ids(8)) == [-1.0]
    given = RewardOptions.model_validate({"length_band": {"max_length": 9}})
    assert built_in_rewards(given, 8)["length_band"](["p"], [""], completion_ids=ids(9)) == [1.0]
