"""Token rewards, GAE and whitening: numbers by hand, identities, and a plain reference that looks at one row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

NAN, INF = float("nan"), float("inf")
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_the_score_is_paid_at_the_last_token_and_the_kl_at_each(returns):
    logprobs = torch.tensor([[-1.0, -2.0, -1.5], [-1.0, -1.0, NAN]])
    ref_logprobs = torch.tensor([[-1.5, -1.0, -1.5], [-3.0, -1.0, -INF]])
    rewards = returns.token_rewards(
        torch.tensor([1.0, -2.0]), MASK, logprobs=logprobs, ref_logprobs=ref_logprobs, kl_coef=0.1
    )
    assert_close(rewards, torch.tensor([[-0.05, 0.1, 1.0], [-0.2, -2.0, 0.0]]))


def test_without_reference_only_the_score_is_paid(returns):
    rewards = returns.token_rewards(torch.tensor([1.0, 2.0]), MASK, logprobs=None, ref_logprobs=None, kl_coef=0.5)
    assert rewards.tolist() == [[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]]


def test_a_sequence_without_tokens_has_no_reward(returns):
    mask = torch.tensor([[0, 0], [1, 0]])
    rewards = returns.token_rewards(torch.tensor([5.0, 2.0]), mask, logprobs=None, ref_logprobs=None, kl_coef=0.0)
    assert rewards.tolist() == [[0.0, 0.0], [2.0, 0.0]]


def test_gae_by_hand(returns):
    # gamma 0.5, lambda 0.5. Row 1: delta_3 = 1 - 0.2 = 0.8; delta_2 = 0.5 * 0.2 - 0.4 = -0.3, A_2 = -0.3 + 0.25 * 0.8
    # = -0.1; delta_1 = 0.5 * 0.4 - 0.6 = -0.4, A_1 = -0.4 + 0.25 * -0.1 = -0.425. Row 2 ends one token earlier.
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.5, 2.0, NAN]])
    values = torch.tensor([[0.6, 0.4, 0.2], [1.0, 1.0, INF]])
    advantages, targets = returns.gae(rewards, values, MASK, gamma=0.5, gae_lambda=0.5)
    assert_close(advantages, torch.tensor([[-0.425, -0.1, 0.8], [0.25, 1.0, 0.0]]))
    assert_close(targets, torch.tensor([[0.175, 0.3, 1.0], [1.25, 2.0, 0.0]]))


def test_gae_takes_the_value_behind_a_truncated_end(returns):
    rewards, values = torch.zeros(2, 3), torch.zeros(2, 3)
    final = torch.tensor([8.0, 4.0])
    advantages, _ = returns.gae(rewards, values, MASK, gamma=0.5, gae_lambda=1.0, final_values=final)
    assert_close(advantages, torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0]]))


def test_gae_of_lambda_one_is_the_return_minus_the_value(returns):
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 3), torch.randn(2, 3)
    advantages, targets = returns.gae(rewards, values, MASK, gamma=1.0, gae_lambda=1.0)
    to_come = (rewards * MASK).flip(-1).cumsum(-1).flip(-1) * MASK
    assert_close(advantages, (to_come - values) * MASK)
    assert_close(targets, to_come)


def test_gae_of_lambda_zero_is_the_one_step_error(returns):
    torch.manual_seed(0)
    rewards, values = torch.randn(1, 3), torch.randn(1, 3)
    advantages, _ = returns.gae(rewards, values, torch.ones(1, 3), gamma=0.9, gae_lambda=0.0)
    after = torch.cat([values[:, 1:], torch.zeros(1, 1)], dim=-1)
    assert_close(advantages, rewards + 0.9 * after - values)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    gamma=st.floats(0.1, 1.0),
    gae_lambda=st.floats(0.0, 1.0),
    truncated=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gae_equals_the_sum_of_discounted_errors_of_each_row_alone(
    returns, lengths, gamma, gae_lambda, truncated, seed
):
    """Schulman et al. 2015, eq. 14 written out; padding of any content changes nothing."""
    width = max(*lengths, 1)
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(len(lengths), width, generator=generator, dtype=torch.float64) for _ in range(2))
    final = torch.randn(len(lengths), generator=generator, dtype=torch.float64) if truncated else None
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    advantages, targets = returns.gae(
        rewards, values.masked_fill(~mask, NAN), mask, gamma=gamma, gae_lambda=gae_lambda, final_values=final
    )
    for row, length in enumerate(lengths):
        behind = [*values[row, 1:length].tolist(), 0.0 if final is None else final[row].item()]
        errors = [rewards[row, t].item() + gamma * behind[t] - values[row, t].item() for t in range(length)]
        for t in range(length):
            expected = sum((gamma * gae_lambda) ** k * errors[t + k] for k in range(length - t))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-9)
            assert targets[row, t].item() == pytest.approx(expected + values[row, t].item(), abs=1e-9)
        assert not advantages[row, length:].any()
        assert not targets[row, length:].any()


def test_whitening_by_hand(returns):
    # Kept: 1, 2, 3, 4, 5; mean 3, unbiased deviation sqrt(10 / 4).
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]])
    expected = torch.tensor([[-2.0, -1.0, 0.0], [1.0, 2.0, 0.0]]) / 2.5**0.5
    assert_close(returns.whiten(values, MASK), expected)


def test_whitening_gives_rounding_noise_no_advantage(returns):
    noise = torch.tensor([[0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 9.0]])
    assert not returns.whiten(noise, MASK).any()
    assert not returns.whiten(torch.full((2, 3), 7.0), torch.zeros(2, 3)).any()
    assert not returns.whiten(torch.tensor([[5.0]]), torch.ones(1, 1)).any()


def test_explained_variance_by_hand(returns):
    targets = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]])
    assert returns.explained_variance(targets, targets, MASK) == 1.0
    assert returns.explained_variance(torch.full((2, 3), 3.0), targets, MASK) == 0.0
    assert returns.explained_variance(-targets, targets, MASK) == -3.0  # errors twice the returns
    assert returns.explained_variance(targets, torch.zeros(2, 3), MASK) != 0.0  # NaN


def test_arguments_are_not_changed(returns):
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    before = values.clone()
    returns.gae(values, values, MASK, gamma=1.0, gae_lambda=0.9)
    returns.whiten(values, MASK)
    returns.token_rewards(values[:, 0], MASK, logprobs=values, ref_logprobs=values + 1, kl_coef=1.0)
    assert torch.equal(values, before)
