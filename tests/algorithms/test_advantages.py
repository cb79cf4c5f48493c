"""Group advantages: numbers by hand, identities, what cannot be scored, rounding noise, invariances."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

NAN, INF = float("nan"), float("inf")
BASELINES, SCALES = ("group_mean", "leave_one_out", "none"), ("group_std", "batch_std", "none")
CHOICES = list(itertools.product(BASELINES, SCALES))

# Rewards on a grid, so that differences are either none or real; NaN is one that could not be scored.
reward = st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.7, 1.0])
maybe_reward = st.one_of(reward, st.just(NAN))


def groups(values, min_size=2):
    """(P, G) rewards, 1 to 4 prompts, all with the same number of completions."""
    return st.integers(min_size, 6).flatmap(
        lambda size: st.lists(st.lists(values, min_size=size, max_size=size), min_size=1, max_size=4)
    )


def advantages_of(advantages, rewards, baseline, scale, dtype=torch.float64):
    return advantages.group_advantages(torch.tensor(rewards, dtype=dtype), baseline=baseline, scale=scale)


def close(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype))


def test_grpo_by_hand(advantages):
    # Mean 1/2; deviations +-1/2; unbiased variance 4 * (1/4) / 3 = 1/3; 1/2 * sqrt(3) = 0.8660254.
    result = advantages_of(advantages, [[1, 0, 0, 1]], "group_mean", "group_std")
    close(result, [[0.8660254037844386, -0.8660254037844386, -0.8660254037844386, 0.8660254037844386]])


def test_dr_grpo_by_hand(advantages):
    close(advantages_of(advantages, [[1, 0, 0, 1]], "group_mean", "none"), [[0.5, -0.5, -0.5, 0.5]])


def test_rloo_by_hand(advantages):
    # 3 - mean(0, 0) = 3; 0 - mean(3, 0) = -1.5.
    close(advantages_of(advantages, [[3, 0, 0]], "leave_one_out", "none"), [[3.0, -1.5, -1.5]])


def test_batch_std_by_hand(advantages):
    # All rewards 1, 0, 0, 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4, deviation 1/2.
    close(advantages_of(advantages, [[1, 0], [0, 0]], "group_mean", "batch_std"), [[1.0, -1.0], [0.0, 0.0]])


def test_no_baseline_by_hand(advantages):
    close(advantages_of(advantages, [[1, 0], [2, 2]], "none", "none"), [[1.0, 0.0], [2.0, 2.0]])
    # Deviation of 1 and 3: sqrt(2 / 1). The constant group has nothing to divide by.
    close(advantages_of(advantages, [[1, 3], [2, 2]], "none", "group_std"), [[2**-0.5, 3 * 2**-0.5], [0.0, 0.0]])


def test_groups_are_rows(advantages):
    close(advantages_of(advantages, [[1, 0], [5, 1]], "group_mean", "none"), [[0.5, -0.5], [2.0, -2.0]])


@pytest.mark.parametrize(("baseline", "scale"), [choice for choice in CHOICES if choice != ("none", "none")])
def test_equal_rewards_give_exact_zeros(advantages, baseline, scale):
    for value in (0.0, 0.1, 1.0, -3.3, 1e6):
        result = advantages_of(advantages, [[value] * 7] * 2, baseline, scale, torch.float32)
        assert not result.any(), (value, result)


def test_rounding_noise_gives_exact_zeros(advantages):
    # The same score from sums in another order: a few units in the last place apart.
    for dtype in (torch.float32, torch.float64):
        for score in (0.6, -0.6, 1e6):
            rewards = torch.tensor([[score] * 3], dtype=dtype)
            rewards[0, 0] *= 1 + 4 * torch.finfo(dtype).eps
            assert rewards[0, 0] != rewards[0, 1]
            assert not advantages.group_advantages(rewards, baseline="group_mean", scale="group_std").any()
    assert not advantages_of(advantages, [[0.0, 1e-7, 0.0]], "group_mean", "group_std").any()


def test_small_real_differences_are_not_shrunk(advantages):
    # An eps of 1e-4 in the denominator would take 12 % off.
    result = advantages_of(advantages, [[0.0, 1e-3]], "group_mean", "group_std")
    close(result, [[-(2**-0.5), 2**-0.5]])


def test_a_constant_group_is_exactly_zero_beside_a_mixed_one(advantages):
    # The float32 mean of 0.1, seven times, is not 0.1.
    rewards = [[0.1] * 7, [0, 1, 0, 1, 0, 1, 0]]
    for baseline in ("group_mean", "leave_one_out"):
        for scale in SCALES:
            result = advantages_of(advantages, rewards, baseline, scale, torch.float32)
            assert not result[0].any()
            assert result[1].all()


def test_unscorable_by_hand(advantages):
    # NaN is left out: the mean of 1 and 0 is 1/2, their deviation sqrt(1/2).
    rewards = [[1.0, NAN, 0.0]]
    close(advantages_of(advantages, rewards, "group_mean", "none"), [[0.5, 0.0, -0.5]])
    close(advantages_of(advantages, rewards, "group_mean", "group_std"), [[2**-0.5, 0.0, -(2**-0.5)]])
    close(advantages_of(advantages, rewards, "leave_one_out", "none"), [[1.0, 0.0, -1.0]])
    close(advantages_of(advantages, rewards, "none", "none"), [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize(("baseline", "scale"), CHOICES)
def test_single_scored_completion_has_nothing_to_be_compared_with(advantages, baseline, scale):
    result = advantages_of(advantages, [[NAN, 0.7, NAN], [NAN, NAN, NAN]], baseline, scale)
    expected = 0.7 if (baseline, scale) == ("none", "none") else 0.0
    close(result, [[0.0, expected, 0.0], [0.0, 0.0, 0.0]])


@settings(max_examples=50, deadline=None)
@given(rewards=groups(maybe_reward))
def test_unscorable_equals_absent(advantages, rewards):
    scored = [[value for value in row if value == value] for row in rewards]
    for baseline in BASELINES:
        for scale in ("group_std", "none"):
            result = advantages_of(advantages, rewards, baseline, scale)
            for row, full, kept in zip(rewards, result, scored, strict=True):
                present = torch.tensor([value == value for value in row])
                assert not full[~present].any()
                if kept:
                    assert_close(full[present], advantages_of(advantages, [kept], baseline, scale)[0])


@settings(max_examples=50, deadline=None)
@given(rewards=groups(reward))
def test_leave_one_out_is_the_mean_of_the_others(advantages, rewards):
    result = advantages_of(advantages, rewards, "leave_one_out", "none")
    size = len(rewards[0])
    for row, values in zip(rewards, result.tolist(), strict=True):
        for i, value in enumerate(values):
            others = row[:i] + row[i + 1 :]
            assert value == pytest.approx(row[i] - sum(others) / len(others), abs=1e-12)
    assert_close(result, size / (size - 1) * advantages_of(advantages, rewards, "group_mean", "none"))


@settings(max_examples=50, deadline=None)
@given(rewards=groups(maybe_reward))
def test_compared_advantages_sum_to_zero_in_each_group(advantages, rewards):
    for baseline in ("group_mean", "leave_one_out"):
        for scale in SCALES:
            sums = advantages_of(advantages, rewards, baseline, scale).sum(-1)
            assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(rewards=groups(maybe_reward), data=st.data())
def test_order_of_prompts_and_of_completions_does_not_matter(advantages, rewards, data):
    prompts = data.draw(st.permutations(range(len(rewards))))
    completions = data.draw(st.permutations(range(len(rewards[0]))))
    shuffled = [[rewards[p][g] for g in completions] for p in prompts]
    for baseline, scale in CHOICES:
        expected = advantages_of(advantages, rewards, baseline, scale)[prompts][:, completions]
        assert_close(advantages_of(advantages, shuffled, baseline, scale), expected)


@settings(max_examples=50, deadline=None)
@given(rewards=groups(maybe_reward), factor=st.sampled_from([0.01, 3.0, 100.0]), shift=st.sampled_from([-2.0, 1.0]))
def test_affine_changes_of_the_reward(advantages, rewards, factor, shift):
    """A shift changes nothing that has a baseline; a factor nothing that has a scale, and multiplies what has none."""
    moved = [[factor * value + shift for value in row] for row in rewards]
    for baseline in ("group_mean", "leave_one_out"):
        for scale in SCALES:
            expected = advantages_of(advantages, rewards, baseline, scale) * (factor if scale == "none" else 1.0)
            assert_close(advantages_of(advantages, moved, baseline, scale), expected)


@settings(max_examples=50, deadline=None)
@given(rewards=groups(maybe_reward))
def test_signal_agrees_with_the_advantages(advantages, rewards):
    signal = advantages.group_signal(torch.tensor(rewards))
    assert signal.mixed == int(
        advantages_of(advantages, rewards, "group_mean", "group_std", torch.float32).any(-1).sum()
    )
    assert signal.solved + signal.failed + signal.mixed + signal.unscorable == len(rewards)


def test_signal_by_hand(advantages):
    rewards = torch.tensor([[1, 1, 1], [1, NAN, 1], [0, 0, 0], [0.1, 0.1, 0.1], [0, 1, 0], [NAN, NAN, NAN]])
    signal = advantages.group_signal(rewards)
    assert (signal.solved, signal.failed, signal.mixed, signal.unscorable) == (2, 2, 1, 1)
    assert signal.frac_reward_zero_std == 5 / 6
    assert advantages.group_signal(rewards, solved_at=0.1).solved == 3
    assert advantages.group_signal(torch.zeros(0, 3)).frac_reward_zero_std == 0.0


def test_result_is_at_least_float32_and_the_argument_unchanged(advantages):
    rewards = torch.tensor([[1.0, 0.0, NAN]], dtype=torch.bfloat16)
    before = rewards.clone()
    result = advantages.group_advantages(rewards, baseline="group_mean", scale="group_std")
    assert result.dtype == torch.float32
    close(result, [[2**-0.5, -(2**-0.5), 0.0]])
    assert_close(rewards, before, equal_nan=True, rtol=0, atol=0)


def test_infinite_rewards_and_unknown_choices_are_refused(advantages):
    with pytest.raises(AssertionError, match="finite"):
        advantages_of(advantages, [[INF, 0.0]], "group_mean", "none")
    with pytest.raises(AssertionError, match="mean"):
        advantages_of(advantages, [[1.0, 0.0]], "mean", "none")
    with pytest.raises(AssertionError, match="std"):
        advantages_of(advantages, [[1.0, 0.0]], "group_mean", "std")
