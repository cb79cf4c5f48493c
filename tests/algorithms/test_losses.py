"""SFT and clipped policy losses: numbers and gradients by hand, identities, invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from posttrain.algorithms.tokens import aggregate

NAN, INF = float("nan"), float("inf")
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
LOGPROBS = torch.tensor([[-1.0, -2.0, NAN], [-3.0, -INF, 0.0]])


def policy_loss(losses, logprobs, old_logprobs, advantages, mask=None, epsilon_low=0.2, epsilon_high=0.28):
    mask = torch.ones_like(logprobs) if mask is None else mask
    return losses.clipped_policy_loss(
        logprobs, old_logprobs, advantages, mask, epsilon_low=epsilon_low, epsilon_high=epsilon_high
    )


def test_sft_loss_by_hand(losses):
    # (1 + 2 + 3) / 3 tokens; half as much when the update has 6 tokens.
    assert losses.sft_loss(LOGPROBS, MASK, num_tokens=3).item() == 2.0
    assert losses.sft_loss(LOGPROBS, MASK, num_tokens=6).item() == 1.0
    assert losses.sft_loss(LOGPROBS, torch.zeros(2, 3), num_tokens=0).item() == 0.0


def test_sft_gradient_by_hand(losses):
    logprobs = LOGPROBS.clone().requires_grad_()
    losses.sft_loss(logprobs, MASK, num_tokens=4).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.25, -0.25, 0.0], [-0.25, 0.0, 0.0]]


def test_sft_micro_batches_add_up_to_the_whole(losses):
    parts = [losses.sft_loss(LOGPROBS[i : i + 1], MASK[i : i + 1], num_tokens=3) for i in range(2)]
    assert_close(sum(parts), losses.sft_loss(LOGPROBS, MASK, num_tokens=3))


# ratio, advantage -> loss, gradient in the log-prob (ratio * d loss / d ratio), clipped low, clipped high;
# with ratios held to [0.8, 1.28].
REGIMES = [
    (1.5, 1.0, -1.28, 0.0, False, True),  # raised far enough: min(1.5, 1.28), flat
    (0.5, 1.0, -0.5, -0.5, False, False),  # a good token that fell: min(0.5, 0.8), pulled back up
    (1.5, -2.0, 3.0, 3.0, False, False),  # a bad token that rose: -min(-3, -2.56), pushed down
    (0.5, -2.0, 1.6, 0.0, True, False),  # lowered far enough: -min(-1, -1.6), flat
    (1.25, 1.0, -1.25, -1.25, False, False),  # within the higher bound, beyond 1.2
    (0.75, -1.0, 0.8, 0.0, True, False),  # beyond the lower bound, within 1 - 0.28
    (1.5, 0.0, 0.0, 0.0, False, False),  # nothing bites where the advantage is 0
]


def test_clipping_by_hand(losses):
    for ratio, advantage, loss, gradient, low, high in REGIMES:
        logprobs = torch.tensor([[math.log(ratio) - 1]], dtype=torch.float64, requires_grad=True)
        result = policy_loss(losses, logprobs, torch.tensor([[-1.0]]), torch.tensor([advantage]))
        result.per_token.sum().backward()
        assert result.per_token.item() == pytest.approx(loss), (ratio, advantage)
        assert logprobs.grad is not None
        assert logprobs.grad.item() == pytest.approx(gradient), (ratio, advantage)
        assert (result.clipped_low.item(), result.clipped_high.item()) == (low, high), (ratio, advantage)


def test_advantages_of_tokens_by_hand(losses):
    """Each token has its own; what stands behind the end is not looked at."""
    logprobs = torch.full((1, 3), -1.0, requires_grad=True)
    result = policy_loss(
        losses, logprobs, logprobs.detach(), torch.tensor([[2.0, -3.0, NAN]]), torch.tensor([[1, 1, 0]])
    )
    result.per_token.sum().backward()
    assert result.per_token.tolist() == [[-2.0, 3.0, 0.0]]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-2.0, 3.0, 0.0]]


def test_dual_clip_by_hand(losses):
    # A bad token that became 5 times as likely: 5 * 2 without, 3 * 2 with the dual clip at 3, and then flat.
    for ratio, advantage, loss, gradient, held in [
        (5.0, -2.0, 6.0, 0.0, True),
        (2.0, -2.0, 4.0, 4.0, False),
        (5.0, 2.0, -2.56, 0.0, False),
        (0.5, -2.0, 1.6, 0.0, False),
    ]:
        logprobs = torch.tensor([[math.log(ratio) - 1]], dtype=torch.float64, requires_grad=True)
        result = losses.clipped_policy_loss(
            logprobs,
            torch.tensor([[-1.0]]),
            torch.tensor([advantage]),
            torch.ones(1, 1),
            epsilon_low=0.2,
            epsilon_high=0.28,
            dual_clip=3.0,
        )
        result.per_token.sum().backward()
        assert result.per_token.item() == pytest.approx(loss), (ratio, advantage)
        assert logprobs.grad is not None
        assert logprobs.grad.item() == pytest.approx(gradient), (ratio, advantage)
        assert result.clipped_dual.item() == held, (ratio, advantage)


def test_value_loss_by_hand(losses):
    # value, old value, return -> loss, gradient, held; with a clip of 0.2.
    for value, old, target, loss, gradient, held in [
        (0.5, 0.4, 1.0, 0.125, -0.5, False),  # within the clip: half the squared error
        (0.9, 0.4, 1.0, 0.08, 0.0, True),  # moved by 0.5 towards it: that of 0.6, flat
        (1.5, 0.4, 1.0, 0.125, 0.5, False),  # moved past it: its own error, the larger one
        (0.0, 0.4, 1.0, 0.5, -1.0, False),  # moved away: its own error
    ]:
        values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
        result = losses.clipped_value_loss(
            values, torch.tensor([[old]]), torch.tensor([[target]]), torch.ones(1, 1), clip=0.2
        )
        result.per_token.sum().backward()
        assert result.per_token.item() == pytest.approx(loss, abs=1e-6), value
        assert values.grad is not None
        assert values.grad.item() == pytest.approx(gradient, abs=1e-6), value
        assert result.clipped.item() == held, value


def test_value_loss_without_clip_is_half_the_squared_error(losses):
    values = torch.tensor([[3.0, NAN]], requires_grad=True)
    result = losses.clipped_value_loss(
        values, torch.tensor([[0.0, INF]]), torch.tensor([[1.0, NAN]]), torch.tensor([[1, 0]]), clip=None
    )
    result.per_token.sum().backward()
    assert result.per_token.tolist() == [[2.0, 0.0]]
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0, 0.0]]
    assert not result.clipped.any()


def test_statistics_by_hand(losses):
    # Ratios 2 and 1/2; KL(old || new) by k3: ratio - 1 - ln ratio.
    logprobs = torch.tensor([[math.log(2) - 1, math.log(0.5) - 1, -1.0]])
    mask = torch.tensor([[1, 1, 0]])
    result = policy_loss(losses, logprobs, torch.full((1, 3), -1.0), torch.tensor([1.0]), mask)
    assert_close(result.ratio, torch.tensor([[2.0, 0.5, 0.0]]))
    assert_close(result.approx_kl, torch.tensor([[1 - math.log(2), -0.5 + math.log(2), 0.0]]))
    assert result.clipped_high.tolist() == [[True, False, False]]
    assert not result.clipped_low.any()
    # Their means over the update, of 4 tokens in all.
    for value, expected in [(result.ratio, 2.5 / 4), (result.clipped_high, 1 / 4)]:
        mean = aggregate(value, mask, "token_mean", num_sequences=2, num_tokens=4, max_length=8)
        assert_close(mean.item(), expected)


def test_masked_tokens_are_in_no_statistic(losses):
    logprobs, old_logprobs = torch.zeros(2, 2), torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    mask = torch.tensor([[1, 0], [1, 0]])
    result = policy_loss(losses, logprobs, old_logprobs, torch.tensor([1.0, -1.0]), mask)
    for value in (result.per_token, result.ratio, result.approx_kl, result.clipped_low, result.clipped_high):
        assert not value[:, 1].any()
    assert result.clipped_high.sum() == 1
    assert result.clipped_low.sum() == 1


def test_statistics_are_detached(losses):
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    result = policy_loss(losses, logprobs, torch.tensor([[-1.5, -1.5]]), torch.ones(1))
    assert result.per_token.requires_grad
    for value in (result.ratio, result.approx_kl, result.clipped_low, result.clipped_high):
        assert not value.requires_grad


@settings(max_examples=50, deadline=None)
@given(
    logprob=st.floats(-80, 0),
    advantage=st.floats(-5, 5),
    epsilon=st.sampled_from([1e-4, 0.2, 3.0]),
)
def test_ratio_of_one_has_the_gradient_of_reinforce(losses, logprob, advantage, epsilon):
    """Without old log-probs, or with equal ones, the gradient is that of -A * logprob."""
    for old_logprobs in (None, torch.tensor([[logprob]], dtype=torch.float64)):
        logprobs = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)
        result = policy_loss(
            losses, logprobs, old_logprobs, torch.tensor([advantage], dtype=torch.float64), None, epsilon, epsilon
        )
        (gradient,) = torch.autograd.grad(result.per_token.sum(), logprobs)
        assert result.ratio.item() == 1.0
        assert result.approx_kl.item() == 0.0
        assert gradient.item() == pytest.approx(-advantage)


def test_reinforce_gradient_is_that_of_the_expected_reward(losses):
    """Summed over a vocabulary, the on-policy gradient is -d/dlogits of the expected reward, here by autograd."""
    logits = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    (expected,) = torch.autograd.grad(-(logprobs.exp() * rewards).sum(), logits, retain_graph=True)
    # One sequence for each token of the vocabulary, weighted by how often the policy samples it.
    per_token = policy_loss(losses, logprobs.T, None, rewards).per_token
    (gradient,) = torch.autograd.grad((logprobs.detach().exp().T * per_token).sum(), logits)
    assert_close(gradient, expected)


def test_gradients_flow_into_the_log_probs_alone(losses):
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    old_logprobs = torch.tensor([[-1.1]], requires_grad=True)
    advantages = torch.tensor([1.0], requires_grad=True)
    policy_loss(losses, logprobs, old_logprobs, advantages).per_token.sum().backward()
    assert logprobs.grad is not None
    assert old_logprobs.grad is None
    assert advantages.grad is None


def test_gradient_passes_finite_differences(losses):
    # Ratios 1.1, 0.55, 2.0 and 0.9 for either sign of the advantage: on no bound.
    old_logprobs = torch.full((2, 4), -1.5, dtype=torch.float64)
    logprobs = (old_logprobs + torch.tensor([1.1, 0.55, 2.0, 0.9], dtype=torch.float64).log()).requires_grad_()
    advantages = torch.tensor([0.7, -1.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(losses, x, old_logprobs, advantages).per_token, logprobs, raise_exception=False
    )


def test_padding_changes_neither_loss_nor_gradient(losses):
    old_logprobs, advantages = torch.tensor([[-1.2, -0.8], [-1.0, -3.0]]), torch.tensor([1.0, -1.0])
    plain = torch.tensor([[-1.0, -1.0], [-2.0, -2.0]], requires_grad=True)
    expected = policy_loss(losses, plain, old_logprobs, advantages)
    expected.per_token.sum().backward()
    assert plain.grad is not None

    widen = torch.nn.functional.pad
    mask = widen(torch.ones(2, 2), (0, 2))
    for filler in (0.0, 1e4, NAN, INF, -INF):
        wide = widen(plain.detach(), (0, 2), value=filler).requires_grad_()
        result = policy_loss(losses, wide, widen(old_logprobs, (0, 2), value=filler), advantages, mask)
        result.per_token.sum().backward()
        assert wide.grad is not None
        assert_close(wide.grad, widen(plain.grad, (0, 2)))
        for name in ("per_token", "ratio", "approx_kl", "clipped_low", "clipped_high"):
            assert_close(getattr(result, name), widen(getattr(expected, name), (0, 2)))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_order_and_micro_batches_change_nothing(losses, data):
    size = data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logprobs, old_logprobs = -torch.rand(2, size, 4, dtype=torch.float64, generator=generator)
    advantages = torch.randn(size, dtype=torch.float64, generator=generator)
    mask = torch.rand(size, 4, generator=generator) < 0.7
    counts = {"num_sequences": int(mask.any(-1).sum()), "num_tokens": int(mask.sum()), "max_length": 4}

    def loss_of(rows, aggregation):
        per_token = policy_loss(losses, logprobs[rows], old_logprobs[rows], advantages[rows], mask[rows]).per_token
        return aggregate(per_token, mask[rows], aggregation, **counts)

    rows = data.draw(st.permutations(range(size)))
    cut = data.draw(st.integers(0, size))
    for aggregation in ("sequence_mean", "token_mean", "constant_length"):
        parts = loss_of(rows[:cut], aggregation) + loss_of(rows[cut:], aggregation)
        assert_close(parts, loss_of(list(range(size)), aggregation))


def test_extreme_ratios_stay_finite(losses):
    log_ratios = torch.tensor([[-1e5, -100.0, 100.0, 1e5]]).expand(2, 4).clone().requires_grad_()
    result = policy_loss(losses, log_ratios, torch.zeros(2, 4), torch.tensor([-1.0, 1.0]))
    result.per_token.sum().backward()
    assert log_ratios.grad is not None
    for value in (result.per_token, result.ratio, result.approx_kl, log_ratios.grad):
        assert value.isfinite().all()


def test_arithmetic_is_at_least_float32(losses):
    # exp(-8 + 7.96875) is 0.969; in bfloat16 the ratio would be 0.96875 or coarser.
    logprobs = torch.tensor([[-8.0]], dtype=torch.bfloat16)
    old_logprobs = torch.tensor([[-7.96875]], dtype=torch.bfloat16)
    result = policy_loss(losses, logprobs, old_logprobs, torch.tensor([1.0], dtype=torch.bfloat16))
    assert result.per_token.dtype == torch.float32
    assert_close(result.ratio.item(), math.exp(-0.03125))
    assert losses.sft_loss(logprobs, torch.ones(1, 1), num_tokens=1).dtype == torch.float32


def test_wrong_shapes_are_refused(losses):
    logprobs, advantages = torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(AssertionError, match="mask"):
        policy_loss(losses, logprobs, None, advantages, torch.ones(2, 1))
    with pytest.raises(AssertionError, match="old_logprobs"):
        policy_loss(losses, logprobs, torch.zeros(2, 1), advantages)
    for wrong in (torch.zeros(3), torch.zeros(2, 1), torch.tensor(0.0)):
        with pytest.raises(AssertionError, match="advantages"):
            policy_loss(losses, logprobs, None, wrong)


def test_arguments_are_not_changed(losses):
    old_logprobs, advantages, mask = torch.tensor([[-2.0, NAN, -1.0], [-1.0, 1.0, 2.0]]), torch.ones(2), MASK.clone()
    arguments = (LOGPROBS.clone(), old_logprobs, advantages, mask)
    before = [argument.clone() for argument in arguments]
    policy_loss(losses, *arguments)
    losses.sft_loss(arguments[0], mask, num_tokens=3)
    for argument, copy in zip(arguments, before, strict=True):
        assert_close(argument, copy, equal_nan=True, rtol=0, atol=0)
