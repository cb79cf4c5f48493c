"""Arithmetic on per-token tensors: masked reductions, estimators of the KL divergence, the averaging of a loss.

Floor 0: pure tensor mathematics; knows no model, setting or rank. Entry t of a `(B, T)` tensor belongs to token t.
A mask is bool or 0/1 and means KEEP; reductions take no notice of what it leaves out, not even of NaN.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: far beyond any useful ratio, far below float32's overflow at exp(88)
MAX_K3 = 10.0


def upcast(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 where they are already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return the sum of the kept values, over everything or along `dim`; 0 where nothing is kept."""
    assert values.shape == mask.shape, f"values {tuple(values.shape)} and mask {tuple(mask.shape)} differ"
    # Not a product: 0 * inf is NaN, and padding may hold log-probs of -inf.
    return upcast(values).masked_fill(~mask.bool(), 0.0).sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean of the kept values, over everything or along `dim`; 0 where nothing is kept."""
    return masked_sum(values, mask, dim) / mask.bool().sum(dim).clamp(min=1)


def token_mean(values: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
    """Return the share of `(B, T)` values in the mean over an update's `num_tokens` kept tokens; see `aggregate`."""
    return masked_sum(values, mask) / max(num_tokens, 1)


def aggregate(
    values: Tensor,
    mask: Tensor,
    aggregation: Aggregation,
    *,
    num_sequences: int,
    num_tokens: int,
    max_length: int,
) -> Tensor:
    """Return the scalar share that `(B, T)` values have in the mean over an optimizer update.

    `num_sequences` counts the sequences that keep a token and `num_tokens` the kept tokens of the whole update, over
    all micro-batches and ranks. The shares of micro-batches of whole sequences then add up to the mean of the
    undivided batch: add them, and divide by nothing further (multiply by the world size where gradients are averaged
    over ranks). A sequence that keeps no token weighs nothing.

    - `sequence_mean`: each sequence weighs the same, its tokens 1 / its length (GRPO, arXiv 2402.03300).
    - `token_mean`: each token weighs the same (DAPO, arXiv 2503.14476).
    - `constant_length`: each token weighs 1 / `max_length` of a sequence, whatever its length (Dr. GRPO,
      arXiv 2503.20783).
    """
    match aggregation:
        case "sequence_mean":
            return masked_mean(values, mask, dim=-1).sum() / max(num_sequences, 1)
        case "token_mean":
            return token_mean(values, mask, num_tokens=num_tokens)
        case "constant_length":
            return masked_sum(values, mask) / max(num_sequences * max_length, 1)
        case _:
            assert_never(aggregation)


# Estimators of KL(policy || reference) for tokens sampled from the policy, after J. Schulman, "Approximating KL
# Divergence" (joschu.net/blog/kl-approx.html). All three estimate its value; which one to train on is another matter:
#
#       as a reward                                     as a loss
#   k1  right: unbiased, signed                         wrong: its expected gradient is 0
#   k2  wrong: biased                                   right: the expected gradient of KL(policy || reference)
#   k3  wrong: subtracts that of KL(reference||policy)  GRPO's choice: that of KL(reference || policy)


def _log_ratio(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    assert logprobs.shape == ref_logprobs.shape, (
        f"logprobs {tuple(logprobs.shape)} and ref_logprobs {tuple(ref_logprobs.shape)} differ"
    )
    return upcast(logprobs) - upcast(ref_logprobs)


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log(policy / reference) of each token: the estimator to subtract from a reward."""
    return _log_ratio(logprobs, ref_logprobs)


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return half the squared log-ratio of each token: as a loss, it has the gradient of KL(policy || reference)."""
    return _log_ratio(logprobs, ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return ref/policy - 1 - log(ref/policy) of each token, within [0, MAX_K3] (GRPO, arXiv 2402.03300, eq. 4).

    A token beyond MAX_K3 has no gradient: one outlier must not outweigh the batch.
    """
    # Both bounds are needed: the cap's gradient of 0, times an exponential that overflowed, would be NaN.
    log_ratio = _log_ratio(logprobs, ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.expm1(-log_ratio) + log_ratio).clamp(0.0, MAX_K3)
