"""Masked reductions, KL estimators and the averaging of a loss: numbers by hand, identities, invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

NAN, INF = float("nan"), float("inf")
AGGREGATIONS = ("sequence_mean", "token_mean", "constant_length")

# Two sequences of 3 and 1 tokens. Sums 6 and 10, means 2 and 10.
VALUES = torch.tensor([[1.0, 2.0, 3.0], [10.0, NAN, INF]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])

# Rows of up to 5 values, each with its own mask: ragged sequences, some of them empty or fully masked.
ragged = st.lists(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), max_size=5), min_size=1, max_size=5)


def pad(rows, length, filler=NAN) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, mask), both (B, length), of ragged rows of (value, keep)."""
    values = [[value for value, _ in row] + [filler] * (length - len(row)) for row in rows]
    mask = [[keep for _, keep in row] + [False] * (length - len(row)) for row in rows]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(mask)


def mean_of(tokens, values, mask, aggregation, counted=None):
    """The aggregate with the denominators of `counted`, by default of the mask itself, at max_length 8."""
    kept = (mask if counted is None else counted).bool()
    num_sequences, num_tokens = int(kept.any(-1).sum()), int(kept.sum())
    return tokens.aggregate(values, mask, aggregation, num_sequences=num_sequences, num_tokens=num_tokens, max_length=8)


def test_upcast_is_at_least_float32(tokens):
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bool, torch.float32),
        (torch.int64, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert tokens.upcast(torch.ones(2, dtype=dtype)).dtype == expected


def test_masked_sum_by_hand(tokens):
    assert tokens.masked_sum(VALUES, MASK).item() == 16.0  # 1 + 2 + 3 + 10
    assert tokens.masked_sum(VALUES, MASK.bool(), dim=-1).tolist() == [6.0, 10.0]
    assert tokens.masked_sum(VALUES, torch.zeros_like(MASK)).item() == 0.0


def test_masked_mean_by_hand(tokens):
    assert tokens.masked_mean(VALUES, MASK).item() == 4.0  # 16 / 4 tokens
    assert tokens.masked_mean(VALUES, MASK, dim=-1).tolist() == [2.0, 10.0]  # 6 / 3 and 10 / 1
    assert tokens.masked_mean(VALUES, torch.zeros_like(MASK)).item() == 0.0


def test_masked_sum_accumulates_in_float32(tokens):
    # In bfloat16, of 8 bits, 256 + 1 is 256 again.
    ones = torch.ones(1, 1000, dtype=torch.bfloat16)
    assert tokens.masked_sum(ones, torch.ones(1, 1000)).item() == 1000.0


def test_masked_values_get_no_gradient(tokens):
    values = VALUES.clone().requires_grad_()
    tokens.masked_sum(values, MASK).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]


def test_aggregate_by_hand(tokens):
    assert mean_of(tokens, VALUES, MASK, "sequence_mean").item() == 6.0  # (2 + 10) / 2 sequences
    assert mean_of(tokens, VALUES, MASK, "token_mean").item() == 4.0  # 16 / 4 tokens
    assert mean_of(tokens, VALUES, MASK, "constant_length").item() == 1.0  # 16 / (2 sequences * 8)


def test_aggregate_divides_by_the_denominators_it_is_given(tokens):
    given_counts = {"num_sequences": 4, "num_tokens": 32, "max_length": 10}
    assert tokens.aggregate(VALUES, MASK, "sequence_mean", **given_counts).item() == 3.0  # (2 + 10) / 4
    assert tokens.aggregate(VALUES, MASK, "token_mean", **given_counts).item() == 0.5  # 16 / 32
    assert_close(tokens.aggregate(VALUES, MASK, "constant_length", **given_counts), torch.tensor(0.4))  # 16 / (4 * 10)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregate_of_nothing_is_zero(tokens, aggregation):
    assert mean_of(tokens, VALUES, torch.zeros_like(MASK), aggregation).item() == 0.0


def test_fully_masked_sequence_leaves_numerator_and_denominator(tokens):
    values = torch.cat([VALUES, torch.full((1, 3), 7.0)])
    mask = torch.cat([MASK, torch.zeros(1, 3, dtype=torch.long)])
    for aggregation in AGGREGATIONS:
        assert_close(mean_of(tokens, values, mask, aggregation), mean_of(tokens, VALUES, MASK, aggregation))


def test_unknown_aggregation_is_refused(tokens):
    with pytest.raises(AssertionError, match="mean"):
        mean_of(tokens, VALUES, MASK, "mean")


def test_shapes_that_would_broadcast_are_refused(tokens):
    with pytest.raises(AssertionError, match="differ"):
        tokens.masked_sum(VALUES, MASK[:1])
    for estimator in (tokens.k1, tokens.k2, tokens.k3):
        with pytest.raises(AssertionError, match="differ"):
            estimator(VALUES, VALUES[:, :1])


@settings(max_examples=50, deadline=None)
@given(rows=ragged, extra=st.integers(0, 3), filler=st.sampled_from([0.0, 1e9, INF, NAN]))
def test_padding_changes_nothing(tokens, rows, extra, filler):
    for aggregation in AGGREGATIONS:
        expected = mean_of(tokens, *pad(rows, 5), aggregation)
        assert_close(mean_of(tokens, *pad(rows, 5 + extra, filler), aggregation), expected)


@settings(max_examples=50, deadline=None)
@given(rows=ragged, data=st.data())
def test_order_of_sequences_changes_nothing(tokens, rows, data):
    shuffled = data.draw(st.permutations(rows))
    for aggregation in AGGREGATIONS:
        assert_close(mean_of(tokens, *pad(shuffled, 5), aggregation), mean_of(tokens, *pad(rows, 5), aggregation))


@settings(max_examples=50, deadline=None)
@given(rows=ragged, data=st.data())
def test_micro_batches_add_up_to_the_whole(tokens, rows, data):
    values, mask = pad(rows, 5)
    cut = data.draw(st.integers(0, len(rows)))
    for aggregation in AGGREGATIONS:
        parts = [mean_of(tokens, values[s], mask[s], aggregation, mask) for s in (slice(cut), slice(cut, None))]
        assert_close(sum(parts), mean_of(tokens, values, mask, aggregation))


def test_mean_of_micro_batch_means_is_not_the_mean(tokens):
    """The negative control: with each micro-batch's own count, the split above does change the result."""
    naive = [mean_of(tokens, VALUES[s], MASK[s], "token_mean") for s in (slice(1), slice(1, None))]
    assert sum(naive).item() / 2 == 6.0  # (6/3 + 10/1) / 2, where the token mean is 4


def test_estimators_by_hand(tokens):
    # The policy gives the token 1/2, the reference 1/4: log-ratio ln 2, reference/policy 1/2.
    logprobs, ref_logprobs = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    assert_close(tokens.k1(logprobs, ref_logprobs).item(), math.log(2))
    assert_close(tokens.k2(logprobs, ref_logprobs).item(), math.log(2) ** 2 / 2)
    assert_close(tokens.k3(logprobs, ref_logprobs).item(), 0.5 - 1 + math.log(2))
    # The other way round: log-ratio -ln 2, reference/policy 2.
    assert_close(tokens.k1(ref_logprobs, logprobs).item(), -math.log(2))
    assert_close(tokens.k2(ref_logprobs, logprobs).item(), math.log(2) ** 2 / 2)
    assert_close(tokens.k3(ref_logprobs, logprobs).item(), 2 - 1 - math.log(2))


def test_estimators_subtract_in_float32(tokens):
    # In bfloat16 the difference -7.99609375 would round to -8.
    logprobs = torch.tensor([[-8.0]], dtype=torch.bfloat16)
    ref_logprobs = torch.tensor([[-0.00390625]], dtype=torch.bfloat16)
    assert tokens.k1(logprobs, ref_logprobs).item() == -7.99609375
    assert tokens.k3(logprobs, ref_logprobs).dtype == torch.float32


POLICY = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
REFERENCE = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64)


def expectation(per_token, logits):
    """Exact expectation over tokens drawn from the policy: a sum over the vocabulary, weights without gradient."""
    return (logits.softmax(-1).detach() * per_token).sum()


def kl_and_gradient(of_policy):
    """The divergence `of_policy(logprobs)` and its gradient in the policy's logits, by autograd."""
    logits = POLICY.log().requires_grad_()
    value = of_policy(logits.log_softmax(-1))
    return value.detach(), torch.autograd.grad(value, logits)[0]


def reverse_kl(logprobs):
    return (logprobs.exp() * (logprobs - REFERENCE.log())).sum()


def forward_kl(logprobs):
    return (REFERENCE * (REFERENCE.log() - logprobs)).sum()


def test_k1_and_k3_are_unbiased(tokens):
    value, _ = kl_and_gradient(reverse_kl)
    for estimator in (tokens.k1, tokens.k3):
        assert_close(expectation(estimator(POLICY.log(), REFERENCE.log()), POLICY.log()), value)


def test_gradient_of_each_estimator_as_a_loss(tokens):
    """k1 pulls nowhere, k2 along KL(policy || reference), k3 along KL(reference || policy)."""
    _, reverse = kl_and_gradient(reverse_kl)
    _, forward = kl_and_gradient(forward_kl)
    assert not torch.allclose(reverse, forward, rtol=1e-2)
    for estimator, expected in [
        (tokens.k1, torch.zeros_like(reverse)),
        (tokens.k2, reverse),
        (tokens.k3, forward),
    ]:
        logits = POLICY.log().requires_grad_()
        loss = expectation(estimator(logits.log_softmax(-1), REFERENCE.log()), logits)
        assert_close(torch.autograd.grad(loss, logits)[0], expected)


def test_gradient_of_k1_and_k3_as_a_reward(tokens):
    """k1 has that of KL(policy || reference); k3 takes that of KL(reference || policy) away from it."""
    _, reverse = kl_and_gradient(reverse_kl)
    _, forward = kl_and_gradient(forward_kl)
    for estimator, expected in [(tokens.k1, reverse), (tokens.k3, reverse - forward)]:
        logits = POLICY.log().requires_grad_()
        logprobs = logits.log_softmax(-1)
        reinforce = expectation(estimator(logprobs, REFERENCE.log()).detach() * logprobs, logits)
        assert_close(torch.autograd.grad(reinforce, logits)[0], expected)


@settings(max_examples=100, deadline=None)
@given(log_ratio=st.floats(-1e4, 1e4, width=32))
def test_k3_is_bounded_and_its_gradient_finite(tokens, log_ratio):
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    value = tokens.k3(logprobs, torch.zeros(1, 1))
    value.sum().backward()
    assert 0.0 <= value.item() <= 10.0
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_k3_is_capped(tokens):
    # exp(3) - 1 - 3 = 16.1 is over the cap, exp(2.5) - 1 - 2.5 = 8.68 under it.
    values = tokens.k3(torch.tensor([[-3.0, -2.5, -200.0, 200.0]]), torch.zeros(1, 4))
    assert_close(values, torch.tensor([[10.0, math.exp(2.5) - 3.5, 10.0, 10.0]]))


def test_k3_of_small_differences_keeps_its_precision(tokens):
    # exp(-d) - 1 + d is d^2/2 - d^3/6 + ...; in float32 exp(-d) alone would be wrong by 6e-8, an eighth of it.
    value = tokens.k3(torch.tensor([[1e-3]]), torch.zeros(1, 1)).item()
    assert value == pytest.approx(1e-6 / 2 - 1e-9 / 6, rel=1e-3)


def test_estimators_pass_finite_differences(tokens):
    logprobs = torch.tensor([[-0.5, -2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    ref_logprobs = torch.tensor([[-0.7, -1.0, -2.5]], dtype=torch.float64)
    for estimator in (tokens.k1, tokens.k2, tokens.k3):
        assert torch.autograd.gradcheck(lambda x, f=estimator: f(x, ref_logprobs), logprobs, raise_exception=False)


def test_arguments_are_not_changed(tokens):
    values, mask = VALUES.clone(), MASK.clone()
    for aggregation in AGGREGATIONS:
        mean_of(tokens, values, mask, aggregation)
    for estimator in (tokens.k1, tokens.k2, tokens.k3):
        estimator(values, values)
    assert_close(values, VALUES, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(mask, MASK)
